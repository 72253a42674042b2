//! The documents against the program: policies in them load, every key of the policy file is described, links lead somewhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sha2::Digest;

use crate::support::tools;

/// A route for blocks that have none.
const LEAST: &str = "\n[routes.least-of-the-docs]\npath = \"/least-of-the-docs\"\nverify = { provider = \"github\", secret = \"env:GITHUB_SECRET\" }\n\
                     deliver = \"http://127.0.0.1:3000/hooks\"\n";

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = tools::root().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "no .{ending} in {}", folder.display());
    files
}

fn documents() -> Vec<(PathBuf, String)> {
    let all = files("docs", "md").into_iter().chain([tools::root().join("README.md")]);
    all.map(|path| (path.clone(), fs::read_to_string(&path).expect("a text"))).collect()
}

/// Everything that stands between `from` and a quotation mark.
fn quoted<'a>(text: &'a str, from: &str) -> BTreeSet<&'a str> {
    text.split(from).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// `check` on a policy, every secret that it names being there.
fn accepted(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).expect("a policy");
    let mut command = tools::hooklatch(["check".as_ref(), "--config".as_ref(), path.as_os_str()]);
    command.env("STATE_DIRECTORY", "/nonexistent").env("NO_COLOR", "1");
    for name in quoted(&text, "\"env:") {
        command.env(name, "a secret of the tests, long enough");
    }
    let out = tools::run(&mut command, b"");
    if out.status.success() { Ok(()) } else { Err(format!("{}{}", tools::text(&out.stdout), tools::text(&out.stderr))) }
}

/// Pins the components that a policy pins anew, as they are now.
fn pin_anew(path: &Path) {
    let text = fs::read_to_string(path).expect("a policy");
    let mut component = "";
    let lines = text.lines().map(|line| {
        if let Some(rest) = line.strip_prefix("component = \"") {
            component = rest.trim_end_matches('"');
        }
        if !line.starts_with("sha256 = \"") {
            return line.to_owned();
        }
        let bytes = fs::read(path.with_file_name(component)).expect("the component is there");
        format!("sha256 = \"{}\"", data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes)))
    });
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    fs::write(path, text).expect("the tests' folder is writable");
}

/// A filter that was built anew has another digest: `scripts/test --bless` pins that one.
#[test]
fn good_policies_load() {
    for path in files("tests/config/good", "toml") {
        if std::env::var_os("HOOKLATCH_BLESS").is_some() {
            pin_anew(&path);
        }
        accepted(&path).unwrap_or_else(|said| panic!("{}: {said}", path.display()));
    }
}

/// The blocks of a document, with what stands behind the opening fence and the line it stands in.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some((number + 1, kind.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, _, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

/// A whole policy of a block: `toml` holds tables, `toml route` keys of a route.
fn whole(kind: &str, body: &str) -> String {
    if kind == "toml route" {
        let absent = |key: &str| !body.lines().any(|line| line.starts_with(key));
        let mut text = "[routes.docs]\npath = \"/docs\"\n".to_owned();
        for (key, line) in [("verify", "verify = { provider = \"github\", secret = \"env:GITHUB_SECRET\" }\n"), ("deliver", "deliver = \"seen\"\n")] {
            if absent(&format!("{key} =")) {
                text.push_str(line);
            }
        }
        return format!("{text}{body}\n[destinations.seen]\nurl = \"builtin:inspector\"\n");
    }
    if body.contains("[routes.") { body.to_owned() } else { format!("{body}{LEAST}") }
}

#[test]
fn policies_in_documents_load() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let (root, policy) = (tools::root(), dir.path().join("config"));
    std::os::unix::fs::symlink(root.join("filters"), dir.path().join("filters")).expect("a link can be made");
    let good = root.join("tests/config/good");
    for (name, from) in [
        ("tls/fullchain.pem", "tls/hooks.pem"),
        ("tls/privkey.pem", "tls/hooks.key"),
        ("tls/clients.pem", "tls/ca.pem"),
        ("tls/internal.pem", "tls/ca.pem"),
        ("schemas/push.json", "schemas/push.json"),
    ] {
        let path = policy.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        fs::copy(good.join(from), path).expect("a file can be copied");
    }
    let (mut failures, mut read) = (Vec::new(), 0);
    for (document, text) in documents() {
        for (line, kind, body) in blocks(&text).into_iter().filter(|(_, kind, _)| kind.starts_with("toml")) {
            let text = whole(&kind, &body);
            for name in quoted(&text, "\"file:") {
                let path = policy.join(name);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
                fs::write(path, format!("the secret of {name}\n")).expect("a file can be written");
            }
            let file = policy.join("policy.toml");
            fs::write(&file, text).expect("a file can be written");
            read += 1;
            if let Err(said) = accepted(&file) {
                failures.push(format!("{}:{line}\n{said}", document.display()));
            }
        }
    }
    assert!(read >= 10, "only {read} blocks were found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every Rust file of a folder, without its tests.
fn sources(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|name| name != "tests.rs") {
            let text = fs::read_to_string(&path).expect("a text");
            into.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned());
        }
    }
}

/// The keys that the program asks the policy for: the first text in a call of one of the getters.
fn keys() -> (BTreeSet<String>, BTreeSet<String>) {
    const GETTERS: &[&str] = &[
        ".opt_string(",
        ".string(",
        ".string_or(",
        ".strings(",
        ".choice(",
        ".opt_bool(",
        ".bool_or(",
        ".opt_u64(",
        ".u64_or(",
        ".opt_duration(",
        ".duration_or(",
        ".opt_size(",
        ".size_or(",
        ".opt_section(",
        ".sections(",
        ".file(",
        ".item(",
        ".has(",
        "span(",
        "count(",
        "bounded(&section, ",
        "names(&section, ",
        "nets(server, ",
        "own(",
    ];
    let mut texts = Vec::new();
    sources(&tools::root().join("src"), &mut texts);
    let (mut keys, mut unbuilt) = (BTreeSet::new(), BTreeSet::new());
    for text in texts.iter().filter(|text| text.contains("Section")) {
        let found = |getter: &str| {
            let start = format!("{getter}\"");
            let all = text.split(&start).skip(1).filter_map(|rest| rest.split('"').next());
            all.filter(|key| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        GETTERS.iter().for_each(|getter| keys.extend(found(getter)));
        unbuilt.extend(found(".not_built("));
    }
    assert!(keys.len() > 120, "only {} keys were found: has the way of reading them changed?", keys.len());
    (keys, unbuilt)
}

#[test]
fn every_key_is_described_and_used() {
    let (keys, unbuilt) = keys();
    let described: String =
        ["policy", "providers", "filters"].iter().map(|name| fs::read_to_string(tools::root().join(format!("docs/{name}.md"))).expect("a text")).collect();
    let full = fs::read_to_string(tools::root().join("tests/config/good/full.toml")).expect("a policy");
    let word = |text: &str, key: &str| {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.match_indices(key).any(|(at, _)| !text[..at].ends_with(part) && !text[at + key.len()..].starts_with(part))
    };
    let missing: Vec<_> = keys.iter().chain(&unbuilt).filter(|key| !word(&described, key)).collect();
    assert!(missing.is_empty(), "not in docs/policy.md, providers.md or filters.md: {missing:?}");
    // `url` of a destination is built, that of [state] is not.
    let unused: Vec<_> = keys.iter().filter(|key| !unbuilt.contains(*key) && !word(&full, key)).collect();
    assert!(unused.is_empty(), "not in tests/config/good/full.toml: {unused:?}");
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for (document, text) in documents() {
        let folder = document.parent().expect("a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://")) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { document.clone() } else { folder.join(file) };
            let there = if place.is_empty() {
                target.exists()
            } else {
                fs::read_to_string(&target).is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == place))
            };
            if !there {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}
