//! The registry: every domain, its families and their operations. Tests, benchmarks and listings all walk it.

use bimetal_core::op::Definition;
pub use bimetal_core::registry::Domain;

macro_rules! domains {
    ($($domain:ident),* $(,)?) => {
        /// Every domain.
        pub static DOMAINS: &[&Domain] = &[$(&crate::$domain::DOMAIN),*];
    };
}

domains!(elementwise, activation, reduction, softmax, normalization, linalg);

/// Every operation with its domain.
pub fn ops() -> impl Iterator<Item = (&'static Domain, &'static dyn Definition)> {
    DOMAINS.iter().copied().flat_map(|domain| domain.ops().map(move |op| (domain, op)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::op::Role;
    use std::collections::HashSet;

    #[test]
    fn names_and_labels_are_unique() {
        let mut names = HashSet::new();
        for (_, op) in ops() {
            assert!(names.insert(op.name()), "{} twice", op.name());
            let cases = op.cases();
            let mut labels = HashSet::new();
            for case in &cases {
                assert_eq!(case.op.name(), op.name());
                assert!(
                    labels.insert((case.label.clone(), case.role == Role::Bench)),
                    "{}: {} twice",
                    op.name(),
                    case.label
                );
            }
            assert!(cases.iter().any(|c| c.role == Role::Bench), "{} has no benchmark case", op.name());
            assert!(cases.iter().any(|c| c.role == Role::Agree), "{} has no awkward case", op.name());
            assert!(!op.doc().is_empty());
        }
    }

    #[test]
    fn every_case_declares_its_cost() {
        for (_, op) in ops() {
            for case in op.cases() {
                for &dtype in op.dtypes() {
                    let specs = case.specs(dtype);
                    let specs: Vec<_> = specs.iter().collect();
                    let outputs = case.op.outputs(&specs).unwrap_or_else(|e| panic!("{}: {e}", case.label));
                    let cost = case.op.cost(&specs);
                    let written: usize = outputs.iter().map(|s| s.bytes()).sum();
                    assert!(cost.bytes >= written as u64, "{} {}: fewer bytes than its outputs", op.name(), case.label);
                    if specs[0].numel() > 0 {
                        assert!(cost.bytes > 0 && cost.flops > 0, "{} {}: no cost", op.name(), case.label);
                    }
                }
            }
        }
    }
}
