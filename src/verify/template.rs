//! The template of what is signed: `v0:{timestamp}:{body}`.
//!
//! A template must be readable in one way only. If two requests could give the same signed bytes, a sender's good signature would
//! also fit a request that it never made: with `{id}{timestamp}{body}` the end of an id could become the start of a time. Parts
//! of a fixed shape (times, digests, secrets, params) end by themselves. Of the others all but one must be parted from what
//! follows: by a literal that the value is then refused for holding, or, right before the body, by being plain text in front of a body
//! that does not start like it. What cannot be parted is refused when the policy is read, unless `ambiguous = true` accepts that a
//! provider signs this way.

use std::{collections::BTreeMap, fmt};

use http::{HeaderName, HeaderValue};

use super::{
    Facts, form,
    place::{At, Body, Pick, Place, Pointers},
    timestamp::Timestamp,
};
use crate::{
    event::is_credential,
    reject::{Reason, Reject},
    validate::json::Pointer,
};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
    /// Whether a body must not start with a byte that the text before it could hold.
    guard_body: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(Vec<u8>),
    Body,
    /// The body as one JSON string, as `JSON.stringify` writes it.
    BodyJson,
    BodySha256,
    BodyCrc32,
    Timestamp,
    Method,
    /// The public URL, query included.
    Url(Port),
    /// The public URL without its query.
    UrlBase,
    Path,
    Target,
    Value {
        place: Place,
        guard: Guard,
    },
    FormSorted,
    QuerySorted,
    Secret,
    /// What the route configures; a literal once [`Template::bind`] has put it there.
    Param(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    AsIs,
    /// Any port is left out.
    Without,
    /// A default port is written out where there is none.
    With,
}

/// What a value must not hold, so that its end is certain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guard {
    #[default]
    Free,
    Not(u8),
    /// Only the characters of a URL, which no JSON object, array or string starts with.
    Plain,
}

/// What a template is read with.
pub(super) struct Context<'r> {
    pub(super) timestamp: Option<&'r Timestamp>,
    pub(super) id: Option<&'r Place>,
    /// The first signature's place, whose pairs `{field:N}` reads.
    pub(super) signature: Option<&'r Place>,
    /// What a route will configure, by name.
    pub(super) params: &'r [String],
    pub(super) pointers: &'r Pointers,
    pub(super) ambiguous: bool,
}

impl Template {
    pub(super) fn parse(text: &str, context: &Context<'_>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.extend_from_slice(&rest.as_bytes()[..at]);
            let double = rest.as_bytes().get(at + 1) == Some(&rest.as_bytes()[at]);
            if double {
                literal.push(rest.as_bytes()[at]);
                rest = &rest[at + 2..];
                continue;
            }
            if rest.as_bytes()[at] == b'}' {
                return Err("a `}` stands alone; write `}}` for the character".to_owned());
            }
            let end = rest[at..].find('}').ok_or("a `{` is not closed; write `{{` for the character")? + at;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::parse(&rest[at + 1..end], context)?);
            rest = &rest[end + 1..];
        }
        literal.extend_from_slice(rest.as_bytes());
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        let mut template = Self { parts: merge(parts), guard_body: false };
        template.part_values(context)?;
        Ok(template)
    }

    /// Puts a route's values in the place of `{param:N}`.
    pub(super) fn bind(&mut self, params: &BTreeMap<String, String>) {
        for part in &mut self.parts {
            if let Part::Param(name) = part {
                *part = Part::Literal(params.get(name).cloned().unwrap_or_default().into_bytes());
            }
        }
    }

    /// Makes the template readable in one way, or says which two parts run together.
    fn part_values(&mut self, context: &Context<'_>) -> Result<(), String> {
        let variable: Vec<usize> = (0..self.parts.len()).filter(|i| self.variable(*i)).collect();
        let (Some(first), Some(last)) = (variable.first().copied(), variable.last().copied()) else {
            return Err("the template has nothing of the request in it".to_owned());
        };
        let mut from = first;
        while from < last {
            if !self.variable(from) {
                from += 1;
                continue;
            }
            let next = match self.parts.get(from + 1) {
                Some(Part::Literal(next)) => next.first().copied(),
                _ => None,
            };
            if next.is_some_and(|byte| self.parts[from].never_holds(byte)) {
                from += 1;
                continue;
            }
            // Plain text, then parts that end by themselves, then the body.
            let body = (from + 1..self.parts.len()).find(|i| self.variable(*i)).filter(|i| matches!(self.parts[*i], Part::Body));
            let between_plain = body.is_some_and(|body| self.parts[from + 1..body].iter().all(Part::plain_text));
            if let Some(body) = body
                && between_plain
                && self.parts[from].make_plain()
            {
                self.guard_body = true;
                from = body;
                continue;
            }
            break;
        }
        let mut to = last;
        while to > from {
            if !self.variable(to) {
                to -= 1;
                continue;
            }
            let before = match &self.parts[to - 1] {
                Part::Literal(before) => before.last().copied(),
                _ => None,
            };
            if !before.is_some_and(|byte| self.parts[to].never_holds(byte)) {
                break;
            }
            to -= 1;
        }
        if from >= to || context.ambiguous {
            return Ok(());
        }
        let next = (from + 1..=to).find(|i| self.variable(*i)).unwrap_or(to);
        Err(format!("{} and {} run together: one set of signed bytes could be read in two ways", self.parts[from], self.parts[next]))
    }

    /// Whether a part's length is not known from itself.
    fn variable(&self, at: usize) -> bool {
        match &self.parts[at] {
            Part::Literal(_) | Part::BodyJson | Part::BodySha256 | Part::Timestamp | Part::Secret | Part::Param(_) => false,
            Part::Method => !matches!(self.parts.get(at + 1), Some(Part::Url(_) | Part::UrlBase | Part::Path | Part::Target)),
            _ => true,
        }
    }

    /// Whether the signed time must say its zone: where what follows it has no separator.
    pub(super) fn zone_needed(&self) -> bool {
        self.parts.windows(2).any(|pair| {
            matches!(pair[0], Part::Timestamp) && !matches!(&pair[1], Part::Literal(next) if !next[0].is_ascii_digit() && !b".+-Z".contains(&next[0]))
        })
    }

    /// Whether the signature covers every byte of the body.
    pub(super) fn covers_body(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Body | Part::BodyJson | Part::BodySha256 | Part::FormSorted))
    }

    pub(super) fn has_secret(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Secret))
    }

    /// Whether the body stands last: a plain digest over such a template can be continued without the secret.
    pub(super) fn ends_with_body(&self) -> bool {
        matches!(self.parts.last(), Some(Part::Body))
    }

    pub(super) fn has_timestamp(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Timestamp))
    }

    pub(super) fn needs_body_digest(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::BodySha256 | Part::BodyCrc32))
    }

    /// Whether the signature covers the whole query string.
    pub(super) fn covers_query(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Url(_) | Part::Target | Part::QuerySorted))
    }

    /// Whether the path is signed, so that a request for one route does not fit another.
    pub(super) fn covers_path(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Url(_) | Part::UrlBase | Part::Path | Part::Target))
    }

    /// The places whose values are signed by themselves.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value { place, .. } => Some(place),
            _ => None,
        })
    }

    /// Whether a value is covered by the signature.
    pub(super) fn covers(&self, place: &Place) -> bool {
        if self.places().any(|signed| signed == place) {
            return true;
        }
        match &place.at {
            At::Json { .. } | At::Form(_) => self.covers_body(),
            At::Query(_) => self.covers_query(),
            At::Header(_) | At::Numbered(_) => false,
        }
    }

    /// Whether everything but the body is known from the head, and the body stands once: then it is fed as it arrives.
    pub(super) fn streams(&self) -> bool {
        let bodies = self.parts.iter().filter(|part| matches!(part, Part::Body)).count();
        bodies <= 1
            && self.parts.iter().all(|part| match part {
                Part::BodyJson | Part::BodySha256 | Part::BodyCrc32 | Part::FormSorted => false,
                Part::Value { place, .. } => place.in_head(),
                _ => true,
            })
    }

    /// What comes before the body; everything where there is none.
    pub(super) fn head(&self, render: &Render<'_>, put: &mut dyn FnMut(&[u8])) -> Result<(), Reject> {
        let end = self.parts.iter().position(|part| matches!(part, Part::Body)).unwrap_or(self.parts.len());
        self.parts[..end].iter().try_for_each(|part| part.render(render, put))
    }

    pub(super) fn has_body(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Body))
    }

    /// What comes after the body.
    pub(super) fn tail(&self, render: &Render<'_>, put: &mut dyn FnMut(&[u8])) -> Result<(), Reject> {
        let start = self.parts.iter().position(|part| matches!(part, Part::Body)).map_or(self.parts.len(), |at| at + 1);
        self.parts[start..].iter().try_for_each(|part| part.render(render, put))
    }

    /// All of it, the body being there.
    pub(super) fn all(&self, render: &Render<'_>, put: &mut dyn FnMut(&[u8])) -> Result<(), Reject> {
        self.parts.iter().try_for_each(|part| part.render(render, put))
    }

    /// All of it, part by part, with what each is: for people. A part may come in several pieces.
    pub(super) fn each(&self, render: &Render<'_>, put: &mut dyn FnMut(Shown, &[u8])) -> Result<(), Reject> {
        for part in &self.parts {
            let shown = match part {
                Part::Body => Shown::Body("body"),
                Part::BodyJson => Shown::Body("body as a JSON string"),
                Part::FormSorted => Shown::Body("form fields, sorted"),
                Part::Secret => Shown::Hidden("secret"),
                Part::Value { place: Place { at: At::Header(name), .. }, .. } if is_credential(name, &HeaderValue::from_static("")) => {
                    Shown::Hidden("credential")
                }
                Part::Url(_) | Part::UrlBase | Part::Path | Part::Target | Part::QuerySorted | Part::Value { place: Place { at: At::Query(_), .. }, .. } => {
                    Shown::Url
                }
                Part::Literal(_) | Part::BodySha256 | Part::BodyCrc32 | Part::Timestamp | Part::Method | Part::Value { .. } | Part::Param(_) => Shown::Text,
            };
            part.render(render, &mut |bytes| put(shown, bytes))?;
        }
        Ok(())
    }

    /// Refuses a body that could be the rest of the text before it.
    pub(super) fn check_body(&self, first: Option<u8>) -> Result<(), Reject> {
        if self.guard_body && first.is_some_and(is_plain) {
            return Err(Reject::new(
                Reason::SignatureMalformed,
                "the body starts like the text that is signed right before it, so that the signature would fit two requests",
            ));
        }
        Ok(())
    }
}

/// How a part of what is signed may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Text,
    /// A part of a URL, whose query may hold a credential.
    Url,
    /// The body, in some form: its length only.
    Body(&'static str),
    /// What nobody may see.
    Hidden(&'static str),
}

/// What the parts are rendered from.
pub(super) struct Render<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) body: Option<Body<'a>>,
    pub(super) timestamp: Option<&'a Timestamp>,
    pub(super) secret: Option<&'a [u8]>,
    /// The body's SHA-256 and CRC-32, where the template needs them.
    pub(super) digest: Option<([u8; 32], u32)>,
}

/// The characters of RFC 3986 but for brackets: what a URL's path and query may hold.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#@!$&'()*+,;=%".contains(&byte)
}

impl Part {
    fn parse(text: &str, context: &Context<'_>) -> Result<Self, String> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let value = |place: Place| Self::Value { place, guard: Guard::Free };
        let whole = |at: At| Place { at, prefix: String::new(), pick: Pick::Whole };
        if let Some(argument) = argument {
            if argument.is_empty() {
                return Err(format!("`{{{text}}}` names nothing"));
            }
            return match name {
                "header" => HeaderName::from_bytes(argument.as_bytes())
                    .map(|name| value(Place::header(name)))
                    .map_err(|_| format!("`{argument}` is not the name of a header")),
                "query" => Ok(value(whole(At::Query(argument.to_owned())))),
                "form" => Ok(value(whole(At::Form(argument.to_owned())))),
                "json" => {
                    let pointer = Pointer::parse(argument).map_err(|why| format!("`{argument}` is not a JSON pointer: {why}"))?;
                    Ok(value(whole(At::Json { index: context.pointers.index(&pointer), pointer, kind: None })))
                }
                "field" => match context.signature {
                    Some(Place { at, pick: Pick::Pairs { separator, assign, .. }, .. }) => {
                        let pick = Pick::Pairs { separator: separator.clone(), assign: assign.clone(), field: argument.to_owned() };
                        Ok(value(Place { at: at.clone(), prefix: String::new(), pick }))
                    }
                    _ => Err("`{field:…}` needs a signature in the format \"pairs\"".to_owned()),
                },
                "param" => {
                    if context.params.iter().any(|known| known == argument) {
                        Ok(Self::Param(argument.to_owned()))
                    } else {
                        Err(format!("`{argument}` is not in `params`"))
                    }
                }
                _ => Err(unknown(text)),
            };
        }
        match name {
            "body" => Ok(Self::Body),
            "body_json" => Ok(Self::BodyJson),
            "body_sha256_hex" => Ok(Self::BodySha256),
            "body_crc32" => Ok(Self::BodyCrc32),
            "timestamp" => context.timestamp.map(|_| Self::Timestamp).ok_or_else(|| "`{timestamp}` needs `timestamp = { … }`".to_owned()),
            "id" => context.id.map(|place| value(place.clone())).ok_or_else(|| "`{id}` needs `delivery_id = { … }`".to_owned()),
            "method" => Ok(Self::Method),
            "url" => Ok(Self::Url(Port::AsIs)),
            "url_without_port" => Ok(Self::Url(Port::Without)),
            "url_with_port" => Ok(Self::Url(Port::With)),
            "url_base" => Ok(Self::UrlBase),
            "path" => Ok(Self::Path),
            "target" => Ok(Self::Target),
            "form_sorted" => Ok(Self::FormSorted),
            "query_sorted" => Ok(Self::QuerySorted),
            "secret" => Ok(Self::Secret),
            _ => Err(unknown(text)),
        }
    }

    /// Whether the part cannot hold `byte`, made so where that can be checked in every request.
    fn never_holds(&mut self, byte: u8) -> bool {
        match self {
            Self::Value { guard, .. } => match guard {
                Guard::Free => {
                    *guard = Guard::Not(byte);
                    true
                }
                Guard::Not(other) => *other == byte,
                Guard::Plain => !is_plain(byte),
            },
            Self::Method => !byte.is_ascii_uppercase(),
            Self::BodyCrc32 => !byte.is_ascii_digit(),
            Self::UrlBase | Self::Path => (!is_plain(byte) || byte == b'?') && !b"[]".contains(&byte),
            Self::Url(_) | Self::Target => !is_plain(byte) && !b"[]".contains(&byte),
            _ => false,
        }
    }

    /// Whether the part holds plain characters only, made so where that can be checked in every request.
    fn make_plain(&mut self) -> bool {
        match self {
            Self::Value { guard: guard @ Guard::Free, .. } => {
                *guard = Guard::Plain;
                true
            }
            Self::Value { guard, .. } => *guard == Guard::Plain,
            Self::Method | Self::BodyCrc32 | Self::Url(_) | Self::UrlBase | Self::Path | Self::Target => true,
            _ => false,
        }
    }

    /// Whether a part of a fixed shape holds plain characters only.
    fn plain_text(&self) -> bool {
        match self {
            Self::Literal(text) => text.iter().copied().all(is_plain),
            // A date of the form http-date holds blanks; a body that starts with one is then simply not told apart, so it is not plain.
            Self::Timestamp | Self::BodySha256 => true,
            _ => false,
        }
    }

    fn render(&self, from: &Render<'_>, put: &mut dyn FnMut(&[u8])) -> Result<(), Reject> {
        const AT_HAND: &str = "the engine has the whole body wherever a template needs it";
        let facts = from.facts;
        match self {
            Self::Literal(text) => put(text),
            Self::Body => from.body.expect(AT_HAND).whole.chunks().pieces().for_each(|piece| put(piece)),
            Self::BodyJson => json_string(from.body.expect(AT_HAND).whole.bytes(), put)?,
            Self::BodySha256 => put(super::mac::Encoding::Hex.encode(&from.digest.expect(AT_HAND).0).as_bytes()),
            Self::BodyCrc32 => put(from.digest.expect(AT_HAND).1.to_string().as_bytes()),
            Self::Timestamp => {
                let place = &from.timestamp.expect("a template with a time is read only beside one").place;
                let text = place.value(facts, from.body)?.ok_or_else(|| Reject::new(Reason::TimestampMissing, format!("{place} is missing or empty")))?;
                put(&text);
            }
            Self::Method => {
                let method = facts.method.as_str();
                if !method.bytes().all(|b| b.is_ascii_uppercase()) {
                    return Err(Reject::new(Reason::SignatureMalformed, "the method, which is signed, is not in capital letters"));
                }
                put(method.as_bytes());
            }
            Self::Url(port) => {
                url_base(facts, *port, put);
                put(checked(facts.target)?.as_bytes());
            }
            Self::UrlBase => {
                url_base(facts, Port::AsIs, put);
                put(checked(facts.path())?.as_bytes());
            }
            Self::Path => put(checked(facts.path())?.as_bytes()),
            Self::Target => put(checked(facts.target)?.as_bytes()),
            Self::Value { place, guard } => {
                let value = place
                    .value(facts, from.body)?
                    .ok_or_else(|| Reject::new(Reason::SignatureMissing, format!("{place}, which is signed, is missing or empty")))?;
                let good = match guard {
                    Guard::Free => true,
                    Guard::Not(byte) => !value.contains(byte),
                    Guard::Plain => value.iter().copied().all(is_plain),
                };
                if !good {
                    return Err(Reject::new(Reason::SignatureMalformed, format!("{place} holds a character that parts it from what is signed next to it")));
                }
                put(&value);
            }
            Self::FormSorted => form::form_sorted(from.body.expect(AT_HAND).whole.form()?, put).map_err(too_many)?,
            Self::QuerySorted => form::query_sorted(facts.query(), put).map_err(too_many)?,
            Self::Param(name) => return Err(Reject::new(Reason::SignatureMismatch, format!("`{name}` of `params` is not configured"))),
            Self::Secret => put(from.secret.expect("the engine keeps the secret of a template that names it")),
        }
        Ok(())
    }
}

fn unknown(text: &str) -> String {
    const NAMES: &[&str] = &[
        "body",
        "body_json",
        "body_sha256_hex",
        "body_crc32",
        "timestamp",
        "id",
        "method",
        "url",
        "url_without_port",
        "url_with_port",
        "url_base",
        "path",
        "target",
        "header:",
        "query:",
        "json:",
        "form:",
        "field:",
        "param:",
        "form_sorted",
        "query_sorted",
        "secret",
    ];
    let near = crate::section::nearest(text, NAMES).map_or_else(|| format!("known are {}", NAMES.join(", ")), |near| format!("did you mean `{{{near}}}`?"));
    format!("`{{{text}}}` is not known; {near}")
}

/// Neighbouring literals as one.
fn merge(parts: Vec<Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::with_capacity(parts.len());
    for part in parts {
        match (out.last_mut(), part) {
            (Some(Part::Literal(before)), Part::Literal(text)) => before.extend_from_slice(&text),
            (_, Part::Literal(text)) if text.is_empty() => {}
            (_, part) => out.push(part),
        }
    }
    out
}

/// Scheme, host and port of the public URL.
fn url_base(facts: &Facts<'_>, port: Port, put: &mut dyn FnMut(&[u8])) {
    let base = facts.base;
    let host = base.find("://").map_or(0, |at| at + 3);
    let end = base.rfind(':').filter(|at| *at >= host && !base[*at..].contains(']'));
    match (port, end) {
        (Port::Without, Some(end)) => put(&base.as_bytes()[..end]),
        (Port::With, None) => {
            put(base.as_bytes());
            put(if base.starts_with("https:") { b":443" } else { b":80" });
        }
        _ => put(base.as_bytes()),
    }
}

fn too_many(_: form::TooMany) -> Reject {
    Reject::new(Reason::SignatureMalformed, "more parameters than any provider sends")
}

/// A request target that is written with the characters of a URL only.
fn checked(target: &str) -> Result<&str, Reject> {
    if target.bytes().all(is_plain) {
        return Ok(target);
    }
    Err(Reject::new(Reason::SignatureMalformed, "the request target, which is signed, holds a character that no URL has"))
}

/// Text as a JSON string, byte for byte as `JSON.stringify` writes it.
fn json_string(text: &[u8], put: &mut dyn FnMut(&[u8])) -> Result<(), Reject> {
    let text = std::str::from_utf8(text).map_err(|_| Reject::new(Reason::SignatureMalformed, "the body, which is signed as a JSON string, is not UTF-8"))?;
    put(b"\"");
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            8 => b"\\b",
            12 => b"\\f",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"",
            _ => continue,
        };
        put(&text.as_bytes()[plain..at]);
        if escape.is_empty() {
            put(format!("\\u{byte:04x}").as_bytes())
        } else {
            put(escape)
        }
        plain = at + 1;
    }
    put(&text.as_bytes()[plain..]);
    put(b"\"");
    Ok(())
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Literal(text) => return write!(f, "`{}`", String::from_utf8_lossy(text)),
            Self::Value { place, .. } => return place.fmt(f),
            Self::Body => "body",
            Self::BodyJson => "body_json",
            Self::BodySha256 => "body_sha256_hex",
            Self::BodyCrc32 => "body_crc32",
            Self::Timestamp => "timestamp",
            Self::Method => "method",
            Self::Url(Port::AsIs) => "url",
            Self::Url(Port::Without) => "url_without_port",
            Self::Url(Port::With) => "url_with_port",
            Self::UrlBase => "url_base",
            Self::Path => "path",
            Self::Target => "target",
            Self::FormSorted => "form_sorted",
            Self::QuerySorted => "query_sorted",
            Self::Secret => "secret",
            Self::Param(name) => return write!(f, "`{{param:{name}}}`"),
        };
        write!(f, "`{{{name}}}`")
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    #[test]
    fn ports_are_left_out_and_written_out() {
        let check = |base: &str, without: &str, with: &str| {
            let headers = HeaderMap::new();
            let facts = Facts { method: &Method::POST, base, target: "/", headers: &headers };
            for (port, want) in [(Port::AsIs, base), (Port::Without, without), (Port::With, with)] {
                let mut out = Vec::new();
                url_base(&facts, port, &mut |bytes| out.extend_from_slice(bytes));
                assert_eq!(String::from_utf8_lossy(&out), want);
            }
        };
        check("https://h", "https://h", "https://h:443");
        check("https://h:443", "https://h", "https://h:443");
        check("http://h", "http://h", "http://h:80");
        check("https://h:8443", "https://h", "https://h:8443");
        check("https://[::1]", "https://[::1]", "https://[::1]:443");
        check("https://[::1]:8443", "https://[::1]", "https://[::1]:8443");
    }

    #[test]
    fn json_strings_are_written_as_json_stringify_does() {
        let mut out = Vec::new();
        json_string("a\"\\\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}\u{2028}é🚀/".as_bytes(), &mut |bytes| out.extend_from_slice(bytes)).expect("text");
        assert_eq!(String::from_utf8_lossy(&out), "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}\u{2028}é🚀/\"");
        assert!(json_string(b"\xff", &mut |_| {}).is_err());
    }
}
