//! JSON Schema of a payload, compiled once when the policy is read.
//!
//! Nothing is fetched: a schema refers to itself and to the drafts' own schemas only. Patterns are matched in linear time, so that no
//! body can make one take long; look-around and back-references are refused when the policy is read.

use std::fmt;

use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::Value;

use crate::reject::{Extra, Reason, Reject};

/// Failing places that an answer names at most.
const POINTERS: usize = 8;

/// Bytes of a pointer that an answer shows at most: it is made of the body's own keys.
const POINTER: usize = 256;

/// Bodies beyond this get the first place only: finding all of them collects an error for every element that does not fit.
const ALL_PLACES: usize = 64 * 1024;

/// The parsed body costs room only beyond this: it is gone before anything else is done.
const FREE: u64 = 1024 * 1024;

pub(crate) struct Schema(Validator);

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

/// Refuses every reference to elsewhere.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} is not part of the schema, and nothing is fetched").into())
    }
}

impl Schema {
    /// Compiles a schema's text; the error says what is wrong with it.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let schema: Value = serde_json::from_slice(text).map_err(|why| format!("it is not JSON: {why}"))?;
        if !schema.is_object() && !schema.is_boolean() {
            return Err("a schema is a JSON object, true or false".to_owned());
        }
        let options = jsonschema::options().with_retriever(Nowhere).with_pattern_options(PatternOptions::regex());
        options.build(&schema).map(Self).map_err(|why| {
            let place = why.instance_path().as_str();
            if place.is_empty() { why.to_string() } else { format!("{why}, at {place}") }
        })
    }

    /// Judges a body; `reserve` is asked for the room that a large one takes while it is parsed. Errors: [`Reason::SchemaInvalid`] with
    /// the first few places that do not fit, and [`Reason::NotJson`].
    pub(crate) fn check(&self, body: &[u8], reserve: &mut dyn FnMut(u64) -> Result<(), Reject>) -> Result<(), Reject> {
        let room = room(body);
        if room > FREE {
            reserve(room)?;
        }
        let instance: Value =
            serde_json::from_slice(body).map_err(|why| Reject::new(Reason::NotJson, format!("the body is not JSON, at line {}", why.line())))?;
        if self.0.is_valid(&instance) {
            return Ok(());
        }
        let mut places: Vec<(String, String)> = Vec::new();
        let mut note = |error: &ValidationError<'_>| {
            let pointer = shortened(error.instance_path().as_str());
            if !places.iter().any(|(known, _)| *known == pointer) {
                places.push((pointer, shortened(error.schema_path().as_str())));
            }
            places.len() < POINTERS
        };
        if body.len() <= ALL_PLACES {
            let _ = self.0.iter_errors(&instance).all(|error| note(&error));
        } else if let Err(error) = self.0.validate(&instance) {
            note(&error);
        }
        let (pointers, keywords): (Vec<String>, Vec<String>) = places.into_iter().unzip();
        Err(Reject::new(Reason::SchemaInvalid, format!("the body does not fit: {}", keywords.join(", "))).with(Extra::Pointers(pointers)))
    }
}

/// About what a parsed body takes: a map's first node is 632 bytes, an element or member of a half-full node some 150.
fn room(body: &[u8]) -> u64 {
    let count = |byte: u8| memchr::memchr_iter(byte, body).count() as u64;
    count(b'{') * 700 + count(b',') * 150 + body.len() as u64
}

fn shortened(pointer: &str) -> String {
    if pointer.len() <= POINTER { pointer.to_owned() } else { format!("{}…", &pointer[..pointer.floor_char_boundary(POINTER)]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUSH: &str = r##"{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["ref", "repository"],
        "properties": {
            "ref": { "type": "string", "pattern": "^refs/" },
            "repository": { "$ref": "#/$defs/repository" },
            "commits": { "type": "array", "items": { "type": "object", "required": ["id"] } }
        },
        "$defs": { "repository": { "type": "object", "properties": { "id": { "type": "integer" } } } }
    }"##;

    fn check(body: &str, want: Result<(), &[&str]>) {
        let schema = Schema::parse(PUSH.as_bytes()).expect("a schema");
        let got = schema.check(body.as_bytes(), &mut |_| Ok(())).map_err(|why| match why.extra {
            Extra::Pointers(pointers) => pointers,
            _ => vec![why.reason.code().to_owned()],
        });
        assert_eq!(got, want.map_err(|want| want.iter().map(|w| (*w).to_owned()).collect()), "{body}");
    }

    #[test]
    fn bodies_fit_or_say_where_not() {
        check(r#"{"ref":"refs/heads/main","repository":{"id":1}}"#, Ok(()));
        check(r#"{"ref":"heads/main","repository":{"id":"1"}}"#, Err(&["/ref", "/repository/id"]));
        check(r#"{"ref":"refs/x"}"#, Err(&[""]));
        check("[]", Err(&[""]));
        check(r#"{"ref":"refs/x","repository":{},"commits":[{"id":1},{},{"a/b~c":1},3]}"#, Err(&["/commits/1", "/commits/2", "/commits/3"]));
        let many = format!(r#"{{"ref":"refs/x","repository":{{}},"commits":[{}]}}"#, vec!["{}"; 100].join(","));
        check(&many, Err(&["/commits/0", "/commits/1", "/commits/2", "/commits/3", "/commits/4", "/commits/5", "/commits/6", "/commits/7"]));
        check("{", Err(&["not_json"]));
        check("", Err(&["not_json"]));
    }

    #[test]
    fn pointers_of_the_body_are_shortened() {
        let schema = Schema::parse(br#"{"additionalProperties":{"type":"string"}}"#).expect("a schema");
        let why = schema.check(format!("{{\"{}\":1}}", "ä".repeat(5000)).as_bytes(), &mut |_| Ok(())).expect_err("it does not fit");
        let Extra::Pointers(pointers) = why.extra else { panic!("pointers") };
        assert!(pointers[0].len() <= POINTER + 4 && pointers[0].ends_with('…'));
    }

    #[test]
    fn large_bodies_cost_room_and_get_one_place() {
        let schema = Schema::parse(br#"{"items":{"type":"string"}}"#).expect("a schema");
        let ask = |body: &str| {
            let mut asked = 0;
            let got = schema.check(body.as_bytes(), &mut |bytes| {
                asked += bytes;
                if asked > 100_000_000 { Err(Reject::new(Reason::Overloaded, "full")) } else { Ok(()) }
            });
            (got.map_err(|why| why.extra), asked)
        };
        assert_eq!(ask("[\"a\"]"), (Ok(()), 0));
        assert_eq!(ask(&format!("[{}1]", "1,".repeat(3))), (Err(Extra::Pointers(["/0", "/1", "/2", "/3"].map(str::to_owned).to_vec())), 0));
        let (got, asked) = ask(&format!("[{}1]", "1,".repeat(100_000)));
        assert_eq!((got, asked > 10_000_000), (Err(Extra::Pointers(vec!["/0".to_owned()])), true));
        assert_eq!(ask(&format!("[{}1]", "{},".repeat(500_000))).0, Err(Extra::None));
    }

    #[test]
    fn schemas_that_cannot_be_used_say_why() {
        let check = |text: &str, want: &str| {
            let why = Schema::parse(text.as_bytes()).err().unwrap_or_default();
            assert!(why.contains(want) && !want.is_empty(), "{text}: {why}");
        };
        check("{", "it is not JSON");
        check("[]", "a schema is a JSON object");
        check(r#"{"type":"strin"}"#, "/type");
        check(r#"{"$ref":"https://example.com/schema.json"}"#, "https://example.com/schema.json is not part of the schema");
        check(r#"{"$ref":"other.json"}"#, "other.json");
        check(r##"{"$ref":"#/$defs/none"}"##, "none");
        check(r#"{"properties":{"a":{"$ref":"file:///etc/passwd"}}}"#, "file:///etc/passwd is not part of the schema");
        check(r#"{"pattern":"(?=a)b"}"#, "(?=a)b");
        check(r#"{"patternProperties":{"(a)\\1":{}}}"#, "patternProperties");
    }
}
