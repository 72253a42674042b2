//! The policy's `config` table, as rules.

use serde::Deserialize;

/// What to redact, in the policy's order: the first rule that fits a value counts.
#[derive(Debug)]
pub struct Rules {
    pub rules: Vec<Rule>,
    pub not_json: NotJson,
}

#[derive(Debug)]
pub struct Rule {
    /// Never empty: the whole body has no pointer here.
    pub path: Vec<Segment>,
    pub action: Action,
}

/// One step of a pointer.
#[derive(Debug, PartialEq)]
pub enum Segment {
    /// A member's name, or an element's index in decimal.
    Name(String),
    /// `*`: every member or element.
    Any,
    /// `**`: any number of steps, none too.
    Deep,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Remove,
    /// A replacement text; with `keep`, asterisks and the last characters of the value.
    Mask {
        with: String,
        keep: usize,
    },
    /// SHA-256, or HMAC-SHA-256 under the secret of that name.
    Hash {
        key: Option<String>,
    },
}

/// What becomes of a body that is not JSON.
#[derive(Debug, Default, Deserialize, PartialEq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum NotJson {
    /// The filter fails: nothing leaves unredacted by mistake.
    #[default]
    Fail,
    Pass,
}

impl Rules {
    /// Reads the `config` table, which the gate has checked against the schema.
    pub fn read(config: &str) -> Result<Self, String> {
        let config: Config = serde_json::from_str(config).map_err(|error| format!("config: {error}"))?;
        let default = config.action.unwrap_or(Verb::Mask);
        let rules = config
            .fields
            .into_iter()
            .map(|field| {
                let field = match field {
                    Field::Pointer(pointer) => Detailed { pointer, ..Detailed::default() },
                    Field::Detailed(detailed) => detailed,
                };
                let action = match field.action.unwrap_or(default) {
                    Verb::Remove => Action::Remove,
                    Verb::Mask => Action::Mask { with: field.with.unwrap_or_else(|| "[redacted]".into()), keep: field.keep.unwrap_or(0) },
                    Verb::Hash => Action::Hash { key: field.key.or_else(|| config.key.clone()) },
                };
                Ok(Rule { path: segments(&field.pointer)?, action })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { rules, not_json: config.not_json })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    fields: Vec<Field>,
    action: Option<Verb>,
    key: Option<String>,
    #[serde(default)]
    not_json: NotJson,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Pointer(String),
    Detailed(Detailed),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Detailed {
    pointer: String,
    action: Option<Verb>,
    with: Option<String>,
    keep: Option<usize>,
    key: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Remove,
    Mask,
    Hash,
}

/// Splits a JSON pointer (RFC 6901) and reads `*` and `**`.
fn segments(pointer: &str) -> Result<Vec<Segment>, String> {
    let path = pointer.strip_prefix('/').ok_or_else(|| format!("pointer {pointer:?} does not begin with a slash"))?;
    Ok(path
        .split('/')
        .map(|segment| match segment {
            "*" => Segment::Any,
            "**" => Segment::Deep,
            name => Segment::Name(name.replace("~1", "/").replace("~0", "~")),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &str, expected: &[(&str, Action)]) {
        let rules = Rules::read(config).unwrap().rules;
        let paths: Vec<_> = rules.iter().map(|rule| format!("{:?}", rule.path)).collect();
        let wanted: Vec<_> = expected.iter().map(|(p, _)| format!("{:?}", segments(p).unwrap())).collect();
        assert_eq!(paths, wanted);
        for (rule, (_, action)) in rules.iter().zip(expected) {
            assert_eq!(&rule.action, action, "{config}");
        }
    }

    fn mask(with: &str, keep: usize) -> Action {
        Action::Mask { with: with.into(), keep }
    }

    #[test]
    fn a_bare_pointer_is_masked_unless_the_table_says_otherwise() {
        check(r#"{"fields":["/a"]}"#, &[("/a", mask("[redacted]", 0))]);
        check(r#"{"fields":["/a"],"action":"remove"}"#, &[("/a", Action::Remove)]);
        check(r#"{"fields":["/a"],"action":"hash"}"#, &[("/a", Action::Hash { key: None })]);
    }

    #[test]
    fn a_field_says_what_to_do_with_it() {
        check(
            r#"{"fields":[{"pointer":"/a","action":"mask","with":"x"},{"pointer":"/b","keep":4},{"pointer":"/c","action":"remove"}]}"#,
            &[("/a", mask("x", 0)), ("/b", mask("[redacted]", 4)), ("/c", Action::Remove)],
        );
        check(
            r#"{"fields":[{"pointer":"/a","action":"hash"},{"pointer":"/b","action":"hash","key":"env:B"}],"key":"env:A"}"#,
            &[("/a", Action::Hash { key: Some("env:A".into()) }), ("/b", Action::Hash { key: Some("env:B".into()) })],
        );
    }

    #[test]
    fn pointers_are_split_and_unescaped() {
        let name = |name: &str| Segment::Name(name.into());
        let split = |pointer| segments(pointer).unwrap();
        assert_eq!(split("/a/b"), [name("a"), name("b")]);
        assert_eq!(split("/a~1b/~0~01"), [name("a/b"), name("~~1")]);
        assert_eq!(split("/*/0/**/x"), [Segment::Any, name("0"), Segment::Deep, name("x")]);
        assert_eq!(split("/"), [name("")]);
        assert!(segments("a").is_err() && segments("").is_err());
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [r#"{}"#, r#"{"fields":["a"]}"#, r#"{"fields":[],"x":1}"#, r#"{"fields":[{"action":"mask"}]}"#] {
            assert!(Rules::read(bad).is_err(), "{bad}");
        }
    }
}
