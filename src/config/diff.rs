//! What a policy means, without its secrets, and what changes from one to another: for a review.
//!
//! Read from the text alone, so that neither secrets nor filters need to be there. What means the same is written the same way first:
//! `secret` is one of `secrets`, a route without `methods` takes POST, `set:office` stands for the addresses it names. Published ranges
//! are those that each policy would start with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{state_directory, whole};
use crate::{
    guard::allow::IpSets,
    mask,
    problem::Source,
    ranges::{Settings, Shelf},
    section::{Inputs, Reader, Section},
    verify::Catalogue,
};

/// The key of what providers publish, which no table of a policy has.
const PUBLISHED: &str = "published ranges";

/// A policy as far as its text tells.
pub(crate) struct Outline {
    /// Where the policy file stands, and `hooklatch.lock` beside it.
    pub(crate) folder: PathBuf,
    pub(crate) catalogue: Catalogue,
    /// The providers that some `allow_ips` names.
    pub(crate) ranges: Vec<String>,
    pub(crate) ip_ranges: Settings,
    /// By key, as it takes effect; with its secrets.
    effect: Map<String, Value>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Such as `routes.github.allow_ips`.
    pub(crate) path: String,
    pub(crate) old: Option<Value>,
    pub(crate) new: Option<Value>,
}

/// Reads a policy's text; the error is for its author.
pub(crate) fn outline(path: &Path) -> Result<Outline, String> {
    let text = std::fs::read_to_string(path).map_err(|why| format!("the policy file {} cannot be read: {why}", path.display()))?;
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    let inputs = Inputs::system(folder.clone(), state_directory(path));
    read(Source { name: path.display().to_string(), text }, inputs, folder)
}

fn read(source: Source, inputs: Inputs, folder: PathBuf) -> Result<Outline, String> {
    let reader = Reader::new(source, inputs);
    let table = reader.parse();
    if reader.failed() {
        return Err(format!("{} cannot be read:\n{}", reader.source.name, reader.source.render(&reader.problems(), false)));
    }
    let root = reader.root(&table);
    let catalogue = Catalogue::read(&root);
    let ip_ranges = root.opt_section("server").map(|server| Settings::read(&server)).unwrap_or_default();
    let sets = IpSets::read(&root);
    let ranges = named(&root);
    if reader.failed() {
        return Err(format!("{} has errors:\n{}", reader.source.name, reader.source.render(&reader.problems(), false)));
    }
    let mut effect = effective(&root, &sets);
    let shelf = Shelf::new(&reader.inputs, &ip_ranges);
    let mut published = Map::new();
    for name in &ranges {
        let Some(entry) = catalogue.entry(name) else { continue };
        let source = &entry.definition.traits.ip_ranges;
        let known = shelf.open(&entry.definition.name, source, entry.text.is_some())?.known();
        published.insert(entry.definition.name.to_string(), known.nets.iter().map(|net| Value::from(net.to_string())).collect());
    }
    if !published.is_empty() {
        effect.insert(PUBLISHED.to_owned(), published.into());
    }
    Ok(Outline { folder, catalogue, ranges, ip_ranges, effect })
}

/// The providers that `allow_ips` names, each once.
fn named(root: &Section<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for (_, route) in root.sections("routes") {
        let items = route.item("allow_ips").filter(|item| item.is_array()).and_then(|item| item.items()).unwrap_or_default();
        names.extend(items.iter().filter_map(|item| item.as_str()?.strip_prefix("provider:")).map(str::to_owned));
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn effective(root: &Section<'_>, sets: &IpSets) -> Map<String, Value> {
    let mut all = whole(root);
    // The addresses stand where they are used.
    all.remove("ip_sets");
    if let Some(Value::Object(routes)) = all.get_mut("routes") {
        for route in routes.values_mut().filter_map(Value::as_object_mut) {
            route.entry("methods").or_insert_with(|| json!(["POST"]));
            if let Some(Value::Object(verify)) = route.get_mut("verify")
                && let Some(one) = verify.remove("secret")
            {
                verify.insert("secrets".to_owned(), json!([one]));
            }
            if let Some(Value::Array(allowed)) = route.get_mut("allow_ips") {
                *allowed = allowed.iter().flat_map(|item| spelt_out(item, sets)).collect();
            }
        }
    }
    all
}

/// `set:office` as the networks it stands for.
fn spelt_out(item: &Value, sets: &IpSets) -> Vec<Value> {
    match item.as_str().and_then(|text| text.strip_prefix("set:")).and_then(|name| Some((name, sets.nets(name)?))) {
        Some((name, nets)) => nets.iter().map(|net| Value::from(format!("{net} (set:{name})"))).collect(),
        None => vec![item.clone()],
    }
}

/// What is different, in the order of the keys. A change of what is not shown is told all the same.
pub(crate) fn between(old: &Outline, new: &Outline) -> Vec<Change> {
    let mut changes = Vec::new();
    objects(&[], &old.effect, &new.effect, &mut changes);
    changes
}

fn objects(path: &[String], old: &Map<String, Value>, new: &Map<String, Value>, changes: &mut Vec<Change>) {
    let keys: BTreeMap<&String, ()> = old.keys().chain(new.keys()).map(|key| (key, ())).collect();
    for key in keys.into_keys() {
        let path = [path, std::slice::from_ref(key)].concat();
        let masked = |value: Option<&Value>| value.map(|value| if path[0] == PUBLISHED { value.clone() } else { mask::json_under(&path, value.clone()) });
        match (old.get(key), new.get(key)) {
            (Some(Value::Object(old)), Some(Value::Object(new))) => objects(&path, old, new, changes),
            (old, new) if old != new => changes.push(Change { path: path.join("."), old: masked(old), new: masked(new) }),
            _ => {}
        }
    }
}

impl Change {
    /// For people: `+`, `-` or `~`, the key, and what came and went.
    pub(crate) fn lines(&self) -> Vec<String> {
        match (&self.old, &self.new) {
            (None, Some(new)) => parts("+", &self.path, new),
            (Some(old), None) => parts("-", &self.path, old),
            (Some(Value::Array(old)), Some(Value::Array(new))) if old.iter().chain(new).all(|item| !item.is_object()) => {
                let mut lines = vec![format!("~ {}", self.path)];
                lines.extend(old.iter().filter(|item| !new.contains(item)).map(|item| format!("    - {}", written(item))));
                lines.extend(new.iter().filter(|item| !old.contains(item)).map(|item| format!("    + {}", written(item))));
                if lines.len() == 1 {
                    lines[0].push_str(" (in another order)");
                }
                lines
            }
            (old, new) => {
                let text = |value: &Option<Value>| value.as_ref().map(written).unwrap_or_default();
                vec![format!("~ {}", self.path), format!("    - {}", text(old)), format!("    + {}", text(new))]
            }
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "path": self.path, "old": self.old, "new": self.new })
    }
}

/// A table that came or went, a line for each of its keys.
fn parts(sign: &str, path: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let fields = fields.iter().map(|(key, value)| format!("    {sign} {key} = {}", written(value)));
            std::iter::once(format!("{sign} {path}")).chain(fields).collect()
        }
        other => vec![format!("{sign} {path} = {}", written(other))],
    }
}

/// A value as TOML has it, on one line.
fn written(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => format!("{{ {} }}", fields.iter().map(|(key, value)| format!("{key} = {}", written(value))).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Outline {
        read(Source { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[]), PathBuf::new()).unwrap_or_else(|why| panic!("{why}"))
    }

    fn check(old: &str, new: &str, want: &[&str]) {
        let lines: Vec<String> = between(&of(old), &of(new)).iter().flat_map(Change::lines).collect();
        assert_eq!(lines, want, "{old}\n{new}");
    }

    const ROUTE: &str = "[routes.a]\npath = \"/a\"\nverify = { provider = \"github\", secret = \"env:S\" }\ndeliver = \"http://127.0.0.1:1/\"\n";

    #[test]
    fn what_means_the_same_is_no_change() {
        check(ROUTE, ROUTE, &[]);
        check(ROUTE, &ROUTE.replace("secret = \"env:S\"", "secrets = [\"env:S\"]"), &[]);
        check(ROUTE, &format!("{ROUTE}methods = [\"POST\"]"), &[]);
        check(
            &format!("{ROUTE}allow_ips = [\"set:o\"]\n[ip_sets]\no = [\"10.0.0.1\"]"),
            &format!("{ROUTE}allow_ips = [\"set:o\"]\n[ip_sets]\no = [\"10.0.0.1/32\"]"),
            &[],
        );
    }

    #[test]
    fn changes_are_told_by_key() {
        check(ROUTE, &ROUTE.replace("env:S", "env:T"), &["~ routes.a.verify.secrets", "    - \"env:S\"", "    + \"env:T\""]);
        check(ROUTE, &ROUTE.replace("\"/a\"", "\"/b\""), &["~ routes.a.path", "    - \"/a\"", "    + \"/b\""]);
        check(ROUTE, &format!("{ROUTE}filters = [\"f\"]"), &["+ routes.a.filters = [\"f\"]"]);
        check(
            &format!("{ROUTE}allow_ips = [\"set:o\"]\n[ip_sets]\no = [\"10.0.0.1\"]"),
            &format!("{ROUTE}allow_ips = [\"set:o\"]\n[ip_sets]\no = [\"10.0.0.2\"]"),
            &["~ routes.a.allow_ips", "    - \"10.0.0.1/32 (set:o)\"", "    + \"10.0.0.2/32 (set:o)\""],
        );
        check(
            "",
            ROUTE,
            &[
                "+ routes",
                "    + a = { deliver = \"http://127.0.0.1:1/\", methods = [\"POST\"], path = \"/a\", verify = { provider = \"github\", secrets = [\"env:S\"] } }",
            ],
        );
        check(&format!("{ROUTE}filters = [\"f\", \"g\"]"), &format!("{ROUTE}filters = [\"g\", \"f\"]"), &["~ routes.a.filters (in another order)"]);
    }

    #[test]
    fn published_ranges_are_part_of_it() {
        let own = |nets: &str| format!("{ROUTE}allow_ips = [\"provider:acme\"]\n[providers.acme]\nscheme = \"basic\"\nip_ranges = [{nets}]\n");
        let changes = between(&of(&own("\"192.0.2.0/24\"")), &of(&own("\"192.0.2.0/24\", \"198.51.100.0/24\"")));
        let lines: Vec<String> = changes.iter().flat_map(Change::lines).collect();
        assert!(lines.contains(&"~ published ranges.acme".to_owned()) && lines.contains(&"    + \"198.51.100.0/24\"".to_owned()), "{lines:?}");
    }

    #[test]
    fn secrets_are_never_told() {
        let bare = |word: &str| ROUTE.replace("env:S", word);
        let header = |value: &str| {
            format!("{ROUTE}[destinations.d]\nurl = \"https://me:hunter2{value}@d.example\"\nheaders = {{ Authorization = \"hunter2{value}\" }}\n")
        };
        for (old, new, changed) in [
            (bare("literal:hunter2-1"), bare("literal:hunter2-2"), 1),
            (bare("hunter2-1"), bare("hunter2-2"), 1),
            (header("1"), header("2"), 2),
            (header("1"), header("1"), 0),
        ] {
            let changes = between(&of(&old), &of(&new));
            let said: Vec<String> = changes.iter().flat_map(|change| change.lines().into_iter().chain([change.json().to_string()])).collect();
            assert_eq!(changes.len(), changed, "that it changed is told: {said:?}");
            assert!(!said.join("\n").contains("hunter2"), "{said:?}");
        }
    }
}
