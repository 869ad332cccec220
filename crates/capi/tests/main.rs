//! The C API, as C and C++ programs use it: each is compiled against the header and linked with the library. On Linux, where the
//! library is a `.so`.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Strict enough for whoever embeds the header.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn own() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    own().join("../../models/demo")
}

/// Where the library is: beside this program.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let program = std::env::current_exe().expect("this program");
        let folder = program.parent().expect("target/debug/deps").to_path_buf();
        assert!(folder.join("libtidemill.so").exists(), "{}: no libtidemill.so", folder.display());
        // Programs ask for the name that it gives itself.
        let linked = folder.join("capi-tests");
        std::fs::create_dir_all(&linked).expect("a folder");
        for name in ["libtidemill.so", "libtidemill.so.1"] {
            let _ = std::fs::remove_file(linked.join(name));
            std::os::unix::fs::symlink(folder.join("libtidemill.so"), linked.join(name)).expect("a link");
        }
        linked
    })
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Compiles a program; C is C99 and C++ is C++17.
fn compile(source: &str, folder: &Path) -> PathBuf {
    let is_cpp = source.ends_with(".cpp");
    let (compiler, standard) = if is_cpp { ("c++", "-std=c++17") } else { ("cc", "-std=c99") };
    let program = folder.join(Path::new(source).file_stem().expect("a name"));
    let mut command = Command::new(compiler);
    command.args([standard, "-D_POSIX_C_SOURCE=200809L", "-g", "-pthread"]).args(STRICT);
    command.arg("-I").arg(own().join("include")).arg(own().join(source)).arg("-o").arg(&program);
    command.arg("-L").arg(library()).args(["-ltidemill", "-lm"]);
    command.arg(format!("-Wl,-rpath,{}", library().display()));
    let compiled = run(&mut command);
    assert!(compiled.status.success(), "{source}: {}", text(&compiled));
    program
}

/// Compiles and runs a test program, which says nothing where all is well.
fn check(source: &str, more: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile(&format!("tests/c/{source}"), folder.path());
    let output = run(Command::new(program).arg(model()).arg(folder.path()).args(more));
    assert!(output.status.success(), "{source}: {} {}", output.status, text(&output));
    assert_eq!(text(&output), "", "{source} or the library has printed something");
}

#[test]
fn every_function_does_what_the_header_says() {
    check("all.c", &[]);
}

#[test]
fn bad_input_is_refused_by_name() {
    check("bad.c", &[]);
}

#[test]
fn callbacks_never_hang_and_answers_stay_in_their_session() {
    check("callbacks.c", &[]);
}

#[test]
fn threads_forks_and_cancelling_keep_the_rules() {
    check("threads.c", &["10"]);
}

#[test]
#[ignore = "a minute; `cargo xtask soak cases` runs it"]
fn two_sessions_give_the_tokens_of_one_a_hundred_times() {
    check("threads.c", &["100"]);
}

#[test]
fn handles_come_and_go_in_any_order() {
    check("storm.c", &["8", "3", "1"]);
}

#[test]
#[ignore = "a minute; `cargo xtask soak cases` runs it"]
fn handles_come_and_go_in_any_order_for_a_minute() {
    check("storm.c", &["64", "60", "7"]);
}

#[test]
fn the_cpp_wrapper_owns_throws_and_moves() {
    check("wrapper.cpp", &[]);
}

#[test]
fn the_header_is_c99_and_cpp11() {
    let folder = tempfile::tempdir().expect("a folder");
    for (compiler, standard, source) in
        [("cc", "-std=c99", "header_c.c"), ("c++", "-std=c++11", "header_cpp.cpp")]
    {
        let mut command = Command::new(compiler);
        command.args([standard, "-c"]).args(STRICT).arg("-I").arg(own().join("include"));
        command.arg(own().join("tests/c").join(source)).arg("-o").arg(folder.path().join("out.o"));
        let output = run(&mut command);
        assert!(output.status.success(), "{source}: {}", text(&output));
    }
}

#[test]
fn the_examples_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    for source in ["examples/chat.c", "examples/chat.cpp"] {
        answers(compile(source, folder.path()));
    }
    // It is measured by hand.
    compile("tests/c/speed.c", folder.path());
    let program = compile("examples/tokens.c", folder.path());
    let output = run(Command::new(program).arg("--ids").arg(model()).arg("Once upon a time"));
    assert!(output.status.success() && output.stdout.len() > 20, "tokens.c: {}", text(&output));
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The first of `programs` that is there; where none is, a line says what is skipped, and in CI that is a failure.
fn find<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let found = programs.iter().copied().find(|program| is_there(program));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no {}", programs[0]);
        eprintln!("SKIP: no {}", programs[0]);
    }
    found
}

fn has(program: &str) -> bool {
    find(&[program]).is_some()
}

/// What `cargo xtask dist lib` makes of a library.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = library().join("libtidemill.so");
    let built = xtask::dist::Built { shared, static_: None, static_needs: "-lm".into() };
    xtask::dist::install(&own().join("../.."), &built, folder.path()).expect("installs");
    folder
}

fn copy_examples(to: &Path) {
    for entry in std::fs::read_dir(own().join("examples")).expect("the examples") {
        let path = entry.expect("is there").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copies");
    }
}

fn answers(program: PathBuf) {
    let output = run(Command::new(&program).arg(model()).arg("Tell me a story about a brave hedgehog"));
    assert!(output.status.success() && output.stdout.len() > 50, "{program:?}: {}", text(&output));
}

#[test]
fn programs_find_what_is_installed_with_pkg_config() {
    if !has("pkg-config") || !has("make") {
        return;
    }
    let (installed, folder) = (installed(), tempfile::tempdir().expect("a folder"));
    copy_examples(folder.path());
    let pkgconfig = installed.path().join("lib/pkgconfig");
    let made = run(Command::new("make")
        .current_dir(folder.path())
        .arg(format!("PKG_CONFIG_PATH={}", pkgconfig.display()))
        .args(["chat", "chat_cpp"]));
    assert!(made.status.success(), "{}", text(&made));
    answers(folder.path().join("chat"));
    answers(folder.path().join("chat_cpp"));
}

#[test]
fn programs_find_what_is_installed_with_cmake() {
    if !has("cmake") {
        return;
    }
    let (installed, folder) = (installed(), tempfile::tempdir().expect("a folder"));
    copy_examples(folder.path());
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", installed.path().display());
    let cmake = |args: &[&str]| {
        let output = run(Command::new("cmake").current_dir(folder.path()).args(args));
        assert!(output.status.success(), "{}", text(&output));
    };
    cmake(&["-S", ".", "-B", "build", &prefix]);
    cmake(&["--build", "build"]);
    answers(folder.path().join("build/chat"));
}

#[test]
fn clang_reads_the_module_map() {
    let Some(clang) = find(&["clang", "clang-16"]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("uses.c");
    std::fs::write(&source, "#include <tidemill.h>\nint abi(void) { return (int)tidemill_abi_version(); }\n")
        .expect("writable");
    let mut command = Command::new(clang);
    command.args(["-fsyntax-only", "-fmodules", "-fimplicit-module-maps", "-Rmodule-import"]);
    command.arg(format!("-fmodules-cache-path={}", folder.path().display()));
    let output = run(command.arg("-I").arg(own().join("include")).arg(source));
    // It says that it took the module, and not the text of the header.
    assert!(output.status.success() && text(&output).contains("importing module"), "{}", text(&output));
}

#[test]
fn a_page_of_ctypes_is_enough_for_python() {
    if !has("python3") {
        return;
    }
    let library = library().join("libtidemill.so.1");
    let page = own().join("tests/c/ctypes_page.py");
    let output = run(Command::new("python3").arg(page).arg(library).arg(model()));
    assert!(output.status.success() && text(&output).trim() == "ok", "{}", text(&output));
}

#[test]
fn only_its_own_names_are_exported_under_its_own_name() {
    let library = library().join("libtidemill.so.1");
    let names = exported(&library);
    assert!(names.iter().any(|name| name == "tidemill_generate"));
    assert!(names.iter().all(|name| name.starts_with("tidemill_")), "{names:?}");
    let output = text(&run(Command::new("readelf").arg("-d").arg(&library)));
    assert!(output.contains("libtidemill.so.1"), "{output}");
    for needed in output.lines().filter(|line| line.contains("(NEEDED)")) {
        let known = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
        assert!(known.iter().any(|name| needed.contains(name)), "{needed}");
    }
}

/// A C library that has what the header declares and does nothing: it has the types that a Rust library does not tell.
fn stubs(header: &str, folder: &Path) -> PathBuf {
    let declared = header.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
    let (types, functions) = declared.split_once("extern \"C\" {\n#endif").expect("the functions");
    let functions = functions.split("#ifdef __cplusplus").next().expect("the functions");
    let define = |declaration: &str| match declaration.trim() {
        void if void.starts_with("void tidemill_") => format!("{void} {{}}\n"),
        function if function.contains("tidemill_") => format!("{function} {{ return 0; }}\n"),
        other => other.to_owned(),
    };
    let functions: String = functions.trim_start_matches(" // __cplusplus").split(';').map(define).collect();
    let types = types.rsplit_once("#ifdef __cplusplus").expect("before the functions").0;
    let (source, library) = (folder.join("stubs.c"), folder.join("libtidemill.so.1"));
    std::fs::write(&source, format!("{types}\n{functions}\n#endif\n")).expect("writable");
    let flags = ["-std=c99", "-g", "-w", "-shared", "-fPIC", "-Wl,-soname,libtidemill.so.1"];
    let output = run(Command::new("cc").args(flags).arg(source).arg("-o").arg(&library));
    assert!(output.status.success(), "{}", text(&output));
    library
}

fn exported(library: &Path) -> Vec<String> {
    let names = text(&run(Command::new("nm").args(["-D", "--defined-only"]).arg(library)));
    let mut names: Vec<String> =
        names.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    names.sort();
    names
}

/// Within an ABI things are only added: compared with what was published, types of arguments too.
#[test]
fn the_abi_is_the_published_one_or_more() {
    if !has("abidiff") {
        return;
    }
    let header = std::fs::read_to_string(own().join("include/tidemill.h")).expect("the header");
    // It stays, so that `abidw --no-corpus-path --no-comp-dir-path --no-show-locs` can publish another ABI.
    let (folder, other) = (Path::new(env!("CARGO_TARGET_TMPDIR")), tempfile::tempdir().expect("a folder"));
    let now = stubs(&header, folder);
    assert_eq!(
        exported(&now),
        exported(&library().join("libtidemill.so.1")),
        "the header is not the library"
    );
    let published = own().join("abi/1.abi");
    let against =
        |library: &Path| run(Command::new("abidiff").arg("--no-added-syms").arg(&published).arg(library));
    let output = against(&now);
    assert!(output.status.success(), "{}", text(&output));
    let changed = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}");
        against(&stubs(&header.replace(from, to), other.path()))
    };
    let without = changed("void tidemill_string_free(char *text);", "");
    assert!(
        !without.status.success() && text(&without).contains("tidemill_string_free"),
        "{}",
        text(&without)
    );
    let wider = changed("size_t length, char **error);", "uint32_t length, char **error);");
    assert!(!wider.status.success(), "another type of an argument passed");
}
