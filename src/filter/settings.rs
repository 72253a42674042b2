//! One `[filters.NAME]` table. Pure: the component's bytes come through the section's inputs.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use data_encoding::HEXLOWER_PERMISSIVE;
use sha2::{Digest, Sha256};

use crate::{condition::Condition, secret::Secret, section::Section};

/// Largest `memory` that a filter may be given, in bytes: the size of a slot of the pool.
pub(super) const MEMORY_MAX: u64 = 512 << 20;

/// What the policy says of one filter.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) component: Arc<[u8]>,
    pub(super) digest: [u8; 32],
    /// The `config` table as JSON.
    pub(super) config: Arc<str>,
    /// The guest's own time for one event, in slices of a millisecond. Default 50 ms.
    pub(super) cpu: Duration,
    /// Wall time for one event with host calls; waiting for a free instance does not count. Default 1 s.
    pub(super) timeout: Duration,
    /// All linear memories of one instance together, in bytes. Default 32 MiB.
    pub(super) memory: u64,
    /// Events for one instance. Default 1; more only for filters that call themselves stateless.
    pub(super) reuse: u32,
    /// The events it is called for; all of them unless given.
    pub(super) when: Option<Arc<Condition>>,
    pub(super) on_error: OnError,
    pub(super) quarantine: Option<QuarantineSettings>,
    pub(super) allow: Arc<Allow>,
}

/// What becomes of an event whose filter failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnError {
    /// 500 `filter_failed`, and the claim fails. The default: nothing goes on unfiltered by mistake.
    Reject,
    /// On, as if the filter were not there.
    Skip,
}

/// When a filter that keeps failing is left out: after `faults` within `within`, for as long again. Off unless given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuarantineSettings {
    pub(super) faults: usize,
    pub(super) within: Duration,
}

/// What the policy grants; nothing unless named.
#[derive(Clone, Debug, Default)]
pub(super) struct Allow {
    pub(super) kv: bool,
    pub(super) random: bool,
    /// By the text that names each in the policy.
    pub(super) secrets: Vec<(String, Secret)>,
}

/// Shows neither the component nor the config, which may name what nobody should see.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Settings {
    /// Whether a filter made of these settings would be the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let secrets = |allow: &Allow| allow.secrets.iter().map(|(name, secret)| (name.clone(), secret.expose().to_vec())).collect::<Vec<_>>();
        let rest = |settings: &Self| (settings.digest, settings.cpu, settings.timeout, settings.memory, settings.reuse, settings.on_error, settings.quarantine);
        self.name == other.name
            && self.config == other.config
            && rest(self) == rest(other)
            && self.when.as_ref().map(|when| when.text()) == other.when.as_ref().map(|when| when.text())
            && (self.allow.kv, self.allow.random) == (other.allow.kv, other.allow.random)
            && secrets(&self.allow) == secrets(&other.allow)
    }

    /// The longest that one event may take in it.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

const CPU: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
const MEMORY: RangeInclusive<u64> = 1 << 20..=MEMORY_MAX;

/// Reads `[filters.NAME]`; problems are recorded, all of them.
pub(crate) fn read(name: &str, section: Section<'_>) -> Option<Settings> {
    if !section.has("component") {
        section.problem("component", format!("filter `{name}` names no component"), "add `component = \"path/to/filter.wasm\"`");
    }
    let component = section.file("component").map(|(_, bytes)| bytes);
    let digest: Option<[u8; 32]> = component.as_ref().map(|bytes| Sha256::digest(bytes).into());
    if let (Some(wanted), Some(digest)) = (section.opt_string("sha256"), digest) {
        pin(&section, &wanted, &digest);
    }
    let config = match section.item("config") {
        None => Some("{}".to_owned()),
        Some(item) if item.is_table() => item.json().map(|json| json.to_string()),
        Some(item) => item.section().map(|_| String::new()),
    };
    let cpu = bounded(&section, "cpu", Duration::from_millis(50), &CPU);
    let timeout = bounded(&section, "timeout", Duration::from_secs(1), &TIMEOUT);
    let memory = section.size_or("memory", 32 << 20);
    if !MEMORY.contains(&memory) {
        section.problem("memory", format!("`memory` is {memory} bytes"), "give a filter 1MiB to 512MiB");
    }
    let reuse = u32::try_from(section.u64_or("reuse", 1, 1..=1_000_000)).unwrap_or(1);
    let when = section.opt_string("when").and_then(|text| match Condition::compile(&text) {
        Ok(condition) => Some(Arc::new(condition)),
        Err(why) => {
            section.problem("when", why, "");
            None
        }
    });
    let on_error = section.choice("on_error", &[("reject", OnError::Reject), ("skip", OnError::Skip)]).unwrap_or(OnError::Reject);
    let quarantine = section.opt_section("quarantine").map(|section| {
        let faults = usize::try_from(section.u64_or("faults", 20, 1..=1000)).unwrap_or(20);
        let within = bounded(&section, "within", Duration::from_secs(60), &(Duration::from_secs(1)..=Duration::from_secs(86_400)));
        section.finish();
        QuarantineSettings { faults, within }
    });
    let allow = section.opt_section("allow").map(allow).unwrap_or_default();
    section.finish();
    let (component, digest, config) = (component?, digest?, config?);
    Some(Settings {
        name: name.into(),
        component: component.into(),
        digest,
        config: config.into(),
        cpu,
        timeout,
        memory,
        reuse,
        when,
        on_error,
        quarantine,
        allow: Arc::new(allow),
    })
}

fn bounded(section: &Section<'_>, key: &str, default: Duration, range: &RangeInclusive<Duration>) -> Duration {
    let found = section.duration_or(key, default);
    if !range.contains(&found) {
        let (low, high) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        section.problem(key, format!("`{key}` is {}", humantime::format_duration(found)), format!("a span of {low} to {high} is wanted"));
    }
    found
}

fn pin(section: &Section<'_>, wanted: &str, digest: &[u8; 32]) {
    let found = HEXLOWER_PERMISSIVE.encode(digest);
    match HEXLOWER_PERMISSIVE.decode(wanted.as_bytes()) {
        Ok(bytes) if bytes == digest => {}
        Ok(bytes) if bytes.len() == 32 => section.problem(
            "sha256",
            format!("the component's SHA-256 is {found}, not the pinned one"),
            "somebody replaced the file: put the reviewed one back, or review this one and pin it",
        ),
        _ => section.problem("sha256", "`sha256` is not 64 hexadecimal digits", format!("the component's is {found}")),
    }
}

fn allow(section: Section<'_>) -> Allow {
    let kv = section.bool_or("kv", false);
    let random = section.bool_or("random", false);
    let mut secrets = Vec::new();
    for (n, item) in section.item("secrets").and_then(|item| item.items()).unwrap_or_default().iter().enumerate() {
        if let Some(secret) = item.secret(n + 1) {
            // A literal is not a name that anybody should see: the label is.
            let name = item.as_str().filter(|text| !text.starts_with("literal:")).map_or_else(|| secret.label().to_string(), str::to_owned);
            secrets.push((name, secret));
        }
    }
    section.not_built("hosts", "filters with requests of their own come with the filter platform");
    section.finish();
    Allow { kv, random, secrets }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn check(text: &str, want: &[&str]) -> Option<Settings> {
        let inputs = Inputs::memory(&[("KEY", "k")], &[("f.wasm", b"\0asm")]);
        let reader = Reader::new(Source { name: "test.toml".into(), text: text.into() }, inputs);
        let table = reader.parse();
        let settings = read("f", reader.root(&table));
        let got: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
        assert_eq!(got, want, "{text}");
        settings
    }

    const DIGEST: &str = "cd5d4935a48c0672cb06407bb443bc0087aff947c6b864bac886982c73b3027f";

    #[test]
    fn defaults_are_safe() {
        let settings = check("component = \"f.wasm\"", &[]).expect("nothing is wrong");
        assert_eq!((&*settings.name, &*settings.component, &*settings.config), ("f", &b"\0asm"[..], "{}"));
        assert_eq!((settings.cpu, settings.timeout), (Duration::from_millis(50), Duration::from_secs(1)));
        assert_eq!((settings.memory, settings.reuse, settings.on_error, settings.quarantine), (32 << 20, 1, OnError::Reject, None));
        assert!(!settings.allow.kv && !settings.allow.random && settings.allow.secrets.is_empty());
    }

    #[test]
    fn everything_can_be_said() {
        let text = format!(
            r#"component = "f.wasm"
sha256 = "{DIGEST}"
config = {{ a = [1, "x"] }}
cpu = "5ms"
timeout = "2s"
memory = "64MiB"
reuse = 100
when = "event.type == 'push'"
on_error = "skip"
quarantine = {{ faults = 3, within = "10s" }}
allow = {{ kv = true, random = true, secrets = ["env:KEY", {{ from = "env:KEY", label = "k2" }}] }}"#
        );
        let settings = check(&text, &[]).expect("nothing is wrong");
        assert_eq!(&*settings.config, r#"{"a":[1,"x"]}"#);
        assert_eq!((settings.memory, settings.reuse, settings.on_error), (64 << 20, 100, OnError::Skip));
        assert_eq!(settings.quarantine, Some(QuarantineSettings { faults: 3, within: Duration::from_secs(10) }));
        let names: Vec<&str> = settings.allow.secrets.iter().map(|(name, _)| name.as_str()).collect();
        assert!(settings.allow.kv && settings.allow.random && settings.when.is_some());
        assert_eq!(names, ["env:KEY", "k2"]);
        assert!(!format!("{settings:?}").contains("config"));
    }

    #[test]
    fn mistakes_are_told() {
        check("", &["component: filter `f` names no component (add `component = \"path/to/filter.wasm\"`)"]);
        check("component = \"g.wasm\"", &["component: g.wasm cannot be read: entity not found (paths are relative to the policy file)"]);
        let wrong = "0".repeat(64);
        check(
            &format!("component = \"f.wasm\"\nsha256 = \"{wrong}\""),
            &[&format!(
                "sha256: the component's SHA-256 is {DIGEST}, not the pinned one (somebody replaced the file: put the reviewed one back, or review this one and pin it)"
            )],
        );
        check("component = \"f.wasm\"\nsha256 = \"abc\"", &[&format!("sha256: `sha256` is not 64 hexadecimal digits (the component's is {DIGEST})")]);
        check("component = \"f.wasm\"\ncpu = \"11s\"", &["cpu: `cpu` is 11s (a span of 1ms to 10s is wanted)"]);
        check("component = \"f.wasm\"\nmemory = \"1GiB\"", &["memory: `memory` is 1073741824 bytes (give a filter 1MiB to 512MiB)"]);
        check("component = \"f.wasm\"\nwhen = \"1 +\"", &["when: the condition cannot be read at column 4: mismatched input '<EOF>'"]);
        check("component = \"f.wasm\"\nconfig = 1", &["config: `config` is a whole number, not a table"]);
        check(
            "component = \"f.wasm\"\nallow = { hosts = [\"https://x\"] }",
            &["allow.hosts: `hosts` is not built yet: filters with requests of their own come with the filter platform (remove the key)"],
        );
    }
}
