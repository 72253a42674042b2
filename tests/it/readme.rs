//! The README's walk, typed as written.
//!
//! Blocks fenced as `console` hold commands after `$ ` and, below each, lines of what it prints; `…` stands for anything. One shell
//! runs them all in a clean copy of the repository. The first command of all starts the gate, as a newcomer's first terminal
//! does, and goes on running. `cargo run` is answered by the program that was built for these tests.

use std::{
    io::{BufRead, BufReader, Write},
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
    let mut gate = shell(&format!("exec {} 2>&1", start.command)).stdout(Stdio::piped()).spawn().expect("bash starts");
    let mut printed = BufReader::new(gate.stdout.take().expect("stdout is piped")).lines();
    let mut log = String::new();
    // The gate prints what the README shows, then listens.
    let listening = printed.by_ref().map_while(Result::ok).any(|line| {
        log.push_str(&line);
        log.push('\n');
        line.contains("listening")
    });
    let rest = std::thread::spawn(move || printed.map_while(Result::ok).collect::<Vec<_>>().join("\n"));

    let mut failure = (!listening).then(|| format!("`{}` does not say that it listens", start.command));
    if listening {
        // All in one shell, so that variables and folders last; a mark parts the steps' output.
        const MARK: &str = "--8<-- ";
        // As in the shell a newcomer types into.
        let mut script = "shopt -s expand_aliases\n".to_owned();
        let steps: Vec<Step> = steps.collect();
        for (n, step) in steps.iter().enumerate() {
            script.push_str(&format!("{}\nprintf '%s\\n' '{MARK}{n}'\n", step.command));
        }
        let file = dir.path().join("walk.sh");
        std::fs::File::create(&file).and_then(|mut file| file.write_all(script.as_bytes())).expect("the folder is ours");
        let out = shell(&format!("exec 2>&1; . {}", file.display())).output().expect("bash starts");
        let all = tools::text(&out.stdout);
        let mut rest = all.as_str();
        for (n, step) in steps.iter().enumerate() {
            let Some((said, after)) = rest.split_once(&format!("{MARK}{n}\n")) else {
                failure = Some(format!("the walk stopped at `{}`:\n{all}", step.command));
                break;
            };
            rest = after;
            let mut lines = said.lines();
            if let Some(line) =
                step.expected.iter().find(|line| !line.trim().is_empty() && line.trim() != "…" && !lines.any(|said| fits(line.trim(), said.trim())))
            {
                failure = Some(format!("`{}` does not print `{line}`, but\n{said}", step.command));
                break;
            }
        }
    }
    let _ = gate.kill();
    let _ = gate.wait();
    log.push_str(&rest.join().expect("the log's thread does not panic"));
    assert!(failure.is_none(), "{}\n--- the gate\n{log}", failure.unwrap_or_default());
}

#[test]
fn patterns_fit_as_the_readme_uses_them() {
    for (pattern, line, wanted) in
        [("a … c", "a b c", true), ("… 401 …", "HTTP 401 no", true), ("a…", "b", false), ("a…b", "ab", true), ("x", "xy", false), ("…y", "xy", true)]
    {
        assert_eq!(fits(pattern, line), wanted, "{pattern} and {line}");
    }
}
