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

/// Whether clang accepts the body of a kernel with two buffers.
fn accepts(name: &str, body: &str) -> bool {
    clang::check(&source(name, body)).is_ok()
}

/// The file of a kernel with two buffers and this body.
fn source(name: &str, body: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.metal"));
    let source = format!(
        "#include <metal_stdlib>\nusing namespace metal;\n\
         [[max_total_threads_per_threadgroup(64)]] [[kernel]] void k(device float const* const x [[buffer(0)]], \
         device float * const y [[buffer(1)]], constant uint32_t const* const n, \
         uint3 const at [[thread_position_in_grid]]) {{\nuint32_t const i = at[0];\n{body}\n}}\n"
    );
    std::fs::write(&path, source).expect("the target folder is writable");
    path
}

#[test]
fn one_bad_source_among_good_ones_is_named() {
    if !clang_is_here() {
        return;
    }
    let good = (0..40).map(|i| (i, "y[i] = x[i];"));
    let files: Vec<PathBuf> = good.map(|(i, body)| source(&format!("group_{i}"), body)).collect();
    assert_eq!(clang::check_all(&files), Vec::<String>::new());
    let bad = source("group_35", "y[i] = x[j];");
    let refused = clang::check_all(&files);
    assert!(refused.len() == 1 && refused[0].contains(&bad.display().to_string()), "{refused:?}");
}

#[test]
fn clang_accepts_what_metal_has_and_refuses_what_it_lacks() {
    if !clang_is_here() {
        return;
    }
    let good = [
        ("map", "if (i < n[0]) { y[i] = exp(x[i]) + fma(x[i], x[i], 1.0f); }"),
        ("plane", "y[i] = simd_sum(x[i]) + float(simd_shuffle_xor(int(i), 1));"),
        ("half", "half const h = half(x[i]); y[i] = float(max(h, h)) + float(bfloat(x[i]));"),
        ("shared", "alignas(16) threadgroup char s[64]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = s[0];"),
    ];
    for (name, body) in good {
        assert!(accepts(name, body), "{name} is valid Metal");
    }
    let broken = [
        ("undeclared", "y[i] = erf(x[i]);"),
        ("unknown_variable", "y[i] = x[j];"),
        ("wrong_type", "y[i] = &x[i];"),
        ("read_only", "float const* const p = x; p[i] = 1.0f;"),
        ("constant_space", "n[0] = i;"),
        ("vector_reduction", "y[i] = simd_sum(float4(x[i])).x;"),
        ("mixed_arguments", "y[i] = max(x[i], i);"),
        ("bfloat_math", "y[i] = float(max(bfloat(x[i]), half(1)));"),
        ("implicit_bfloat", "bfloat const b = x[i]; y[i] = float(b);"),
        ("reinterpreted", "y[i] = as_type<float>(half(x[i]));"),
        ("unbalanced", "if (i < n[0]) { y[i] = 1.0f;"),
        ("semicolon", "y[i] = 1.0f"),
    ];
    for (name, body) in broken {
        assert!(!accepts(name, body), "{name} is no valid Metal, and clang let it pass");
    }
}
