//! `hooklatch providers`: the preset catalogue, or one preset in full.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::json;

use super::{PolicyArgs, USAGE, complain, say, verify::catalogue};
use crate::verify::{Catalogue, Checked, Entry, SCHEMES};

/// List the provider presets, or show one in full
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch providers                    every preset
  hooklatch providers github             one preset in full
  hooklatch providers --config my.toml   the policy's own providers too")]
pub(crate) struct ProvidersArgs {
    /// The preset to show
    name: Option<String>,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &ProvidersArgs) -> ExitCode {
    let catalogue = match catalogue(policy) {
        Ok(catalogue) => catalogue,
        Err(code) => return code,
    };
    match &args.name {
        None => list(&catalogue, args.json),
        Some(name) => {
            let Some(entry) = catalogue.entry(name) else {
                complain(&format!("there is no provider `{name}`; {}", catalogue.hint(name)));
                return ExitCode::from(USAGE);
            };
            show(name, entry, args.json);
        }
    }
    ExitCode::SUCCESS
}

fn list(catalogue: &Catalogue, machine: bool) {
    let entries: Vec<(&str, &Entry)> = catalogue.names().into_iter().filter_map(|name| Some((name, catalogue.entry(name)?))).collect();
    if machine {
        let all: Vec<_> = entries.iter().map(|(name, entry)| as_json(name, entry)).collect();
        say(&format!("{}", serde_json::Value::from(all)));
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NAME", "SCHEME", "PROVES", "REPLAY KEY", "CHECKED", "PROVIDER"]);
    for (name, entry) in &entries {
        let definition = &entry.definition;
        let checked = match definition.traits.checked {
            Some(Checked::Vectors) => "vectors",
            Some(Checked::Docs) => "docs",
            None => "-",
        };
        table.add_row([
            name,
            &*definition.schemes().join(", "),
            definition.verification().code(),
            definition.replay_key(),
            checked,
            definition.title.as_deref().unwrap_or("-"),
        ]);
    }
    say(&format!("{table}"));
    say(&format!("\n{} providers. `hooklatch providers NAME` shows one in full. Schemes:", entries.len()));
    for scheme in SCHEMES.iter().filter(|scheme| scheme.built()) {
        say(&format!("  {:18} {}", scheme.name, scheme.about));
    }
}

fn show(name: &str, entry: &Entry, machine: bool) {
    if machine {
        say(&format!("{}", as_json(name, entry)));
        return;
    }
    match entry.text {
        Some(text) => say(text),
        None => say(&serde_json::to_string_pretty(&entry.json).unwrap_or_default()),
    }
    let definition = &entry.definition;
    say("\n# in a policy:");
    say(&format!("# [routes.{name}]"));
    say(&format!("# path = \"/{name}\""));
    let params: Vec<String> = definition.params.iter().map(|name| format!("{name} = \"…\"")).collect();
    let params = if params.is_empty() { String::new() } else { format!(", params = {{ {} }}", params.join(", ")) };
    say(&format!("# verify = {{ provider = \"{name}\", secret = \"env:{}_SECRET\"{params} }}", name.to_uppercase().replace('-', "_")));
    say("# deliver = \"http://127.0.0.1:3000/hooks\"");
}

fn as_json(name: &str, entry: &Entry) -> serde_json::Value {
    let definition = &entry.definition;
    json!({ "name": name, "title": definition.title, "schemes": definition.schemes(), "proves": definition.verification().code(), "replay_key": definition.replay_key(), "definition": entry.json })
}
