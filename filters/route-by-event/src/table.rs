//! The policy's `config` table, and where an event type leads by it.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

/// Event types and their destinations.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A key is an event type, or the beginning of one followed by a star.
    table: BTreeMap<String, Destinations>,
    default: Option<Destinations>,
}

/// One name or a list. Read by hand: an untagged enum would first copy the value into a tree, for every event.
#[derive(Debug)]
struct Destinations(Vec<String>);

impl<'de> Deserialize<'de> for Destinations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Destinations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a list of names")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Destinations, E> {
                Ok(Destinations(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Destinations, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = names.next_element()? {
                    list.push(name);
                }
                Ok(Destinations(list))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

/// Where an event goes.
#[derive(Debug, PartialEq)]
pub enum Way {
    /// To these entries of the route's `deliver`.
    To(Vec<String>),
    /// Nowhere: the table wants none of its kind.
    Nowhere,
    /// The table says nothing about it.
    AsThePolicySays,
}

impl Config {
    /// Reads the `config` table, which the gate has checked against the schema.
    pub fn read(config: &str) -> Result<Self, String> {
        serde_json::from_str(config).map_err(|error| format!("config: {error}"))
    }

    /// The exact type first, then the longest beginning, then the default. An event without a type has the default.
    pub fn way(mut self, event_type: Option<&str>) -> Way {
        let key = event_type.and_then(|wanted| {
            if self.table.contains_key(wanted) {
                return Some(wanted.to_owned());
            }
            let begins = |key: &&String| key.strip_suffix('*').is_some_and(|begin| wanted.starts_with(begin));
            self.table.keys().filter(begins).max_by_key(|key| key.len()).cloned()
        });
        match key.and_then(|key| self.table.remove(&key)).or(self.default) {
            None => Way::AsThePolicySays,
            Some(Destinations(names)) if names.is_empty() => Way::Nowhere,
            Some(Destinations(names)) => Way::To(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"{
        "table": {
            "push": "ci",
            "pull_request": ["ci", "review"],
            "pull_request_*": "review",
            "pull_*": "other",
            "ping": [],
            "*": "bus"
        },
        "default": ["bus", "archive"]
    }"#;

    fn check(config: &str, event_type: Option<&str>, expected: &[&str]) {
        let way = Config::read(config).unwrap().way(event_type);
        assert_eq!(way, Way::To(expected.iter().map(|&name| name.into()).collect()), "{event_type:?}");
    }

    #[test]
    fn the_exact_type_is_first_then_the_longest_beginning() {
        check(TABLE, Some("push"), &["ci"]);
        check(TABLE, Some("pull_request"), &["ci", "review"]);
        check(TABLE, Some("pull_request_review"), &["review"]);
        check(TABLE, Some("pull_"), &["other"]);
        check(TABLE, Some("Push"), &["bus"]);
        check(TABLE, Some(""), &["bus"]);
    }

    #[test]
    fn without_a_type_the_default_counts() {
        check(TABLE, None, &["bus", "archive"]);
        check(r#"{"table":{"a":"b"},"default":"c"}"#, Some("x"), &["c"]);
    }

    #[test]
    fn an_empty_list_is_nowhere_and_silence_is_the_policy() {
        assert_eq!(Config::read(TABLE).unwrap().way(Some("ping")), Way::Nowhere);
        assert_eq!(Config::read(r#"{"table":{"a":"b"}}"#).unwrap().way(Some("x")), Way::AsThePolicySays);
        assert_eq!(Config::read(r#"{"table":{"a":"b"},"default":[]}"#).unwrap().way(None), Way::Nowhere);
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in ["{}", r#"{"table":{"a":1}}"#, r#"{"table":{},"defualt":"x"}"#, "[]"] {
            assert!(Config::read(bad).is_err(), "{bad}");
        }
    }
}
