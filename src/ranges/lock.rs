//! `hooklatch.lock`: the ranges that a team pins, written by `hooklatch providers --lock` and committed beside the policy.
//!
//! TOML, one table for each provider, one network a line, sorted: a review sees what came and went.

use std::{collections::BTreeMap, fmt::Write};

use ipnet::IpNet;
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Feed, Known, Origin};

/// The file's name; it stands beside the policy file.
pub(crate) const NAME: &str = "hooklatch.lock";

const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    ip_ranges: BTreeMap<String, Entry>,
}

/// What is pinned of one provider.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// RFC 3339.
    pub(crate) fetched: String,
    /// The pages it was fetched from.
    pub(crate) from: Vec<String>,
    #[serde(with = "super::set::texts")]
    pub(crate) networks: Vec<IpNet>,
}

/// The pinned ranges, by provider.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lock(pub(crate) BTreeMap<String, Entry>);

impl Entry {
    pub(crate) fn new(feed: &Feed, networks: Vec<IpNet>, at_ms: i64) -> Self {
        let at = OffsetDateTime::from_unix_timestamp(at_ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let from = feed.urls.iter().map(ToString::to_string).collect();
        Self { fetched: at.format(&Rfc3339).unwrap_or_default(), from, networks }
    }

    fn at_ms(&self) -> Result<i64, String> {
        let at =
            OffsetDateTime::parse(&self.fetched, &Rfc3339).map_err(|_| format!("`{}` is no time; write `hooklatch providers --lock` anew", self.fetched))?;
        Ok(at.unix_timestamp().saturating_mul(1000))
    }
}

impl Lock {
    /// The error says what is wrong and what to do.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "the file is not UTF-8".to_owned())?;
        let file: File = toml::from_str(text).map_err(|why| format!("{}; write it anew with `hooklatch providers --lock`", why.message()))?;
        if file.version != VERSION {
            return Err(format!("version {} is not known; write it anew with `hooklatch providers --lock`", file.version));
        }
        for (name, entry) in &file.ip_ranges {
            entry.at_ms()?;
            if entry.networks.is_empty() {
                return Err(format!("`{name}` has no network; write it anew with `hooklatch providers --lock`"));
            }
        }
        Ok(Self(file.ip_ranges))
    }

    /// What is pinned of a provider, fetched from the pages that its definition names now.
    pub(super) fn get(&self, name: &str, feed: &Feed) -> Option<Known> {
        let entry = self.0.get(name).filter(|entry| entry.from.iter().eq(feed.urls.iter().map(url::Url::as_str)))?;
        Some(Known::new(entry.networks.clone(), Origin::Lock, entry.at_ms().ok()))
    }

    pub(crate) fn write(&self) -> String {
        let mut out = format!(
            "# Address ranges as providers published them. Written by `hooklatch providers --lock`; commit it beside the policy.\nversion = {VERSION}\n"
        );
        let quoted = |text: &str| toml_string(text);
        for (name, entry) in &self.0 {
            let mut networks = entry.networks.clone();
            networks.sort_unstable();
            networks.dedup();
            let from: Vec<String> = entry.from.iter().map(|url| quoted(url)).collect();
            // Writing to a string does not fail.
            let _ = write!(out, "\n[ip_ranges.{}]\nfetched = {}\nfrom = [{}]\nnetworks = [\n", quoted(name), quoted(&entry.fetched), from.join(", "));
            networks.iter().for_each(|net| out.push_str(&format!("  \"{net}\",\n")));
            out.push_str("]\n");
        }
        out
    }
}

/// A basic string: URLs, names and times hold nothing else that needs an escape.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_written() {
        let entry = Entry {
            fetched: "2026-11-24T00:00:00Z".into(),
            from: vec!["https://a.example/x?a=\"b\"".into()],
            networks: ["2001:db8::/32", "192.0.2.0/24", "10.0.0.0/8"].iter().map(|net| net.parse().expect("a network")).collect(),
        };
        let lock = Lock([("acme".to_owned(), entry)].into());
        let text = lock.write();
        let read = Lock::parse(text.as_bytes()).expect("readable");
        assert_eq!(read.write(), text);
        assert!(text.contains("  \"10.0.0.0/8\",\n  \"192.0.2.0/24\",\n  \"2001:db8::/32\",\n"), "{text}");
        assert_eq!(Lock::parse(Lock::default().write().as_bytes()).expect("readable").0.len(), 0);
    }

    #[test]
    fn bad_locks_say_why() {
        let check = |text: &str, want: &str| assert!(Lock::parse(text.as_bytes()).is_err_and(|why| why.contains(want)), "{text}");
        check("", "version");
        check("version = 2", "version 2 is not known");
        check("version = 1\nnonsense = 1", "unknown field");
        check("version = 1\n[ip_ranges.a]\nfetched = \"2026-11-24T00:00:00Z\"\nfrom = []\nnetworks = []", "`a` has no network");
        check("version = 1\n[ip_ranges.a]\nfetched = \"yesterday\"\nfrom = []\nnetworks = [\"192.0.2.0/24\"]", "`yesterday` is no time");
        check("version = 1\n[ip_ranges.a]\nfetched = \"\"\nfrom = []\nnetworks = [\"host\"]", "anew");
    }
}
