//! Content type, coding, JSON form and schema of a payload. Pure.
//!
//! Only what a route asks for in `validate` is judged. A coded body is undone to look inside, within the body's limit; what goes on is
//! the body as it was verified.

pub(crate) mod content;
pub(crate) mod json;
pub(crate) mod schema;

use bytes::Bytes;
use http::HeaderMap;

use self::{
    content::{Coded, Coding, MediaType},
    schema::Schema,
};
use crate::{
    event::Chunks,
    reject::{Reason, Reject},
    section::Section,
};

/// The deepest nesting a schema can be asked about: serde_json stops there.
const SCHEMA_DEPTH: u64 = 127;

/// A body from which on judging it as JSON, against a schema above all, takes a worker longer than its other requests should wait:
/// some 2 ms.
const LARGE: usize = 256 << 10;

/// The same behind a coding: deflate makes up to a thousand bytes of one.
const LARGE_CODED: usize = 4 << 10;

/// `validate` of one route.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Empty: any, or none.
    types: Vec<MediaType>,
    /// `None`: nothing was said, so a coding is refused only where the body must be read.
    decode: Option<Vec<Coding>>,
    json: Json,
    max_depth: usize,
    unique_keys: bool,
    schema: Option<Schema>,
}

/// Which bodies must be JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Json {
    /// Those whose content type says so.
    AsTyped,
    All,
    None,
}

impl Default for Rule {
    /// A route without `validate`: everything passes.
    fn default() -> Self {
        Self { types: Vec::new(), decode: None, json: Json::None, max_depth: 64, unique_keys: true, schema: None }
    }
}

impl Rule {
    /// Reads `validate` of a route: `content_types`; `schema`, a JSON Schema file; `json` (true: every body must be JSON; false: none is
    /// judged; default: those whose content type is JSON, and all where there is a schema); `max_depth` (default 64);
    /// `reject_duplicate_keys` (default true); `decode`, the content codings that are undone and taken.
    pub(crate) fn read(route: &Section<'_>) -> Self {
        let mut rule = Self::default();
        let Some(section) = route.opt_section("validate") else { return rule };
        for item in section.item("content_types").and_then(|item| item.items()).iter().flatten() {
            let Some(text) = item.string() else { continue };
            match MediaType::parse(&text) {
                Some(wanted) => rule.types.push(wanted),
                None => item.problem(
                    format!("`{text}` is not a content type"),
                    "write it like \"application/json\", \"application/*+json\" or \"text/*\", without parameters",
                ),
            }
        }
        if let Some(item) = section.item("decode") {
            rule.decode = Some(item.items().iter().flatten().filter_map(|item| item.choice(Coding::WORDS)).collect());
        }
        rule.schema = section.file("schema").and_then(|(path, text)| match Schema::parse(&text) {
            Ok(schema) => Some(schema),
            Err(why) => {
                section.problem("schema", format!("{} is not a schema that can be used: {why}", path.display()), "");
                None
            }
        });
        let schema = section.has("schema");
        rule.json = match section.opt_bool("json") {
            Some(true) => Json::All,
            Some(false) => Json::None,
            None if schema => Json::All,
            None => Json::AsTyped,
        };
        if schema && rule.json == Json::None {
            section.problem("json", "`json` is false, but a schema is for JSON", "remove `json`, or the schema");
        }
        let deepest = if schema { SCHEMA_DEPTH } else { json::MAX_DEPTH as u64 };
        rule.max_depth = usize::try_from(section.u64_or("max_depth", 64, 1..=deepest)).unwrap_or(64);
        rule.unique_keys = section.bool_or("reject_duplicate_keys", true);
        section.finish();
        rule
    }

    /// Whether a body with these headers has to be JSON.
    fn reads(&self, headers: &HeaderMap) -> bool {
        match self.json {
            Json::All => true,
            Json::AsTyped => content::is_json(headers),
            Json::None => false,
        }
    }

    /// Whether judging a payload of so many bytes takes long: [`payload`] is then better called beside the workers.
    pub(crate) fn takes_long(&self, headers: &HeaderMap, bytes: usize) -> bool {
        if bytes < LARGE_CODED {
            return false;
        }
        match content::coding(headers) {
            Coded::No => bytes >= LARGE && self.reads(headers),
            _ => self.decode.is_some(),
        }
    }
}

/// Judges a payload; hands out the bytes behind its coding where one was undone, for whoever reads the body next.
///
/// `limit` bounds those bytes, and `reserve` is asked for room for them first. Errors: [`Reason::UnsupportedMediaType`],
/// [`Reason::ContentEncoding`] for a coding that is not in `decode` or does not fit the body, [`Reason::NotJson`],
/// [`Reason::SchemaInvalid`] with the places, [`Reason::BodyTooLarge`] for what would inflate beyond the limit.
pub(crate) fn payload(
    rule: &Rule,
    headers: &HeaderMap,
    body: &mut Chunks,
    limit: u64,
    reserve: &mut dyn FnMut(u64) -> Result<(), Reject>,
) -> Result<Option<Bytes>, Reject> {
    if !rule.types.is_empty() {
        content::check_type(headers, &rule.types)?;
    }
    let read = rule.reads(headers);
    let decoded = match content::coding(headers) {
        Coded::No => None,
        Coded::By(coding) if rule.decode.as_ref().is_some_and(|taken| taken.contains(&coding)) => Some(content::inflate(coding, body, limit, reserve)?),
        _ if read || rule.decode.is_some() => return Err(Reject::new(Reason::ContentEncoding, "the content coding is not in `decode`")),
        _ => None,
    };
    if read {
        let text = match &decoded {
            Some(decoded) => &decoded[..],
            None => body.contiguous(),
        };
        json::check(text, rule.max_depth, rule.unique_keys).map_err(|flaw| Reject::new(Reason::NotJson, flaw.to_string()))?;
        if let Some(schema) = &rule.schema {
            schema.check(text, reserve)?;
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn read(text: &str) -> (Rule, Vec<String>) {
        let reader = Reader::new(
            Source { name: "t.toml".into(), text: text.into() },
            Inputs::memory(&[], &[("id.json", br#"{"required":["id"]}"#), ("bad.json", br#"{"type":1}"#), ("away.json", br#"{"$ref":"http://x/y"}"#)]),
        );
        let table = reader.parse();
        let root = reader.root(&table);
        let rule = Rule::read(&root);
        root.finish();
        (rule, reader.problems().iter().map(ToString::to_string).collect())
    }

    /// "" for a payload that passes, the decoded text for a coded one, else the refusal's code.
    fn ask(rule: &Rule, headers: &[(&str, &str)], body: &[u8]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).expect("a name"), value.parse().expect("a value"));
        }
        let mut chunks = Chunks::default();
        body.chunks(3).for_each(|piece| chunks.push(Bytes::copy_from_slice(piece)));
        let mut room = 1_900_000_u64;
        let mut reserve = |bytes: u64| {
            room = room.checked_sub(bytes).ok_or(Reject::new(Reason::Overloaded, "full"))?;
            Ok(())
        };
        let got = payload(rule, &map, &mut chunks, 2_000_000, &mut reserve);
        assert_eq!(chunks.to_bytes(), body, "the body stays as it came");
        got.map_or_else(|why| why.reason.code().to_owned(), |decoded| String::from_utf8_lossy(&decoded.unwrap_or_default()).into_owned())
    }

    fn check(keys: &str, headers: &[(&str, &str)], body: &[u8], want: &str) {
        let (rule, problems) = read(keys);
        assert_eq!(problems, [""; 0], "{keys}");
        assert_eq!(ask(&rule, headers, body), want, "{keys} {headers:?} {}", String::from_utf8_lossy(body));
    }

    #[test]
    fn only_what_was_asked_for_is_judged() {
        let json = [("content-type", "application/json")];
        check("", &[], b"\xff", "");
        check("", &[("content-type", "application/json"), ("content-encoding", "br")], b"{", "");
        check("validate = {}", &json, b"{", "not_json");
        check("validate = {}", &[("content-type", "text/plain")], b"{", "");
        check("validate = {}", &[], b"", "");
        check("validate = { json = false }", &json, b"{", "");
        check("validate = { json = true }", &[], b"{", "not_json");
        check("validate = { json = true }", &[], b" {\"a\": [1, 2]} ", "");
        check("validate = { json = true }", &[], b"", "not_json");
        check("validate = { content_types = [\"application/json\"] }", &json, b"{}", "");
        check("validate = { content_types = [\"application/json\"] }", &[("content-type", "text/plain")], b"{}", "unsupported_media_type");
        check("validate = { content_types = [\"application/json\"] }", &[], b"{}", "unsupported_media_type");
    }

    #[test]
    fn json_has_a_form() {
        let json = [("content-type", "application/vnd.github+json")];
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
        check("validate = {}", &json, &deep(64), "");
        check("validate = {}", &json, &deep(65), "not_json");
        check("validate = { max_depth = 2 }", &json, &deep(3), "not_json");
        check("validate = {}", &json, &deep(100_000), "not_json");
        check("validate = {}", &json, br#"{"a":1,"a":2}"#, "not_json");
        check("validate = {}", &json, br#"{"a":1,"\u0061":2}"#, "not_json");
        check("validate = { reject_duplicate_keys = false }", &json, br#"{"a":1,"a":2}"#, "");
        check("validate = {}", &json, b"\xef\xbb\xbf{}", "not_json");
        check("validate = {}", &json, b"{}{}", "not_json");
        check("validate = {}", &json, b"NaN", "not_json");
    }

    #[test]
    fn schemas_are_asked() {
        check("validate = { schema = \"id.json\" }", &[], br#"{"id":1}"#, "");
        check("validate = { schema = \"id.json\" }", &[], br#"{"id":1,"id":2}"#, "not_json");
        check("validate = { schema = \"id.json\" }", &[], br#"{"no":1}"#, "schema_invalid");
        check("validate = { schema = \"id.json\", max_depth = 127 }", &[], format!("{{\"id\":{}{}}}", "[".repeat(126), "]".repeat(126)).as_bytes(), "");
    }

    #[test]
    fn codings_are_undone_only_where_listed() {
        let coded = |coding: &'static str| [("content-type", "application/json"), ("content-encoding", coding)];
        let gz = content::tests::gzip(br#"{"id":1}"#);
        check("validate = {}", &coded("gzip"), &gz, "content_encoding");
        check("validate = { json = false }", &coded("gzip"), &gz, "");
        check("validate = { json = false }", &coded("br"), b"anything", "");
        check("validate = { decode = [\"gzip\"] }", &coded("gzip"), &gz, "{\"id\":1}");
        check("validate = { decode = [\"gzip\"] }", &coded("identity"), br#"{"id":1}"#, "");
        check("validate = { decode = [\"gzip\"] }", &coded("deflate"), &gz, "content_encoding");
        check("validate = { decode = [\"gzip\"] }", &coded("gzip, gzip"), &gz, "content_encoding");
        check("validate = { decode = [\"gzip\"] }", &coded("gzip"), br#"{"id":1}"#, "content_encoding");
        check("validate = { decode = [\"gzip\"], json = false }", &coded("br"), b"anything", "content_encoding");
        check("validate = { decode = [], json = false }", &coded("gzip"), &gz, "content_encoding");
        check("validate = { decode = [\"gzip\"], schema = \"id.json\" }", &coded("gzip"), &content::tests::gzip(b"{}"), "schema_invalid");
        check("validate = { decode = [\"gzip\"] }", &coded("gzip"), &content::tests::gzip(&[b' '; 1_500_000]), "overloaded");
        check("validate = { decode = [\"gzip\"] }", &coded("gzip"), &content::tests::gzip(&[b'['; 900_000]), "not_json");
        check("validate = { decode = [\"gzip\"], json = false }", &coded("gzip"), &content::tests::gzip(b"not json"), "not json");
    }

    #[test]
    fn problems_say_what_to_write() {
        let check = |text: &str, want: &[&str]| assert_eq!(read(text).1, want, "{text}");
        check(
            "validate = { content_types = [\"json\", 5] }",
            &[
                "validate.content_types[0]: `json` is not a content type (write it like \"application/json\", \"application/*+json\" or \"text/*\", without parameters)",
                "validate.content_types[1]: `validate.content_types[1]` is a whole number, not a string",
            ],
        );
        check("validate = { decode = [\"gzp\"] }", &["validate.decode[0]: `gzp` is not known here (did you mean \"gzip\"? It is one of: gzip, deflate)"]);
        check("validate = { decode = [\"br\"] }", &["validate.decode[0]: `br` is not known here (it is one of: gzip, deflate)"]);
        check(
            "validate = { schema = \"none.json\" }",
            &["validate.schema: none.json cannot be read: entity not found (paths are relative to the policy file)"],
        );
        check(
            "validate = { schema = \"id.json\", json = false }",
            &["validate.json: `json` is false, but a schema is for JSON (remove `json`, or the schema)"],
        );
        check(
            "validate = { schema = \"id.json\", max_depth = 128 }",
            &["validate.max_depth: `validate.max_depth` is 128 (a whole number from 1 to 127 is wanted)"],
        );
        check("validate = { scheme = \"id.json\" }", &["validate.scheme: unknown key `scheme` (did you mean `schema`?)"]);
        for (file, why) in [("bad.json", "1 is not valid under any of the schemas listed in the 'anyOf' keyword, at /type"), ("away.json", "http://x/y")] {
            let problems = read(&format!("validate = {{ schema = \"{file}\" }}")).1;
            assert!(
                problems.len() == 1
                    && problems[0].starts_with(&format!("validate.schema: {file} is not a schema that can be used: "))
                    && problems[0].contains(why),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn what_takes_long_is_known_from_the_head() {
        let check = |text: &str, headers: &[(&str, &str)], bytes: usize, want: bool| {
            let (rule, problems) = read(text);
            assert_eq!(problems, [""; 0]);
            let pairs = headers.iter().map(|(name, value)| (http::HeaderName::try_from(*name).expect("a name"), value.parse().expect("a value")));
            assert_eq!(rule.takes_long(&pairs.collect(), bytes), want, "{text} {headers:?} {bytes}");
        };
        let (json, gzip) = (("content-type", "application/json"), ("content-encoding", "gzip"));
        check("validate = { schema = \"id.json\" }", &[], LARGE, true);
        check("validate = { schema = \"id.json\" }", &[], LARGE - 1, false);
        check("validate = {}", &[json], LARGE, true);
        check("validate = {}", &[], LARGE, false);
        check("", &[json], LARGE, false);
        check("validate = { decode = [\"gzip\"] }", &[gzip], LARGE_CODED, true);
        check("validate = { decode = [\"gzip\"] }", &[gzip], LARGE_CODED - 1, false);
        check("validate = {}", &[json, gzip], LARGE, false);
    }
}
