//! The presets that are shipped and the providers a policy defines, by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::definition::Definition;
use crate::{
    problem::Source,
    section::{Inputs, Reader, Section, nearest},
};

/// The shipped presets, as data.
const SHIPPED: &str = include_str!("providers.toml");

/// One definition and the data it was read from.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) definition: Arc<Definition>,
    pub(crate) json: serde_json::Value,
    /// The table's own text; shipped presets only.
    pub(crate) text: Option<&'static str>,
}

/// The definitions that a policy may name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue {
    own: BTreeMap<String, Entry>,
}

/// The other names of the shipped presets.
static ALIASES: LazyLock<BTreeMap<&'static str, &'static Entry>> = LazyLock::new(|| {
    let all = PRESETS.values().flat_map(|entry| entry.definition.aliases.iter().map(move |alias| (alias.as_str(), entry)));
    all.collect()
});

static PRESETS: LazyLock<BTreeMap<String, Entry>> = LazyLock::new(|| {
    let (presets, problems) = shipped();
    debug_assert!(problems.is_empty(), "{problems}");
    presets
});

/// Reads the shipped presets; what is wrong with them is for this crate's tests.
fn shipped() -> (BTreeMap<String, Entry>, String) {
    let reader = Reader::new(Source { name: "providers.toml".to_owned(), text: SHIPPED.to_owned() }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    let root = reader.root(&table);
    let texts = texts();
    let mut presets = BTreeMap::new();
    for name in root.keys() {
        let (Some(section), Some(item)) = (root.opt_section(&name), root.item(&name)) else { continue };
        let definition = Definition::read(&section, &name);
        section.finish();
        if let (Some(definition), Some(json)) = (definition, item.json()) {
            let text = texts.get(name.as_str()).copied();
            presets.insert(name, Entry { definition: Arc::new(definition), json, text });
        }
    }
    (presets, reader.source.render(&reader.problems(), false))
}

/// The text of each shipped table, by name.
fn texts() -> BTreeMap<&'static str, &'static str> {
    let mut starts: Vec<(usize, &str)> = Vec::new();
    let mut at = 0;
    for line in SHIPPED.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix('[')
            && let Some((name, _)) = rest.split_once(']')
            && !rest.starts_with('[')
            && !name.contains('.')
        {
            starts.push((at, name));
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([SHIPPED.len()]);
    let tables = starts.iter().zip(ends).map(|((from, name), to)| (*name, &SHIPPED[*from..to]));
    // The comment before a table belongs to the next one.
    tables
        .map(|(name, text)| {
            (name, text.rsplit_once("\n\n").filter(|(_, tail)| tail.lines().all(|l| l.starts_with('#'))).map_or(text, |(head, _)| head).trim_end())
        })
        .collect()
}

/// A shipped preset by its name or one of its other names.
fn shipped_entry(name: &str) -> Option<&'static Entry> {
    PRESETS.get(name).or_else(|| ALIASES.get(name).copied())
}

impl Catalogue {
    /// The shipped presets alone.
    pub(crate) fn shipped() -> Self {
        Self::default()
    }

    /// The shipped presets and a policy's `[providers.NAME]`; every definition is judged, used or not.
    pub(crate) fn read(root: &Section<'_>) -> Self {
        let mut own = BTreeMap::new();
        let Some(parent) = root.opt_section("providers") else { return Self::default() };
        for name in parent.keys() {
            let (Some(section), Some(item)) = (parent.opt_section(&name), parent.item(&name)) else { continue };
            if let Some(entry) = shipped_entry(&name) {
                let of = &entry.definition.name;
                let what = if **of == *name {
                    format!("`{name}` is the name of a shipped preset")
                } else {
                    format!("`{name}` is another name of the shipped preset `{of}`")
                };
                item.problem(what, "choose another name for your own definition");
            }
            if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
                item.problem(format!("`{name}` is not a provider's name"), "1 to 64 of letters, digits, `-` and `_`");
            }
            let definition = Definition::read(&section, &name);
            if let Some(alias) = definition.iter().flat_map(|definition| &definition.aliases).find(|alias| parent.has(alias) || shipped_entry(alias).is_some())
            {
                section.problem("aliases", format!("`{alias}` names another provider"), "choose another name, or remove it");
            }
            section.finish();
            if let (Some(definition), Some(json)) = (definition, item.json()) {
                own.insert(name, Entry { definition: Arc::new(definition), json, text: None });
            }
        }
        Self { own }
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        let aliased = || self.own.values().find(|entry| entry.definition.aliases.iter().any(|alias| alias == name));
        self.own.get(name).or_else(|| shipped_entry(name)).or_else(aliased)
    }

    pub(crate) fn definition(&self, name: &str) -> Option<&Arc<Definition>> {
        self.entry(name).map(|entry| &entry.definition)
    }

    /// Every name, sorted; aliases are left out.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.own.keys().chain(PRESETS.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What to say of a name that is not there.
    pub(crate) fn hint(&self, name: &str) -> String {
        let aliases = ALIASES.keys().copied().chain(self.own.values().flat_map(|entry| entry.definition.aliases.iter().map(String::as_str)));
        let known: Vec<&str> = self.names().into_iter().chain(aliases).collect();
        match nearest(name, &known) {
            Some(near) => format!("did you mean \"{near}\"? `hooklatch providers` lists all"),
            None => "`hooklatch providers` lists all; define your own under [providers.NAME]".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_presets_have_no_problem() {
        let (presets, problems) = shipped();
        assert!(problems.is_empty(), "{problems}");
        assert!(presets.values().all(|entry| entry.text.is_some_and(|text| text.contains("scheme"))));
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names: Vec<&str> =
            PRESETS.values().flat_map(|entry| entry.definition.aliases.iter().map(String::as_str)).chain(PRESETS.keys().map(String::as_str)).collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
    }

    /// Every shipped preset says how its deliveries are told apart, what it rests on and where to read about it.
    #[test]
    fn every_preset_states_what_the_contract_asks() {
        for (name, entry) in &*PRESETS {
            let said = |key: &str| entry.json.get(key).is_some();
            assert!(said("title") && said("replay_key") && said("docs") && said("checked"), "{name}");
            assert!(entry.definition.traits.docs.as_deref().is_some_and(|docs| docs.starts_with("https://")), "{name}");
        }
    }

    #[test]
    fn other_names_lead_to_the_preset() {
        let catalogue = Catalogue::shipped();
        for (alias, name) in [("whatsapp", "meta"), ("twitter", "x"), ("tfe", "terraform-cloud"), ("github", "github")] {
            assert_eq!(catalogue.definition(alias).map(|definition| &*definition.name), Some(name));
        }
        assert!(catalogue.hint("twiter").contains("\"twitter\""));
    }
}
