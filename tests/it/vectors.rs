//! What each preset rests on: the cases of `tests/vectors/`, and whose verdicts they are.

use std::{collections::BTreeSet, fmt::Write, fs};

use serde_json::Value;

use crate::support::tools;

/// Every preset's name and its `checked`.
fn presets() -> Vec<(String, String)> {
    let all: Value = serde_json::from_str(&tools::output(&mut tools::hooklatch(["providers", "--json"]), b"")).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.as_array().expect("an array").iter().map(|preset| (text(&preset["name"]), text(&preset["definition"]["checked"]))).collect()
}

/// A preset's cases: how many to accept, how many to reject, and who judged them.
fn cases(name: &str) -> (usize, usize, BTreeSet<String>) {
    let path = tools::root().join(format!("tests/vectors/{name}.json"));
    let Ok(text) = fs::read(&path) else { return (0, 0, BTreeSet::new()) };
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut judges = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut accepts = 0;
    for case in &cases {
        let id = case["id"].as_str().expect("a case has an id");
        assert!(ids.insert(id), "{id} stands twice");
        assert_eq!(case["provider"], name, "{id}");
        accepts += usize::from(case["expect"] == "accept");
        let oracle = case["oracle"].as_str().filter(|oracle| !oracle.is_empty()).unwrap_or_else(|| panic!("{id} does not say who judged it"));
        judges.extend(oracle.split("; ").map(str::to_owned));
    }
    (accepts, cases.len() - accepts, judges)
}

/// Whether anybody but the signer of this repository judged: a library, or an example that the provider publishes.
fn by_others(judges: &BTreeSet<String>) -> bool {
    judges.iter().any(|judge| !judge.starts_with("tests/vectors/generate/"))
}

/// `TABLE.md`, line by line.
fn table() -> String {
    let mut text = "# What each preset rests on\n\nMade from the cases by `scripts/test --bless`. A judge without a version is no library: the provider has none, or none that checks \
                    signatures.\n\n| preset | `checked` | accept | reject | judged by |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (name, checked) in presets() {
        let (accepts, rejects, judges) = cases(&name);
        let judges: Vec<String> = judges.into_iter().collect();
        writeln!(text, "| {name} | {checked} | {accepts} | {rejects} | {} |", judges.join("; ")).expect("a string can be written to");
    }
    text
}

#[test]
fn every_preset_has_cases_that_others_judged() {
    let mut poor = Vec::new();
    for (name, checked) in presets() {
        let (accepts, rejects, judges) = cases(&name);
        if accepts < 1 || rejects < 8 {
            poor.push(format!("{name}: {accepts} to accept and {rejects} to reject; 1 and 8 are due: see tests/vectors/generate"));
        }
        if (checked == "vectors") != by_others(&judges) {
            poor.push(format!("{name}: `checked = \"{checked}\"`, but its cases were judged by {judges:?}"));
        }
    }
    assert!(poor.is_empty(), "{}", poor.join("\n"));
}

#[test]
fn the_table_of_cases_is_current() {
    let path = tools::root().join("tests/vectors/TABLE.md");
    let table = table();
    if std::env::var_os("HOOKLATCH_BLESS").is_some() {
        fs::write(&path, &table).expect("the repository can be written to");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == table, "tests/vectors/TABLE.md is not what the cases say: run scripts/test --bless");
}

/// The same through the program, as its users run it.
#[test]
fn the_program_judges_every_case_rightly() {
    let folder = tools::root().join("tests/vectors");
    let files: Vec<_> = presets().into_iter().map(|(name, _)| folder.join(format!("{name}.json"))).filter(|path| path.exists()).collect();
    let mut command = tools::hooklatch(["verify", "--cases"]);
    let out = tools::run(command.args(&files), b"");
    let said = tools::text(&out.stdout);
    let wrong: Vec<&str> = said.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["expect"] != line["got"])).collect();
    assert!(out.status.success() && wrong.is_empty(), "{}\n{}", wrong.join("\n"), tools::text(&out.stderr));
}
