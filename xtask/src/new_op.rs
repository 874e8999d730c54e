//! Starts a kernel family: a folder with a small operation that works, and its one line in the domain's list.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The family's files and what they start as.
const TEMPLATES: [(&str, &str); 4] = [
    ("mod.rs", include_str!("../templates/mod.rs.in")),
    ("reference.rs", include_str!("../templates/reference.rs.in")),
    ("cpu.rs", include_str!("../templates/cpu.rs.in")),
    ("gpu.rs", include_str!("../templates/gpu.rs.in")),
];

/// Longest line that a domain's list is written on.
const LINE: usize = 110;

/// Makes the family's folder in its domain and lists it.
///
/// # Errors
/// A name that is no Rust identifier or is taken, a domain that is not there, or files that cannot be written.
pub fn run(root: &Path, domain: &str, name: &str) -> Result<String, String> {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Err(format!("`{name}` is not a name like `batched_qr`"));
    }
    let [source, list] = place(root, domain);
    let text = fs::read_to_string(&list)
        .map_err(|_| format!("no domain `{domain}`; there are: {}", domains(root).join(", ")))?;
    let folder = source.join(name);
    if folder.exists() {
        return Err(format!("{} exists already", folder.display()));
    }
    let listed = listed(&text, name).ok_or_else(|| format!("{}: no `domain!` list", list.display()))?;
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let library = if list.ends_with("lib.rs") { format!("bimetal_{domain}") } else { "bimetal_ops".into() };
    let camel: String = name.split('_').map(capitalised).collect();
    for (file, template) in TEMPLATES {
        let text = template.replace("{{name}}", name).replace("{{Name}}", &camel).replace("{{crate}}", &library);
        fs::write(folder.join(file), text).map_err(failed)?;
    }
    fs::write(&list, listed).map_err(failed)?;
    // The name's length decides where lines break. Without rustfmt the files are right, only not yet formatted.
    let _ = Command::new("rustfmt").args(["--edition", "2024"]).arg(folder.join("mod.rs")).status();
    Ok(format!("{} computes x + 1 and passes its tests; replace what is marked REPLACE", folder.display()))
}

/// The folder of a domain's families and the file that lists them: a domain is a folder of bimetal-ops, or a crate.
fn place(root: &Path, domain: &str) -> [PathBuf; 2] {
    let folder = root.join("crates/bimetal-ops/src").join(domain);
    if folder.exists() {
        let list = folder.join("mod.rs");
        return [folder, list];
    }
    let source = root.join(format!("crates/bimetal-{domain}/src"));
    let list = source.join("lib.rs");
    [source, list]
}

fn domains(root: &Path) -> Vec<String> {
    let named = |folder: &str, prefix: &str| -> Vec<String> {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter_map(|name| name.strip_prefix(prefix).map(str::to_string)).collect()
    };
    let mut names = [named("crates/bimetal-ops/src", ""), named("crates", "bimetal-")].concat();
    names.retain(|name| fs::read_to_string(&place(root, name)[1]).is_ok_and(|text| text.contains("domain!(")));
    names.sort();
    names
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// The text of a domain's `mod.rs` with `name` at the end of its `domain!` list.
fn listed(text: &str, name: &str) -> Option<String> {
    let start = text.find("domain!(")?;
    let close = start + text[start..].find(");")?;
    let (head, tail) = text.split_at(close);
    let head = head.trim_end().trim_end_matches(',');
    let last = &head[head.rfind('\n').map_or(0, |i| i + 1)..];
    if text[start..close].contains('\n') {
        return Some(format!("{head},\n    {name},\n{tail}"));
    }
    if last.len() + name.len() + 4 <= LINE {
        return Some(format!("{head}, {name}{tail}"));
    }
    let (call, families) = head.split_at(start + head[start..].find(':')? + 1);
    let families = families.trim().replace(", ", ",\n    ");
    Some(format!("{call}\n    {families},\n    {name},\n{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;

    #[test]
    fn a_name_joins_the_list() {
        assert_eq!(listed("domain!(\"a\": b);\n", "c").unwrap(), "domain!(\"a\": b, c);\n");
        let long = format!("domain!(\"a\": {});\n", "b".repeat(LINE));
        assert_eq!(listed(&long, "c").unwrap(), format!("domain!(\"a\":\n    {},\n    c,\n);\n", "b".repeat(LINE)));
        assert_eq!(listed("domain!(\"a\":\n    b,\n);\n", "c").unwrap(), "domain!(\"a\":\n    b,\n    c,\n);\n");
        assert_eq!(listed("mod a;\n", "c"), None);
    }

    #[test]
    fn bad_names_and_domains_are_refused() {
        for bad in ["", "Qr", "1d", "a-b", "../a"] {
            assert!(run(&root(), "softmax", bad).is_err(), "{bad}");
        }
        assert!(run(&root(), "nothing", "qr").unwrap_err().ends_with("linalg, normalization, reduction, softmax"));
        assert!(run(&root(), "softmax", "softmax_axis").unwrap_err().contains("exists"));
        assert!(run(&root(), "linalg", "matmul").unwrap_err().contains("exists"));
    }

    /// Copies what git knows of the repository.
    fn copy(to: &Path) {
        let out = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
        for path in out.stdout.split(|&b| b == 0).filter(|p| !p.is_empty()) {
            let path = std::str::from_utf8(path).unwrap();
            let target = to.join(path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(root().join(path), target).unwrap();
        }
    }

    /// The new operation's cases on every target, as `tests/agree.rs` runs all of them.
    const AGREE: &str = r#"//! Agreement of the new family.
#[test]
fn the_template_agrees() {
    let plan = bimetal_core::check::Plan::from_env();
    let (_, op) = bimetal_ops::registry::ops().find(|(_, op)| op.name() == "template_op").unwrap();
    let mut passed = 0;
    bimetal_core::check::check(op, &plan, &mut |row| match &row.outcome {
        bimetal_core::check::Outcome::Passed { .. } => passed += 1,
        bimetal_core::check::Outcome::Failed { why } => panic!("{row}: {why}"),
        bimetal_core::check::Outcome::Skipped { .. } => {}
    });
    assert!(passed > 0);
    println!("{passed} cases of the template agree");
}
"#;

    /// Builds operations again, so `.ci/run` asks for it by name.
    #[test]
    #[ignore = "builds a copy of the workspace"]
    fn a_new_family_compiles_agrees_and_is_tidy() {
        let scratch = std::env::temp_dir().join(format!("bimetal-new-op-{}", std::process::id()));
        copy(&scratch);
        run(&scratch, "softmax", "template_op").unwrap();
        fs::write(scratch.join("crates/bimetal-ops/tests/template.rs"), AGREE).unwrap();
        let runs = |program: &str, args: &[&str]| {
            let status = Command::new(program).args(args).current_dir(&scratch).status().unwrap();
            assert!(status.success(), "{program} {}", args.join(" "));
        };
        let family = "crates/bimetal-ops/src/softmax/template_op/mod.rs";
        runs("rustfmt", &["--check", "--edition", "2024", family]);
        runs("git", &["init", "--quiet"]);
        if let Err(violations) = crate::tidy::run(&scratch) {
            assert!(!violations.contains("template_op"), "{violations}");
        }
        // The same features as the whole workspace, so that its dependencies are not built again.
        runs(env!("CARGO"), &["test", "--release", "--workspace", "--test", "template", "--", "--nocapture"]);
        fs::remove_dir_all(&scratch).unwrap();
    }
}
