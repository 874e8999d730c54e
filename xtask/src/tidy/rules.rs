//! The rules for one file.

use super::File;
use super::source::Source;

/// Lines of a file without its tests.
pub const FILE_LINES: usize = 500;
/// Lines of a function from its opening brace on: a kernel's parameter list is as long as its launch.
const FUNCTION_LINES: usize = 80;
/// Lines above an `unsafe` block within which its justification stands, if its function does not hold it.
const SAFETY_LINES: usize = 6;

/// The folders of one machine, which mean nothing on another. Spelled in two parts so that this file passes.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/wo", "rk"), concat!("/ro", "ot"), concat!("/ho", "me")];
/// Signs of a package mirror: a clean checkout builds from the public registries.
const MIRRORS: [&str; 6] = [
    concat!("arti", "factory"),
    concat!("jf", "rog"),
    concat!("replace", "-with"),
    concat!("[sou", "rce."),
    concat!("index", "-url"),
    concat!("GO", "PROXY"),
];
/// What the lock file may name as a package's source.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Rules for every text file.
pub fn any_file(file: &File, found: &mut Vec<String>) {
    for (number, line) in (1..).zip(file.text.lines()) {
        let mut say = |what: &str| found.push(format!("{}:{number}: {what}", file.path));
        if MACHINE_FOLDERS.iter().any(|folder| names_folder(line, folder)) {
            say("a path that exists on one machine only");
        }
        if MIRRORS.iter().any(|mirror| line.contains(mirror)) {
            say("a package mirror");
        }
        if file.path.ends_with("Cargo.lock") && line.starts_with("source = ") && !line.contains(REGISTRY) {
            say("a package from another source than crates.io");
        }
        if file.path.ends_with(".rs") && is_banner(line) {
            say("a banner; let the item speak");
        }
    }
}

/// Whether `line` holds the absolute path of `folder` or of something in it.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(i, _)| {
        let before = line[..i].chars().next_back();
        let after = line[i + folder.len()..].chars().next();
        let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '~' | '}' | '$');
        !before.is_some_and(inside) && !after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
    })
}

fn is_banner(line: &str) -> bool {
    let line = line.trim_start();
    ["// ---", "// ===", "// ***", "/////", "//---", "//==="].iter().any(|banner| line.starts_with(banner))
}

/// Rules for Rust files.
pub fn rust_file(file: &File, source: &Source, found: &mut Vec<String>) {
    let mut say = |line: usize, what: String| found.push(format!("{}:{line}: {what}", file.path));
    if !file.text.starts_with("//! ") {
        say(1, "the file does not open with a `//!` line".into());
    }
    let is_tests = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
    let lines = source.lines_without_tests();
    if lines > FILE_LINES && !is_tests {
        say(1, format!("{lines} lines without tests, {FILE_LINES} is the budget"));
    }
    for (name, extent) in source.functions() {
        let body = source.code[extent.clone()].find('{').map_or(extent.start, |brace| extent.start + brace);
        let lines = file.text[body..extent.end].lines().count();
        if lines > FUNCTION_LINES {
            say(source.line(extent.start), format!("`{name}` has {lines} lines, {FUNCTION_LINES} is the budget"));
        }
    }
    for name in ["todo", "unimplemented", "dbg"] {
        for at in source.words(name).into_iter().filter(|&at| source.code[at + name.len()..].starts_with('!')) {
            say(source.line(at), format!("`{name}!`"));
        }
    }
    for at in source.words("unsafe") {
        let after = source.code[at + "unsafe".len()..].trim_start();
        if (after.starts_with('{') || after.starts_with("impl")) && !is_justified(source, at) {
            say(source.line(at), "`unsafe` without a `SAFETY:` comment".into());
        }
    }
    if in_operations(&file.path) {
        for (at, _) in source.code.match_indices("cfg").filter(|(at, _)| names_feature(&source.code[*at..])) {
            say(source.line(at), "features are named in core only".into());
        }
    }
}

/// Whether a `SAFETY:` comment stands just above, or above in the same function (one comment may cover several blocks).
fn is_justified(source: &Source, at: usize) -> bool {
    let line = source.line(at);
    let function =
        source.functions().into_iter().map(|f| f.1).filter(|f| f.contains(&at)).map(|f| source.line(f.start));
    let first = function.min().unwrap_or(line).min(line.saturating_sub(SAFETY_LINES)).max(1);
    source.text.lines().skip(first - 1).take(line - first + 1).any(|l| l.contains("SAFETY"))
}

/// Whether a path lies in a domain's folder.
fn in_operations(path: &str) -> bool {
    path.strip_prefix("crates/bimetal-ops/src/").is_some_and(|rest| rest.contains('/'))
}

/// Whether code that starts with `cfg` asks for a feature.
fn names_feature(code: &str) -> bool {
    let rest = code["cfg".len()..].trim_start_matches('!').trim_start_matches("_attr").trim_start();
    rest.strip_prefix('(').and_then(|r| r.split([']', ';', '{']).next()).is_some_and(|r| r.contains("feature"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::violations;

    #[track_caller]
    fn refuses(path: &str, text: &str, what: &str) {
        let found = violations(path, text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(what), "{found:?}");
    }

    const LIB: &str = "crates/a/src/lib.rs";

    #[test]
    fn a_file_without_its_line_is_refused() {
        refuses(LIB, "// Adds.\n", "`//!`");
        refuses(LIB, "use std::fmt;\n//! Adds.\n", "`//!`");
    }

    #[test]
    fn long_files_and_functions_are_refused_and_tests_do_not_count() {
        let long = "const A: u8 = 0;\n".repeat(500);
        refuses(LIB, &format!("//! A.\n{long}"), "501 lines");
        let tests = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(violations(LIB, &tests).is_empty());
        let body = "    a();\n".repeat(79);
        refuses(LIB, &format!("//! A.\nfn f() {{\n{body}}}\n"), "`f` has 81 lines");
        let body = "    a();\n".repeat(78);
        assert!(violations(LIB, &format!("//! A.\nfn f(\n    a: u8,\n    b: u8,\n) {{\n{body}}}\n")).is_empty());
    }

    #[test]
    fn leftovers_are_refused() {
        refuses(LIB, "//! A.\nfn f() { todo!() }\n", "`todo!`");
        refuses(LIB, "//! A.\nfn f() { dbg!(1); }\n", "`dbg!`");
        refuses(LIB, "//! A.\nfn f() { unimplemented!() }\n", "`unimplemented!`");
        refuses(LIB, "//! A.\n// ---- part two ----\n", "banner");
        assert!(
            violations(LIB, "//! A.\n// A todo! in a comment, and \"dbg!\".\nfn f() { g(\"todo!\") }\n").is_empty()
        );
    }

    #[test]
    fn unsafe_needs_its_reason() {
        refuses(LIB, "//! A.\nfn f() {\n    unsafe { g() }\n}\n", "SAFETY");
        refuses(LIB, "//! A.\nunsafe impl Send for A {}\n", "SAFETY");
        assert!(
            violations(LIB, "//! A.\nfn f() {\n    // SAFETY: g takes anything.\n    unsafe { g() }\n}\n").is_empty()
        );
        assert!(violations(LIB, "//! A.\ntrait A {\n    unsafe fn f(&self);\n}\n").is_empty());
    }

    #[test]
    fn one_machines_paths_and_mirrors_are_refused() {
        for folder in super::MACHINE_FOLDERS {
            refuses("notes.md", &format!("see {folder}/me/notes\n"), "one machine");
            refuses("run.sh", &format!("cd {folder}\n"), "one machine");
            assert!(violations("a.md", &format!("docs{folder}, https://a.b{folder}, {folder}space\n")).is_empty());
        }
        refuses("a.toml", &format!("{} = \"mirror\"\n", super::MIRRORS[2]), "mirror");
        refuses("Cargo.lock", "source = \"git+https://example.org/a\"\n", "crates.io");
    }

    #[test]
    fn operations_name_no_features() {
        let text = "//! A.\n#[cfg(feature = \"cuda\")]\nfn f() {}\n";
        refuses("crates/bimetal-ops/src/softmax/mod.rs", text, "features");
        refuses(
            "crates/bimetal-ops/src/softmax/mod.rs",
            "//! A.\nconst A: bool = cfg!(feature = \"cuda\");\n",
            "features",
        );
        assert!(violations("crates/bimetal-core/src/gpu/mod.rs", text).is_empty());
    }
}
