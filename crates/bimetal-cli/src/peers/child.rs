//! The Python child: requests and answers are one JSON line each, tensors are raw files in a folder of its own.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const SCRIPT: &str = include_str!("peer.py");

pub struct Child {
    process: std::process::Child,
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    folder: PathBuf,
    ended: bool,
}

impl Child {
    /// Starts `$BIMETAL_PYTHON` or `python3` with the script; its libraries use `threads` threads.
    ///
    /// # Errors
    /// An interpreter that cannot be started, in words.
    pub fn start(threads: usize) -> Result<Self, String> {
        let python = std::env::var_os("BIMETAL_PYTHON").filter(|v| !v.is_empty()).unwrap_or_else(|| "python3".into());
        let folder = folder()?;
        let threads = threads.to_string();
        let mut process = Command::new(&python)
            .arg("-c")
            .arg(SCRIPT)
            .arg(&folder)
            .envs(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"].map(|name| (name, &threads)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| {
                let _ = std::fs::remove_dir_all(&folder);
                format!("{} cannot be started ({e}); set BIMETAL_PYTHON to an interpreter", python.to_string_lossy())
            })?;
        let requests = process.stdin.take();
        let (sender, answers) = channel();
        if let Some(out) = process.stdout.take() {
            std::thread::spawn(move || {
                let lines = BufReader::new(out).lines().map_while(Result::ok);
                lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
            });
        }
        Ok(Self { process, requests, answers, folder, ended: false })
    }

    /// Where inputs and outputs are exchanged.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it has stopped answering.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the child reports, or that it no longer answers.
    pub fn ask(&mut self, request: &Value, patience: Duration) -> Result<Value, String> {
        let line = format!("{request}\n");
        let sent = self.requests.as_mut().map(|pipe| pipe.write_all(line.as_bytes()).and_then(|()| pipe.flush()));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.end("the Python child has ended"));
        }
        let Ok(line) = self.answers.recv_timeout(patience) else {
            return Err(self.end("the Python child has ended or does not answer"));
        };
        let answer: Value = serde_json::from_str(&line).map_err(|e| self.end(&format!("unreadable answer: {e}")))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }

    fn end(&mut self, why: &str) -> String {
        self.ended = true;
        let _ = self.process.kill();
        why.to_string()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pipe) = &mut self.requests {
            let _ = writeln!(pipe, "{}", json!({"do": "end"}));
        }
        // A closed pipe ends the child even if the request did not reach it.
        self.requests = None;
        if self.ended || self.answers.recv_timeout(Duration::from_secs(2)).is_ok() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A new folder, in memory where the system has such a place.
fn folder() -> Result<PathBuf, String> {
    let shared = Path::new("/dev/shm");
    let base = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let folder = base.join(format!("bimetal-peers-{}-{stamp}", std::process::id()));
    std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}
