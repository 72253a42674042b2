//! The policy file as its users meet it: shipped files load, bad ones are explained, mutated ones never crash.

use std::path::{Path, PathBuf};

use crate::support::tools;

fn toml_files(folder: &str) -> Vec<PathBuf> {
    let folder = tools::root().join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    assert!(!files.is_empty(), "no policy in {}", folder.display());
    files
}

/// Exit code and everything said, with the folder's own path taken out.
fn check(path: &Path) -> (Option<i32>, String) {
    let folder = path.parent().expect("a file stands in a folder");
    let name = path.file_name().expect("a file has a name");
    let mut command = tools::hooklatch(["check".as_ref(), "--config".as_ref(), name]);
    command.current_dir(folder).env("STATE_DIRECTORY", "/nonexistent").env("NO_COLOR", "1");
    for name in ["GITHUB_SECRET", "STRIPE_SECRET", "ALERTMANAGER_TOKEN", "HOOKLATCH_ADMIN_TOKEN"] {
        command.env(name, "a secret of the tests, long enough");
    }
    command.env("EMPTY", "").env("BLANK", " \n").env_remove("ABSENT");
    let out = tools::run(&mut command, b"");
    (out.status.code(), tools::text(&out.stdout) + &tools::text(&out.stderr))
}

#[test]
fn every_shipped_policy_loads() {
    for path in toml_files("config") {
        let (code, said) = check(&path);
        assert_eq!(code, Some(0), "{}: {said}", path.display());
    }
}

#[test]
fn a_policy_of_every_key_loads() {
    let (code, said) = check(&tools::root().join("tests/config/whole.toml"));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn bad_policies_are_explained_as_they_stand_in_err_files() {
    let bless = std::env::var_os("HOOKLATCH_BLESS").is_some();
    let mut failures = Vec::new();
    for path in toml_files("tests/config/bad") {
        let (code, said) = check(&path);
        if code != Some(1) {
            failures.push(format!("{} ends with {code:?}:\n{said}", path.display()));
            continue;
        }
        let err = path.with_extension("err");
        if bless {
            std::fs::write(&err, &said).expect("the tests' folder is writable");
            continue;
        }
        let wanted = std::fs::read_to_string(&err).unwrap_or_default();
        if said != wanted {
            failures.push(format!("{} (scripts/test --bless accepts it)\n--- wanted\n{wanted}\n--- said\n{said}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn all_problems_come_in_one_run() {
    let (_, said) = check(&tools::root().join("tests/config/bad/many.toml"));
    assert!(said.matches("error").count() >= 5, "{said}");
}

struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % below
    }
}

fn mutated(noise: &mut Noise, text: &str) -> Vec<u8> {
    const VALUES: &[&str] = &[
        "0",
        "-1",
        "1e99",
        "99999999999999999999",
        "\"\"",
        "\" \"",
        "true",
        "[]",
        "{}",
        "\"0s\"",
        "\"-5s\"",
        "\"99999999999999d\"",
        "\"1m\"",
        "\"0/0s\"",
        "\"999999999/s\"",
        "\"::/0\"",
        "\"0.0.0.0/0\"",
        "\"http://\"",
        "\"unix:\"",
        "\"env:\"",
        "\"file:\"",
        "\"literal:\"",
        "\"/{a}/{a}\"",
        "\"*\"",
        "2026-13-01",
        "inf",
        "nan",
        "'''",
        "\"\\u0000\"",
        "[[[[[[]]]]]]",
        "\"/dev/zero\"",
        "\"../../../../etc/passwd\"",
    ];
    let mut lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
    for _ in 0..=noise.next(3) {
        let at = noise.next(lines.len());
        match noise.next(7) {
            0 => {
                lines.remove(at);
            }
            1 => {
                let line = lines[at].clone();
                lines.insert(at, line);
            }
            2 => {
                let other = noise.next(lines.len());
                lines.swap(at, other);
            }
            3 => {
                let line = &mut lines[at];
                if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
                    line.truncate(equals + 1);
                    line.extend(VALUES[noise.next(VALUES.len())].as_bytes());
                }
            }
            4 => {
                let line = &mut lines[at];
                if !line.is_empty() {
                    let byte = noise.next(line.len());
                    line[byte] = u8::try_from(noise.next(256)).expect("a byte");
                }
            }
            5 => {
                let line = &mut lines[at];
                let cut = noise.next(line.len() + 1);
                line.truncate(cut);
            }
            _ => {
                let line = &mut lines[at];
                let insert = noise.next(line.len() + 1);
                let piece: &[u8] = [&b"\""[..], b"'", b"[", b"]", b"{", b"}", b"=", b".", b"#", b"\\", b"\xff", b"\0"][noise.next(12)];
                line.splice(insert..insert, piece.iter().copied());
            }
        }
    }
    lines.join(&b'\n')
}

fn harmless(dir: &Path, what: &str, text: &[u8]) {
    let path = dir.join("mutated.toml");
    std::fs::write(&path, text).expect("the folder is ours");
    let (code, said) = check(&path);
    let shown = String::from_utf8_lossy(text);
    assert!(matches!(code, Some(0..=2)), "{what} ends with {code:?}:\n{said}\n--- the policy\n{shown}");
    assert!(!said.contains("panicked"), "{what}: {said}\n--- the policy\n{shown}");
}

#[test]
fn mutated_policies_end_with_0_1_or_2() {
    let text = std::fs::read_to_string(tools::root().join("tests/config/whole.toml")).expect("the policy is there");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut noise = Noise(0x2545_F491_4F6C_DD1D);
    for n in 0..250 {
        harmless(dir.path(), &format!("mutation {n}"), &mutated(&mut noise, &text));
    }
}

#[test]
fn odd_files_end_with_0_1_or_2() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let long = "a".repeat(1 << 20);
    let many: String = (0..2_000).map(|n| format!("[routes.r{n}]\npath = \"/{n}\"\nverify = \"none\"\ndeliver = \"http://127.0.0.1:1/\"\n")).collect();
    let odd: [(&str, Vec<u8>); 11] = [
        ("empty", Vec::new()),
        ("a byte order mark", b"\xef\xbb\xbf[server]\n".to_vec()),
        ("no UTF-8", b"\xff\xfe\0[\0".to_vec()),
        ("NULs", vec![0; 4096]),
        ("carriage returns", b"[server]\r\nlisten = [\"127.0.0.1:0\"]\r\n".to_vec()),
        ("a long key", format!("{long} = 1").into_bytes()),
        ("a long string", format!("x = \"{long}\"").into_bytes()),
        ("many lines", "\n".repeat(1 << 20).into_bytes()),
        ("many routes", many.into_bytes()),
        ("JSON", b"{\"server\":{\"listen\":[\"127.0.0.1:0\"]}}".to_vec()),
        ("a program", std::fs::read("/bin/true").expect("Debian has it")),
    ];
    for (what, bytes) in odd {
        harmless(dir.path(), what, &bytes);
    }
}

#[test]
fn what_cannot_be_read_ends_with_2() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for path in [dir.path().join("absent.toml"), dir.path().to_owned()] {
        let (code, said) = check(&path);
        assert_eq!(code, Some(2), "{said}");
    }
}
