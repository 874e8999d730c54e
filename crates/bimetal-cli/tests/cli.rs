//! The `bimetal` binary as a user runs it: exit codes, JSON and files.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn bimetal(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimetal"));
    command.args(args).env_remove("BIMETAL_DEVICES").env_remove("BIMETAL_STRICT");
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A folder of this test's own that does not exist yet.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bimetal-cli-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn rows(folder: &Path) -> Vec<Value> {
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
    rows.as_array().unwrap().clone()
}

#[test]
fn ops_lists_what_scripts_need() {
    let output = bimetal(&["ops", "--json"]);
    assert!(output.status.success());
    let listed = json(&output);
    let listed = listed.as_array().unwrap();
    assert!(listed.iter().any(|op| op["name"] == "softmax"));
    for op in listed {
        for (field, is_list) in [("name", false), ("domain", false), ("dtypes", true), ("backends", true)] {
            assert!(if is_list { op[field].is_array() } else { op[field].is_string() }, "{field}: {op}");
        }
        assert_eq!(op["backends"], serde_json::json!(["cpu", "gpu"]), "{op}");
    }
    let some = json(&bimetal(&["ops", "softmax", "--json"]));
    assert_eq!(some.as_array().unwrap().len(), 1);
}

#[test]
fn devices_lists_the_cpu_and_says_why_backends_are_absent() {
    let listed = json(&bimetal(&["devices", "--json"]));
    assert_eq!(listed["devices"][0]["device"], "cpu");
    assert!(!listed["devices"][0]["levels"].as_array().unwrap().is_empty());
    for absent in listed["absent"].as_array().unwrap() {
        assert!(!absent["reason"].as_str().unwrap().is_empty());
    }
}

#[test]
fn check_passes_on_one_operation_and_counts() {
    let output = bimetal(&["check", "softmax", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_string();
    assert!(last.ends_with("0 skipped") && last.contains(" passed, 0 failed, ") && !last.starts_with("0 "), "{last}");
    let rows = json(&bimetal(&["check", "softmax", "--device", "cpu", "--level", "scalar", "--json"]));
    let rows = rows.as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|r| r["target"] == "cpu/scalar" && r["outcome"] == "passed"));
}

#[test]
fn unknown_names_are_refused_with_help() {
    let output = bimetal(&["check", "sofmax"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("softmax"), "{}", text(&output));
    let output = bimetal(&["bench", "softmax", "--device", "cuda:99"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("cpu"), "{}", text(&output));
    let output = bimetal(&["bench", "softmax", "--shape", "12y"]);
    assert!(!output.status.success() && text(&output).contains("4096x4096"), "{}", text(&output));
    let output = bimetal(&["bench", "softmax", "--against", "matlab"]);
    assert!(!output.status.success() && text(&output).contains("torch"), "{}", text(&output));
}

#[test]
fn a_quick_bench_writes_three_files_with_every_field() {
    let out = folder("quick");
    let path = out.to_str().unwrap();
    let output = bimetal(&["bench", "--quick", "softmax", "--device", "cpu", "--out", path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for name in ["report.md", "report.html"] {
        assert!(std::fs::read_to_string(out.join(name)).unwrap().contains("softmax"), "{name}");
    }
    let rows = rows(&out);
    assert!(!rows.is_empty());
    for row in rows {
        for field in ["op", "domain", "case", "dtype", "device"] {
            assert!(row[field].is_string(), "{field}: {row}");
        }
        for field in ["median_s", "min_s", "gbs", "gflops", "roofline", "error", "tolerance"] {
            assert!(row[field].as_f64().is_some_and(|x| x >= 0.0), "{field}: {row}");
        }
        assert_eq!(row["ok"], true);
        assert!(row["peers"].is_object());
        assert!(row["min_s"].as_f64() <= row["median_s"].as_f64());
        assert!(row["median_s"].as_f64().unwrap() < 10.0);
    }
    std::fs::remove_dir_all(&out).unwrap();
}

#[test]
fn a_shape_of_ones_own_is_timed() {
    let out = folder("shape");
    let arguments = ["bench", "softmax", "--device", "cpu", "--shape", "33x77", "--dtype", "bf16", "--quick", "--out"];
    let output = bimetal(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let rows = rows(&out);
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0]["dtype"].as_str(), rows[0]["elements"].as_u64()), (Some("bf16"), Some(33 * 77)));
    std::fs::remove_dir_all(&out).unwrap();
}

#[test]
fn a_peer_that_cannot_be_had_is_named_and_the_run_goes_on() {
    let out = folder("peer");
    let path = out.to_str().unwrap();
    let arguments = ["bench", "--quick", "softmax", "--device", "cpu", "--against", "torch", "--out", path];
    let output = command(&arguments).env("BIMETAL_PYTHON", "/nonexistent/python").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("no comparison with torch"), "{}", text(&output));
    assert!(rows(&out).iter().all(|row| row["peers"].as_object().unwrap().is_empty()));
    std::fs::remove_dir_all(&out).unwrap();
}

#[cfg(unix)]
#[test]
fn an_interrupted_bench_leaves_a_valid_partial_report() {
    let out = folder("interrupted");
    let mut child = command(&["bench", "--device", "cpu", "--out", out.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The first report is written before the first row.
    let start = std::time::Instant::now();
    while !out.join("report.html").exists() && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = rows(&out);
    assert!(done.iter().all(|row| row["ok"] == true));
    assert!(std::fs::read_to_string(out.join("report.md")).unwrap().contains("partial report"));
    std::fs::remove_dir_all(&out).unwrap();
}

#[test]
fn calibration_is_kept_and_damage_is_measured_again() {
    let cache = folder("cache");
    std::fs::create_dir_all(&cache).unwrap();
    let file = cache.join("calibration.json");
    std::fs::write(&file, "{\"version\": 1, \"devices\": [{").unwrap();
    let run = |args: &[&str]| command(args).env("BIMETAL_CACHE_DIR", &cache).output().unwrap();
    let output = run(&["calibrate", "--device", "cpu", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let measured = json(&output);
    assert_eq!(measured[0]["device"], "cpu");
    assert!(measured[0]["rates"]["launch_s"].as_f64().unwrap() < 1.0);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(kept["devices"], measured);
    let route = json(&run(&["route", "softmax", "512x1024", "--json"]));
    assert!(route["device"].is_string() && !route["why"].as_str().unwrap().is_empty());
    assert_eq!(route["bytes_in"], 512 * 1024 * 4);
    let output = run(&["route", "sofmax", "3"]);
    assert!(!output.status.success() && text(&output).contains("softmax"));
    std::fs::remove_dir_all(&cache).unwrap();
}
