//! `cargo xtask dist lib`: the C library with all that a program needs to build against it, in a folder that can be moved.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use files::{Error, Result};
use serde_json::Value;

use crate::licences::cargo;

/// The package of the C API.
const PACKAGE: &str = "tidemill-capi";

/// A library that is built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The shared one.
    pub shared: PathBuf,
    /// The static one, where there is one.
    pub static_: Option<PathBuf>,
    /// What programs with the static one link besides, as `-lm -lc`.
    pub static_needs: String,
}

/// Builds the library in release mode and fills `out`; the files in it.
///
/// # Errors
/// `Io` naming a file, `InvalidRequest` when cargo or the compiler fails.
pub fn lib(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let built = build(root)?;
    install(root, &built, out)?;
    licences(root, out)?;
    let mut all = Vec::new();
    list(out, &mut all)?;
    all.sort();
    Ok(all)
}

/// Builds both libraries; the shared one without its symbols.
fn build(root: &Path) -> Result<Built> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["rustc", "--release", "--locked", "--lib", "-p", PACKAGE]);
    command.args(["--crate-type", "cdylib", "--crate-type", "staticlib"]);
    command.args(["--", "-C", "strip=symbols", "--print", "native-static-libs"]);
    let said = run_shown(command.current_dir(root))?;
    let needs = said.iter().rev().find_map(|line| line.split_once("native-static-libs: "));
    let (_, needs) =
        needs.ok_or_else(|| Error::corrupt("cargo rustc has not said what the static library needs"))?;
    let folder = target.join("release");
    Ok(Built {
        shared: folder.join("libtidemill.so"),
        static_: Some(folder.join("libtidemill.a")),
        static_needs: needs.trim().into(),
    })
}

/// Runs what takes minutes, and shows what it says on stderr while it does; the lines of that.
fn run_shown(command: &mut Command) -> Result<Vec<String>> {
    let io = |command: &Command, e| Error::io(format!("{command:?}"), e);
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(|e| io(command, e))?;
    let mut lines = Vec::new();
    for line in child.stderr.take().into_iter().flat_map(|said| BufReader::new(said).lines()) {
        let line = line.map_err(|e| io(command, e))?;
        eprintln!("{line}");
        lines.push(line);
    }
    match child.wait().map_err(|e| io(command, e))? {
        status if status.success() => Ok(lines),
        status => Err(Error::invalid(format!("{command:?}: {status}"))),
    }
}

/// Puts headers, libraries and what build systems look for into `out`. All paths in it are relative to it.
///
/// # Errors
/// `Io` naming a file.
pub fn install(root: &Path, built: &Built, out: &Path) -> Result<()> {
    let abi = abi_version(root)?;
    let include = root.join("crates/capi/include");
    for name in ["tidemill.h", "tidemill.hpp", "module.modulemap"] {
        copy(&include.join(name), &out.join("include").join(name))?;
    }
    let shared = format!("libtidemill.so.{abi}");
    copy(&built.shared, &out.join("lib").join(&shared))?;
    link(&shared, &out.join("lib/libtidemill.so"))?;
    if let Some(from) = &built.static_ {
        copy(from, &out.join("lib/libtidemill.a"))?;
    }
    let version = env!("CARGO_PKG_VERSION");
    put(&out.join("lib/pkgconfig/tidemill.pc"), &pkgconfig(version, &built.static_needs))?;
    let cmake = out.join("lib/cmake/tidemill");
    put(&cmake.join("tidemillConfig.cmake"), &cmake_config(&shared, &built.static_needs))?;
    put(&cmake.join("tidemillConfigVersion.cmake"), &cmake_version(version))
}

/// `TIDEMILL_ABI_VERSION` of the header.
fn abi_version(root: &Path) -> Result<u32> {
    let path = crate::header::path(root);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(path.display(), e))?;
    let found = text.lines().find_map(|line| line.strip_prefix("#define TIDEMILL_ABI_VERSION "));
    found
        .and_then(|version| version.trim().parse().ok())
        .ok_or_else(|| Error::corrupt(format!("{}: no TIDEMILL_ABI_VERSION", path.display())))
}

fn pkgconfig(version: &str, static_needs: &str) -> String {
    format!(
        "prefix=${{pcfiledir}}/../..\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
         Name: tidemill\nDescription: Runs Mixture-of-Experts language models larger than memory\nVersion: {version}\n\
         # A program that holds another Rust static library may not link with the static one: both bring Rust's own.\n\
         Cflags: -I${{includedir}}\nLibs: -L${{libdir}} -ltidemill\nLibs.private: {static_needs}\n"
    )
}

fn cmake_config(shared: &str, static_needs: &str) -> String {
    let needs: Vec<&str> = static_needs.split_whitespace().collect();
    format!(
        r#"get_filename_component(tidemill_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
if(NOT TARGET tidemill::tidemill)
    add_library(tidemill::tidemill SHARED IMPORTED)
    set_target_properties(tidemill::tidemill PROPERTIES
        IMPORTED_LOCATION "${{tidemill_prefix}}/lib/{shared}"
        IMPORTED_SONAME "{shared}"
        INTERFACE_INCLUDE_DIRECTORIES "${{tidemill_prefix}}/include")
endif()
if(NOT TARGET tidemill::static AND EXISTS "${{tidemill_prefix}}/lib/libtidemill.a")
    add_library(tidemill::static STATIC IMPORTED)
    set_target_properties(tidemill::static PROPERTIES
        IMPORTED_LOCATION "${{tidemill_prefix}}/lib/libtidemill.a"
        INTERFACE_LINK_LIBRARIES "{}"
        INTERFACE_INCLUDE_DIRECTORIES "${{tidemill_prefix}}/include")
endif()
"#,
        needs.join(";")
    )
}

/// Within the first number what a program needs is only added to.
fn cmake_version(version: &str) -> String {
    let major = version.split('.').next().unwrap_or(version);
    format!(
        r#"set(PACKAGE_VERSION "{version}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION OR NOT PACKAGE_FIND_VERSION_MAJOR MATCHES "^({major})?$")
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
    if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
        set(PACKAGE_VERSION_EXACT TRUE)
    endif()
endif()
"#
    )
}

/// Our licences, and those of all packages that are in the library, with their texts.
fn licences(root: &Path, out: &Path) -> Result<()> {
    let folder = out.join("share/licenses/tidemill");
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        copy(&root.join(name), &folder.join(name))?;
    }
    let tree =
        ["tree", "--locked", "-p", PACKAGE, "-e", "normal", "--prefix", "none", "--format", "{p}\t{l}"];
    let tree = cargo(root, &tree)?;
    let metadata = cargo(root, &["metadata", "--locked", "--format-version", "1"])?;
    put(&folder.join("THIRD-PARTY.txt"), &third_party(&String::from_utf8_lossy(&tree), &metadata)?)
}

/// A line and the licence texts of each package in `tree`, as `name vVERSION (...)` and its licence.
fn third_party(tree: &str, metadata: &[u8]) -> Result<String> {
    let bad = || Error::corrupt("cargo metadata: not the documented shape");
    let metadata: Value = serde_json::from_slice(metadata).map_err(|e| bad().with_source(e))?;
    let mut folders = BTreeMap::new();
    for package in metadata["packages"].as_array().ok_or_else(bad)? {
        let text = |key: &str| package[key].as_str().ok_or_else(bad);
        let folder = Path::new(text("manifest_path")?).parent().ok_or_else(bad)?.to_path_buf();
        folders.insert(format!("{} v{}", text("name")?, text("version")?), folder);
    }
    let mut packages = BTreeMap::new();
    for (package, licence) in tree.lines().filter_map(|line| line.split_once('\t')) {
        let name: Vec<&str> = package.split_whitespace().take(2).collect();
        if !name[0].starts_with("tidemill") {
            packages.insert(name.join(" "), licence.to_owned());
        }
    }
    let mut text = String::from("The library holds these packages, under these licences.\n");
    for (package, licence) in packages {
        text += &format!("\n================ {package}: {licence}\n");
        let is_licence = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|start| name.starts_with(start))
                && file.is_file()
        };
        let entries =
            folders.get(&package).and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_licence).collect();
        files.sort();
        for file in files {
            let bytes = fs::read(&file).map_err(|e| Error::io(file.display(), e))?;
            text += &format!("\n{}\n", String::from_utf8_lossy(&bytes).trim_end());
        }
    }
    Ok(text)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    let _ = fs::remove_file(to); // a link or an older one
    fs::copy(from, to).map(drop).map_err(|e| Error::io(from.display(), e))
}

fn put(to: &Path, text: &str) -> Result<()> {
    make_folder(to)?;
    fs::write(to, text).map_err(|e| Error::io(to.display(), e))
}

#[cfg(unix)]
fn link(to: &str, at: &Path) -> Result<()> {
    let _ = fs::remove_file(at); // an older one
    std::os::unix::fs::symlink(to, at).map_err(|e| Error::io(at.display(), e))
}

#[cfg(not(unix))]
fn link(_: &str, at: &Path) -> Result<()> {
    Err(Error::unsupported(format!("{}: packages are made on Linux and macOS", at.display())))
}

fn make_folder(file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).map_err(|e| Error::io(folder.display(), e))
}

/// All files below `folder`.
fn list(folder: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    let io = |e| Error::io(folder.display(), e);
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_their_licences_and_ours_are_left_out() {
        let folder = std::env::temp_dir().join(format!("tidemill-dist-{}", std::process::id()));
        put(&folder.join("LICENSE-MIT"), "Permission is granted\n").unwrap();
        put(&folder.join("src/LICENSE"), "of another").unwrap();
        let manifest = folder.join("Cargo.toml");
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "version": "1.0.0", "manifest_path": manifest},
        ]});
        let tree = "tidemill-capi v0.1.0 (/x)\tMIT\na v1.0.0\tMIT\na v1.0.0\tMIT\n";
        let text = third_party(tree, metadata.to_string().as_bytes()).unwrap();
        assert_eq!(text.matches("a v1.0.0: MIT").count(), 1, "{text}");
        assert!(text.contains("Permission is granted") && !text.contains("of another"), "{text}");
        assert!(!text.contains("tidemill-capi"), "{text}");
        fs::remove_dir_all(folder).unwrap();
    }
}
