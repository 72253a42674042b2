//! Programs that are not ours, as `scripts/test` installs them.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The program under test.
pub(crate) const HOOKLATCH: &str = env!("CARGO_BIN_EXE_hooklatch");

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `scripts/test` puts the Python and Node packages: beside the profile folder that holds the program.
fn installed(path: &str) -> PathBuf {
    let target = Path::new(HOOKLATCH).ancestors().nth(2).expect("the program stands in target/PROFILE/");
    let found = target.join("test-tools").join(path);
    assert!(found.exists(), "{} is missing: run `scripts/test --install` once", found.display());
    found
}

/// A program on the search path, with a hint where it is missing.
pub(crate) fn program(name: &str) -> Command {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&paths).any(|dir| dir.join(name).is_file());
    assert!(there, "`{name}` is missing: run `scripts/test --install` once");
    Command::new(name)
}

/// Python with the packages of `tests/python/requirements.txt`.
pub(crate) fn python(script: &str) -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    command.args(["-c", script]);
    command
}

/// A script of `tests/node/`, with the packages of `tests/node/package.json`.
pub(crate) fn node(script: &str) -> Command {
    let mut command = program("node");
    command.arg(root().join("tests/node").join(script)).env("HOOKLATCH_NODE_MODULES", installed("node/node_modules"));
    command
}

/// The program under test, with arguments.
pub(crate) fn hooklatch<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Command {
    let mut command = Command::new(HOOKLATCH);
    command.args(args).env_remove("HOOKLATCH_CONFIG");
    command
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::thread::scope(|scope| {
        // A program may end without reading its input.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("the output can be read")
    })
}

/// Runs a command that has to succeed; its standard output.
pub(crate) fn output(command: &mut Command, input: &[u8]) -> String {
    let out = run(command, input);
    assert!(out.status.success(), "{command:?}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// The same off the runtime's threads, for programs that talk to a receiver of this process.
pub(crate) async fn background(mut command: Command, input: Vec<u8>) -> Output {
    tokio::task::spawn_blocking(move || run(&mut command, &input)).await.expect("the command's thread does not panic")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
