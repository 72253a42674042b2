//! `hooklatch providers`: the preset catalogue, one preset in full, and `hooklatch.lock`.

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::{Value, json};

use super::{BAD, PolicyArgs, USAGE, complain, say, verify::catalogue};
use crate::{
    clock::Clock,
    config,
    ranges::{self, Change, lock::Lock},
    verify::{Catalogue, Checked, Definition, Entry, Retries, SCHEMES},
};

/// List the provider presets, or show one in full
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch providers                    every preset
  hooklatch providers pay                those whose name, title or scheme has `pay` in it
  hooklatch providers github             one preset in full
  hooklatch providers --config my.toml   the policy's own providers too
  hooklatch providers --lock             fetch the address ranges that the policy's allow_ips names, into hooklatch.lock beside it

Exit codes: 0 fine, 1 a list was not fetched, 2 wrong usage, nothing found or unreadable input.")]
pub(crate) struct ProvidersArgs {
    /// A provider to show in full, or words to search for
    #[arg(value_name = "NAME or WORD")]
    words: Vec<String>,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
    /// The catalogue as docs/providers.md has it
    #[arg(long, conflicts_with_all = ["json", "words", "lock"])]
    markdown: bool,
    /// Fetch published address ranges into hooklatch.lock beside the policy; with names: of these providers too
    #[arg(long)]
    lock: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &ProvidersArgs) -> ExitCode {
    if args.markdown {
        // A policy's own providers have no place in the documents.
        let _ = std::io::Write::write_all(&mut anstream::stdout(), markdown(&Catalogue::shipped()).as_bytes());
        return ExitCode::SUCCESS;
    }
    if args.lock {
        return lock(policy, args);
    }
    let catalogue = match catalogue(policy) {
        Ok(catalogue) => catalogue,
        Err(code) => return code,
    };
    if let [name] = args.words.as_slice()
        && let Some(entry) = catalogue.entry(name)
    {
        show(entry, args.json);
        return ExitCode::SUCCESS;
    }
    let found = search(&catalogue, &args.words);
    if found.is_empty() {
        let words = args.words.join(" ");
        complain(&format!("there is no provider `{words}`; {}", catalogue.hint(&words)));
        return ExitCode::from(USAGE);
    }
    list(&found, args);
    ExitCode::SUCCESS
}

/// The providers in whose name, other names, title or schemes every word stands; all without words.
fn search<'c>(catalogue: &'c Catalogue, words: &[String]) -> Vec<&'c Entry> {
    let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let holds = |definition: &Definition| {
        let texts = [definition.name.to_lowercase(), definition.title.as_deref().unwrap_or("").to_lowercase(), definition.schemes().join(" ")];
        words.iter().all(|word| texts.iter().chain(&definition.aliases).any(|text| text.contains(word.as_str())))
    };
    catalogue.names().into_iter().filter_map(|name| catalogue.entry(name)).filter(|entry| holds(&entry.definition)).collect()
}

const fn checked(definition: &Definition) -> &'static str {
    match definition.traits.checked {
        Some(Checked::Vectors) => "vectors",
        Some(Checked::Docs) => "docs",
        None => "-",
    }
}

const fn retries(definition: &Definition) -> &'static str {
    match definition.traits.retries {
        Some(Retries::Automatic) => "automatic",
        Some(Retries::Manual) => "manual",
        Some(Retries::Never) => "never",
        None => "-",
    }
}

/// Whether a provider publishes its addresses, and whether they are kept current.
fn published(definition: &Definition) -> &'static str {
    let source = &definition.traits.ip_ranges;
    match (&source.feed, source.list.is_empty()) {
        (Some(_), false) => "list, fetched",
        (Some(_), true) => "fetched",
        (None, false) => "list",
        (None, true) => "-",
    }
}

fn list(found: &[&Entry], args: &ProvidersArgs) {
    if args.json {
        let all: Vec<Value> = found.iter().map(|entry| as_json(entry)).collect();
        say(&Value::from(all).to_string());
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NAME", "SCHEME", "PROVES", "REPLAY KEY", "RANGES", "CHECKED", "PROVIDER"]);
    for entry in found {
        let definition = &entry.definition;
        table.add_row([
            &*definition.name,
            &*definition.schemes().join(", "),
            definition.verification().code(),
            definition.replay_key(),
            published(definition),
            checked(definition),
            definition.title.as_deref().unwrap_or("-"),
        ]);
    }
    // Cells are filled up with blanks, the last ones of a line too.
    table.to_string().lines().for_each(|line| say(line.trim_end()));
    let count = |what: &str| found.iter().filter(|entry| checked(&entry.definition) == what).count();
    say(&format!(
        "\n{} provider(s), {} checked against cases of the senders' own code, {} against their documents. `hooklatch providers NAME` shows one in full.",
        found.len(),
        count("vectors"),
        count("docs")
    ));
    if args.words.is_empty() {
        say("\nSchemes:");
        for scheme in SCHEMES.iter().filter(|scheme| scheme.built()) {
            say(&format!("  {:18} {}", scheme.name, scheme.about));
        }
    }
}

fn show(entry: &Entry, machine: bool) {
    if machine {
        say(&as_json(entry).to_string());
        return;
    }
    match entry.text {
        Some(text) => say(text),
        None => say(&serde_json::to_string_pretty(&entry.json).unwrap_or_default()),
    }
    say("\n# in a policy:");
    snippet(&entry.definition).lines().for_each(|line| say(&format!("# {line}")));
}

/// A route that names the provider.
fn snippet(definition: &Definition) -> String {
    let name = &definition.name;
    let variable = name.to_uppercase().replace('-', "_");
    let params: Vec<String> = definition.params.iter().map(|name| format!("{name} = \"…\"")).collect();
    let params = if params.is_empty() { String::new() } else { format!(", params = {{ {} }}", params.join(", ")) };
    let mut text = format!("[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"{name}\", secret = \"env:{variable}_SECRET\"{params} }}\n");
    let source = &definition.traits.ip_ranges;
    // Without a shipped list the key works only once the list was fetched. Writing to a string does not fail.
    let _ = match (source.list.is_empty(), &source.feed) {
        (false, _) => writeln!(text, "allow_ips = [\"provider:{name}\"]"),
        (true, Some(_)) => writeln!(text, "# allow_ips = [\"provider:{name}\"], after `hooklatch providers --lock {name}`"),
        (true, None) => Ok(()),
    };
    text.push_str("deliver = \"http://127.0.0.1:3000/hooks\"\n");
    text
}

fn as_json(entry: &Entry) -> Value {
    let definition = &entry.definition;
    let traits = &definition.traits;
    json!({
        "name": &*definition.name,
        "title": definition.title,
        "aliases": definition.aliases,
        "schemes": definition.schemes(),
        "proves": definition.verification().code(),
        "replay_key": definition.replay_key(),
        "retries": traits.retries.map(|_| retries(definition)),
        "answers_within_ms": traits.answers_within.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        "ip_ranges": published(definition),
        "checked": traits.checked.map(|_| checked(definition)),
        "docs": traits.docs,
        "shipped": entry.text.is_some(),
        "definition": entry.json,
    })
}

// -- the document --

/// The catalogue as a table of docs/providers.md.
pub(crate) fn markdown(catalogue: &Catalogue) -> String {
    let entries: Vec<&Entry> = catalogue.names().into_iter().filter_map(|name| catalogue.entry(name)).collect();
    let count = |what: &str| entries.iter().filter(|entry| checked(&entry.definition) == what).count();
    let mut by_scheme: BTreeMap<&str, usize> = BTreeMap::new();
    entries.iter().flat_map(|entry| entry.definition.schemes()).for_each(|scheme| *by_scheme.entry(scheme).or_default() += 1);
    let schemes: Vec<String> = by_scheme.iter().map(|(scheme, count)| format!("`{scheme}` {count}")).collect();
    let mut out = format!(
        "{} presets: {} rest on cases that the provider's own code or another one's made (`vectors`), {} on its documents (`docs`). By scheme: {}.\n\n",
        entries.len(),
        count("vectors"),
        count("docs"),
        schemes.join(", ")
    );
    out.push_str("| name | provider | scheme | signs | replay key | handshake | retries | waits | ranges | rests on |\n");
    out.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for entry in entries {
        let definition = &entry.definition;
        let title = definition.title.as_deref().unwrap_or("");
        let linked = definition.traits.docs.as_deref().map_or_else(|| cell(title), |docs| format!("[{}]({docs})", cell(title)));
        let aliases = definition.aliases.iter().map(|alias| format!(", `{alias}`")).collect::<String>();
        let waits = definition.traits.answers_within.map_or_else(|| "-".to_owned(), |span| humantime::format_duration(span).to_string());
        let row = [
            format!("`{}`{aliases}", definition.name),
            linked,
            definition.schemes().iter().map(|scheme| format!("`{scheme}`")).collect::<Vec<_>>().join(", "),
            signs(entry),
            definition.replay_key().to_owned(),
            if said(entry, "challenge") { "yes" } else { "-" }.to_owned(),
            retries(definition).to_owned(),
            waits,
            published(definition).to_owned(),
            checked(definition).to_owned(),
        ];
        let _ = writeln!(out, "| {} |", row.join(" | ")); // writing to a string does not fail
    }
    out
}

/// The tables of a definition: its own, and one for each of its forms.
fn tables(entry: &Entry) -> impl Iterator<Item = &Value> {
    std::iter::once(&entry.json).chain(entry.json.get("variants").and_then(Value::as_array).into_iter().flatten())
}

fn said(entry: &Entry, key: &str) -> bool {
    tables(entry).any(|table| table.get(key).is_some())
}

/// What its signatures cover: the templates of its forms, each once.
fn signs(entry: &Entry) -> String {
    let mut all: Vec<String> = Vec::new();
    for table in tables(entry) {
        let texts: Vec<&str> = match table.get("signed") {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        all.extend(texts.iter().map(|text| format!("`{}`", cell(text))));
    }
    if all.is_empty() && entry.definition.schemes().contains(&"standard-webhooks") {
        all.push("`{id}.{timestamp}.{body}`".to_owned());
    }
    all.dedup();
    match (all.is_empty(), entry.definition.verification().code()) {
        (true, "sender") => "nothing".to_owned(),
        (true, _) => "see its documents".to_owned(),
        (false, _) => all.join(" or "),
    }
}

/// Text as a cell of a table: no line end, no bar.
fn cell(text: &str) -> String {
    text.replace('\n', "\\n").replace('|', "\\|")
}

// -- the lock --

fn lock(policy: &PolicyArgs, args: &ProvidersArgs) -> ExitCode {
    let usage = |why: &str| {
        complain(why);
        ExitCode::from(USAGE)
    };
    let outline = match policy.find().and_then(|path| config::outline(&path)) {
        Ok(outline) => outline,
        Err(why) => return usage(&why),
    };
    let path = outline.folder.join(ranges::lock::NAME);
    let mut lock = match std::fs::read(&path) {
        // A lock with a merge conflict in it is written anew.
        Ok(bytes) => Lock::parse(&bytes).unwrap_or_default(),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Lock::default(),
        Err(why) => return usage(&format!("{} cannot be read: {why}", path.display())),
    };
    let mut names = outline.ranges.clone();
    names.extend(args.words.iter().cloned());
    let mut wanted = BTreeMap::new();
    for name in names.into_iter().chain(lock.0.keys().cloned()) {
        match outline.catalogue.definition(&name) {
            Some(definition) => {
                if let Some(feed) = &definition.traits.ip_ranges.feed {
                    wanted.insert(definition.name.to_string(), feed.clone());
                } else if args.words.contains(&name) {
                    return usage(&format!("`{name}` publishes no list that could be fetched"));
                }
            }
            None if lock.0.contains_key(&name) => {}
            None => return usage(&format!("there is no provider `{name}`; {}", outline.catalogue.hint(&name))),
        }
    }
    lock.0.retain(|name, _| wanted.contains_key(name));
    let fetcher = match ranges::Fetcher::new(&outline.ip_ranges.tls) {
        Ok(fetcher) => fetcher,
        Err(why) => return usage(&why),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return usage(&format!("the runtime cannot start: {why}")),
    };
    let (mut good, mut told) = (true, Vec::new());
    for (name, feed) in &wanted {
        match runtime.block_on(fetcher.networks(feed)) {
            Ok(networks) => {
                let before = lock.0.get(name).map(|entry| ranges::Known::new(entry.networks.clone(), ranges::Origin::Lock, None).nets).unwrap_or_default();
                let doubt = ranges::believable(&before, &networks).err();
                let change = Change::between(&before, &networks);
                if !args.json {
                    say(&format!("{name}: {} networks{}", networks.len(), if change.is_none() { ", as before" } else { "" }));
                    for (sign, nets) in [("+", change.as_ref().map(|c| &c.added)), ("-", change.as_ref().map(|c| &c.removed))] {
                        nets.into_iter().flatten().for_each(|net| say(&format!("  {sign} {net}")));
                    }
                    if let Some(doubt) = &doubt {
                        say(&format!("  look twice before you commit this: {doubt}"));
                    }
                }
                let nets = |nets: Option<&Vec<ipnet::IpNet>>| nets.into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
                told.push(json!({ "provider": name, "networks": networks.len(), "added": nets(change.as_ref().map(|c| &c.added)), "removed": nets(change.as_ref().map(|c| &c.removed)), "doubt": doubt }));
                let entry = ranges::lock::Entry::new(feed, networks, Clock::system().now().wall_ms);
                lock.0.insert(name.clone(), entry);
            }
            Err(why) => {
                good = false;
                complain(&format!("{name}: {why}; what was locked before stays"));
                told.push(json!({ "provider": name, "error": why }));
            }
        }
    }
    if let Err(why) = std::fs::write(&path, lock.write()) {
        return usage(&format!("{} cannot be written: {why}", path.display()));
    }
    if args.json {
        say(&json!({ "file": path.display().to_string(), "providers": told }).to_string());
    } else if wanted.is_empty() {
        say("no route's allow_ips names a provider whose list is fetched; name some: hooklatch providers --lock github");
    } else {
        say(&format!("{} holds {} provider(s): commit it beside the policy", path.display(), lock.0.len()));
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(BAD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_find_providers() {
        let catalogue = Catalogue::shipped();
        let find = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            search(&catalogue, &words).iter().map(|entry| entry.definition.name.to_string()).collect::<Vec<_>>()
        };
        assert!(find(&["paystack"]) == ["paystack"]);
        assert!(find(&["Pay"]).contains(&"razorpay".to_owned()));
        assert!(find(&["whatsapp"]) == ["meta"]);
        assert!(find(&["basic", "grafana"]) == ["grafana-basic"]);
        assert!(find(&["no such thing"]).is_empty());
        assert_eq!(find(&[]).len(), catalogue.names().len());
    }

    /// `docs/providers.md` holds the catalogue as the presets are now; `scripts/test --bless` writes it anew.
    #[test]
    fn the_document_lists_every_preset() {
        const START: &str = "<!-- written by `hooklatch providers --markdown` -->\n";
        const END: &str = "<!-- end -->";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/providers.md");
        let text = std::fs::read_to_string(&path).expect("the document");
        let (head, rest) = text.split_once(START).expect("the start of the catalogue");
        let (_, tail) = rest.split_once(END).expect("the end of the catalogue");
        let wanted = format!("{head}{START}\n{}\n{END}{tail}", markdown(&Catalogue::shipped()));
        if std::env::var_os("HOOKLATCH_BLESS").is_some() {
            std::fs::write(&path, wanted).expect("written");
            return;
        }
        assert!(text == wanted, "docs/providers.md is stale: run HOOKLATCH_BLESS=1 cargo test --lib the_document");
    }
}
