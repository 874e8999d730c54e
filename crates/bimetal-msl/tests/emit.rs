//! Every kernel of the registry lowers to Metal within an Apple GPU's limits, and clang accepts each source.

use bimetal_msl::{clang, emit};
use std::path::{Path, PathBuf};

fn target(folder: &str) -> PathBuf {
    // The test's own scratch folder lies directly in the target folder.
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target folder").join(folder)
}

/// Whether clang is here. Strict mode (CI) fails without it.
fn clang_is_here() -> bool {
    let here = clang::available();
    assert!(here || std::env::var_os("BIMETAL_STRICT").is_none(), "clang++ is missing and BIMETAL_STRICT is set");
    if !here {
        println!("SKIPPED: no clang++ here, the sources are not type-checked");
    }
    here
}

#[test]
fn every_case_lowers_to_metal_that_type_checks() {
    let emission = emit::all();
    let files = emission.write(&target("msl")).expect("the target folder is writable");
    println!(
        "{} kernels of {} operations emitted ({} launches) into target/msl",
        files.len(),
        emission.operations.len(),
        emission.launches
    );
    for what in &emission.unsupported {
        println!("SKIPPED: {what}: Metal has no such storage");
    }
    let failures = &emission.failures;
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(!files.is_empty());
    if clang_is_here() {
        let refused = clang::check_all(&files);
        assert!(refused.is_empty(), "clang refused {} of {}:\n{}", refused.len(), files.len(), refused.join("\n"));
        println!("{} kernels type-checked", files.len());
    }
}
