//! Finds NVIDIA's libraries and headers: toolkits, the loader's own paths, and the folders of the nvidia-* Python packages.

use libloading::Library;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders that may hold a CUDA toolkit or the parts of one, most explicit first.
fn roots() -> &'static [PathBuf] {
    static ROOTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"]
            .iter()
            .filter_map(std::env::var_os)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .collect();
        roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
        roots.extend(children(Path::new("/usr/local")).into_iter().filter(|p| named(p, "cuda-")));
        roots.extend(children(Path::new("C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA")));
        roots.extend(python_packages());
        roots.push(PathBuf::from("/usr"));
        roots.retain(|root| root.is_dir());
        roots
    })
}

/// The folders `nvidia/<package>` of every site-packages folder in sight.
fn python_packages() -> Vec<PathBuf> {
    let mut libs = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = std::env::var_os(variable) {
            libs.push(Path::new(&prefix).join("lib"));
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        libs.push(Path::new(&home).join(".local/lib"));
    }
    libs.extend(["/usr/local/lib", "/usr/lib", "/opt/conda/lib"].map(PathBuf::from));
    // Interpreters on the search path may live under a prefix of their own.
    for bin in std::env::var_os("PATH").iter().flat_map(std::env::split_paths) {
        if bin.join("python3").exists()
            && let Some(prefix) = bin.parent()
        {
            libs.push(prefix.join("lib"));
        }
    }
    let mut found = Vec::new();
    for lib in libs {
        for python in children(&lib).into_iter().filter(|p| named(p, "python3")) {
            for packages in ["site-packages", "dist-packages"] {
                found.extend(children(&python.join(packages).join("nvidia")));
            }
        }
    }
    found
}

fn named(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

/// What a folder holds, newest version last in the name first.
fn children(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort_by(|a, b| b.cmp(a));
    entries
}

/// Loads the first of the files `stem.so.<version>` (or Windows' `stem64_<version>.dll`) that is found.
///
/// # Errors
/// The names and folders that were tried.
pub(crate) fn load(stem: &str, versions: &[&str]) -> Result<Library, String> {
    let mut names: Vec<String> = versions.iter().map(|v| format!("lib{stem}.so.{v}")).collect();
    names.push(format!("lib{stem}.so"));
    names.extend(versions.iter().flat_map(|v| [format!("{stem}64_{v}.dll"), format!("{stem}64_{v}0_0.dll")]));
    for root in roots() {
        for folder in ["lib64", "lib", "lib/x64", "bin", "targets/x86_64-linux/lib", "lib/x86_64-linux-gnu"] {
            for name in &names {
                let path = root.join(folder).join(name);
                if !path.exists() {
                    continue;
                }
                load_parts(&root.join(folder), stem);
                // SAFETY: the library is NVIDIA's own by its name and place; its initialisers are those of any CUDA program.
                if let Ok(library) = unsafe { Library::new(&path) } {
                    return Ok(library);
                }
            }
        }
    }
    for name in &names {
        // SAFETY: as above, found on the loader's own search path.
        if let Ok(library) = unsafe { Library::new(name) } {
            return Ok(library);
        }
    }
    Err(format!(
        "{} was not found in {} or on the loader's path (set CUDA_PATH to a toolkit, or install the nvidia Python packages)",
        names[0],
        list(roots())
    ))
}

/// Loads what a library would look for by name only, such as `libnvrtc-builtins`, from the library's own folder.
fn load_parts(folder: &Path, stem: &str) {
    for part in children(folder).into_iter().filter(|p| named(p, &format!("lib{stem}-builtins.so."))) {
        // SAFETY: as for the library itself. It stays loaded; one that does not load is told by the library's own error.
        if let Ok(library) = unsafe { Library::new(&part) } {
            std::mem::forget(library);
        }
    }
}

/// The folders to include from: the first that holds `cuda_fp16.h`, with CCCL's folder where it is apart.
///
/// # Errors
/// The folders that were looked at.
pub(crate) fn include_folders() -> Result<Vec<PathBuf>, String> {
    for root in roots() {
        for folder in ["include", "targets/x86_64-linux/include"] {
            let include = root.join(folder);
            if include.join("cuda_fp16.h").exists() {
                let mut folders = vec![include.clone()];
                folders.extend(Some(include.join("cccl")).filter(|p| p.is_dir()));
                folders.extend(sibling_headers(&include));
                return Ok(folders);
            }
        }
    }
    Err(format!(
        "the CUDA headers (cuda_fp16.h) were not found in {}: set CUDA_PATH to a toolkit, or install nvidia-cuda-runtime for Python",
        list(roots())
    ))
}

/// The Python packages keep the headers of each component in a folder of its own.
fn sibling_headers(include: &Path) -> Vec<PathBuf> {
    let Some(packages) = include.parent().and_then(Path::parent).filter(|p| named(p, "nvidia")) else {
        return Vec::new();
    };
    let all = children(packages).into_iter().map(|p| p.join("include"));
    all.filter(|p| p.is_dir() && p != include).collect()
}

fn list(folders: &[PathBuf]) -> String {
    let names: Vec<_> = folders.iter().map(|p| p.display().to_string()).collect();
    if names.is_empty() { "any known folder".into() } else { names.join(", ") }
}
