//! Agreement: every operation, case, dtype, backend and CPU level against the f64 reference, from the registry alone.

use bimetal_core::check::{self, Outcome, Plan};
use bimetal_ops::registry;

#[test]
fn every_operation_agrees_with_its_reference() {
    let plan = Plan::from_env();
    let (mut passed, mut failures, mut skips) = (0, Vec::new(), std::collections::BTreeMap::new());
    let ops: Vec<_> = registry::ops().map(|(_, op)| op).collect();
    check::check_all(&ops, &plan, &mut |_, rows| {
        for row in rows {
            match &row.outcome {
                Outcome::Passed { .. } => passed += 1,
                Outcome::Failed { why } => failures.push(format!("{row}: {why}")),
                Outcome::Skipped { why } => *skips.entry(format!("{}: {why}", row.target)).or_insert(0) += 1,
            }
        }
    });
    for (why, count) in &skips {
        println!("skipped {count} on {why}");
    }
    println!("{passed} agreed, {} failed", failures.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures[..failures.len().min(40)].join("\n"));
    assert!(passed > 0);
}
