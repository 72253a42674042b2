//! The README's walk, typed as written.
//!
//! Blocks fenced as `console` hold commands after `$ ` and, below each, lines of what it prints; `…` stands for anything. One shell
//! runs them all in a clean copy of the repository. The first command of all starts the gate, as a newcomer's first terminal
//! does, and goes on running. `cargo run` is answered by the program that was built for these tests.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::tools;

#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line.trim_end() {
            "```console" => inside = true,
            "```" => inside = false,
            line if inside => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), ..Step::default() }),
                // A command that goes on: a line end after a backslash, or a here-document.
                (None, Some(step)) if step.command.ends_with('\\') || open_document(&step.command) => {
                    step.command.push('\n');
                    step.command.push_str(line);
                }
                (None, Some(step)) => step.expected.push(line.to_owned()),
                (None, None) => panic!("output before any command: {line}"),
            },
            _ => {}
        }
    }
    steps
}

/// Whether a here-document was begun with `<<WORD` or `<<'WORD'` and its last line is not yet the word.
fn open_document(command: &str) -> bool {
    let Some((_, word)) = command.lines().next().and_then(|line| line.split_once("<<")) else { return false };
    let word = word.split_whitespace().next().unwrap_or("").trim_matches(['\'', '"', '-']);
    command.lines().skip(1).last() != Some(word)
}

fn fits(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    let mut parts = pattern.split('…').peekable();
    let mut first = true;
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        if first && !rest.starts_with(part) || last && !rest.ends_with(part) {
            return false;
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        first = false;
    }
    true
}

fn copy_of_the_repository(to: &Path) {
    let archive =
        Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(tools::root()).output().expect("git starts");
    assert!(archive.status.success(), "{}", tools::text(&archive.stderr));
    for name in archive.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = tools::text(name);
        let (from, to) = (tools::root().join(&name), to.join(&name));
        if from.is_file() {
            std::fs::create_dir_all(to.parent().expect("a file stands in a folder")).expect("the folder is ours");
            std::fs::copy(from, to).expect("the folder is ours");
        }
    }
}

#[test]
fn the_five_minute_walk_works_as_written() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let repository = dir.path().join("hooklatch");
    copy_of_the_repository(&repository);
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).expect("the folder is ours");
    // `cargo run --release [-- ARGS]` and `target/release/hooklatch ARGS` are the program at hand.
    std::fs::write(
        bin.join("cargo"),
        format!(
            "#!/bin/sh\n[ \"$1\" = build ] && exit\nwhile [ $# -gt 0 ]; do case $1 in --) shift; break;; *) shift;; esac; done\nexec '{}' \"$@\"\n",
            tools::HOOKLATCH
        ),
    )
    .expect("the folder is ours");
    std::fs::set_permissions(bin.join("cargo"), std::fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    std::fs::create_dir_all(repository.join("target/release")).expect("the folder is ours");
    std::os::unix::fs::symlink(tools::HOOKLATCH, repository.join("target/release/hooklatch")).expect("the folder is ours");
    std::os::unix::fs::symlink(tools::HOOKLATCH, bin.join("hooklatch")).expect("the folder is ours");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());

    let readme = std::fs::read_to_string(repository.join("README.md")).expect("there is a README");
    let mut steps = steps(&readme)
        .into_iter()
        .filter(|step| !step.command.starts_with("git clone") && !step.command.starts_with("cd hooklatch") && step.command != "scripts/test");
    let start = steps.next().expect("the README has a walk");

    let shell = |command: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", command]).current_dir(&repository).env("PATH", &path).env("HOME", dir.path());
        shell.env_remove("HOOKLATCH_CONFIG").env_remove("STATE_DIRECTORY").stdin(Stdio::null());
        shell
    };
    // `exec`, so that the process is the gate's own.
    let log = dir.path().join("log");
    let printed = std::fs::File::create(&log).expect("the folder is ours");
    let errors = printed.try_clone().expect("a file can be shared");
    let mut gate = shell(&format!("exec {}", start.command)).stdout(printed).stderr(errors).spawn().expect("bash starts");
    let walked = walk(&steps.collect::<Vec<_>>(), &shell, dir.path(), &log);
    let _ = gate.kill();
    let _ = gate.wait();
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    if let Err(failure) = walked {
        panic!("{failure}\n--- the gate\n{log}");
    }
}

/// Types the steps into one shell, so that variables and folders last, and compares what they print.
fn walk(steps: &[Step], shell: &dyn Fn(&str) -> Command, dir: &Path, log: &Path) -> Result<(), String> {
    const MARK: &str = "--8<-- ";
    // What a reader sees in the other terminal before typing on: that the gate listens, that it loaded the policy again.
    let log = log.display();
    let seen = |what: &str, times: usize| format!("for _ in $(seq 600); do [ $(grep -c '{what}' '{log}') -lt {times} ] && sleep 0.05 || break; done\n");
    // As in the shell a newcomer types into.
    let mut script = format!("shopt -s expand_aliases\n{}", seen("listening", 1));
    for (n, step) in steps.iter().enumerate() {
        script.push_str(&step.command);
        script.push('\n');
        if step.command.starts_with("sed -i") {
            script.push_str(&seen("policy loaded", 2));
        }
        script.push_str(&format!("printf '\\n%s\\n' '{MARK}{n}'\n"));
    }
    // The walk ends with what the inspector keeps of the last event: the filter was in the way.
    let api = "curl -s -H \"Authorization: Bearer $(cat var/admin.token)\" http://127.0.0.1:9900/api/v1/inspector/events";
    script.push_str(&format!("id=$({api} | grep -o '\"id\":\"[^\"]*' | cut -c7- | tail -1)\n{api}/$id\n"));
    let file = dir.join("walk.sh");
    std::fs::write(&file, script).expect("the folder is ours");
    let out = shell(&format!("exec 2>&1; . {}", file.display())).output().expect("bash starts");
    let all = tools::text(&out.stdout);
    let mut rest = all.as_str();
    for (n, step) in steps.iter().enumerate() {
        let Some((said, after)) = rest.split_once(&format!("{MARK}{n}\n")) else {
            return Err(format!("the walk stopped at `{}`:\n{all}", step.command));
        };
        rest = after;
        let mut lines = said.lines();
        let missing = step.expected.iter().find(|line| !line.trim().is_empty() && line.trim() != "…" && !lines.any(|said| fits(line.trim(), said.trim())));
        if let Some(line) = missing {
            return Err(format!("`{}` does not print `{line}`, but\n{said}", step.command));
        }
    }
    if rest.contains("[redacted]") { Ok(()) } else { Err(format!("the last event was not redacted: {rest}")) }
}

#[test]
fn patterns_fit_as_the_readme_uses_them() {
    for (pattern, line, wanted) in
        [("a … c", "a b c", true), ("… 401 …", "HTTP 401 no", true), ("a…", "b", false), ("a…b", "ab", true), ("x", "xy", false), ("…y", "xy", true)]
    {
        assert_eq!(fits(pattern, line), wanted, "{pattern} and {line}");
    }
}
