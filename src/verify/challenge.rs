//! Handshakes as data: what a provider asks of an endpoint before it sends events there, and what is answered. Pure.
//!
//! A handshake of a provider that signs its challenge counts only after the proof held; one that nobody signs is matched by its exact
//! method and parameters, and anything beside them makes it none. An answer is plain text or JSON of bounded length, made of the
//! challenge, of a MAC of it under the route's secret, and of constants.
//!
//! A MAC of text that a stranger chose could be a signature of it. So a MAC is given only of what an anchored `pattern` matches, and
//! [`Bound::guards`] lets [`super::Plan::finish`] refuse every delivery whose signed content matches one: what can be had here is
//! never a usable signature. Never here: sockets, clocks, files; what `pair` takes is kept by the `pair` room.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method as HttpMethod, StatusCode};
use memchr::memmem;
use regex::bytes::{Regex, RegexBuilder};
use serde::de::IgnoredAny;
use serde_json::Value as Json;
use zeroize::Zeroizing;

use super::{
    Facts, form,
    hmac::encoding,
    key::KeyForm,
    mac::{Algorithm, Encoding, Mac},
    place::{At, Body, Place, Pointers, Whole},
    scan,
    token::Known,
};
use crate::{
    event::Chunks,
    reject::{Reason, Reject},
    secret::Secret,
    section::{Item, Section},
    validate::json::Pointer,
};

/// The most bytes of a body that may be a handshake.
pub(crate) const MAX_BODY: usize = 16 << 10;

/// Bytes of a challenge, unless the definition says otherwise with `max`, which goes up to [`MOST_VALUE`].
const MAX_VALUE: u64 = 1024;
const MOST_VALUE: u64 = 4096;

/// The most handshakes of one provider.
const MAX_CHALLENGES: usize = 8;

/// A provider's handshakes, read and judged without any secret.
#[derive(Clone, Debug, Default)]
pub(crate) struct Challenges {
    list: Vec<Challenge>,
    pointers: Vec<Pointer>,
}

/// One handshake.
#[derive(Clone, Debug)]
struct Challenge {
    name: Option<String>,
    method: HttpMethod,
    /// Whether it comes with the proof that deliveries come with.
    signed: bool,
    when: Vec<Condition>,
    /// Where the challenge stands, where there is one.
    value: Option<Place>,
    pattern: Option<Pattern>,
    max: usize,
    /// Query parameters, or fields of an unsigned body, that may come with it.
    also: Vec<String>,
    mac: Option<MacForm>,
    answer: Answer,
    /// The refusal of a wrong `param`.
    wrong: Reason,
    /// The challenge is a secret, taken while the route is being paired.
    pair: bool,
    show: bool,
    bare_refusals: bool,
}

/// What must hold for a handshake to be meant.
#[derive(Clone, Debug)]
struct Condition {
    place: Place,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Stands,
    Absent,
    Equals(Vec<String>),
    /// The value that the route configures in `params`, a secret.
    Param(String),
}

/// How the MAC of a challenge is made and written.
#[derive(Clone, Debug)]
struct MacForm {
    algorithm: Algorithm,
    encoding: Encoding,
    /// How the route's secret becomes the key; as for signatures, unless said otherwise.
    key: Option<KeyForm>,
}

/// What a challenge may consist of, from its first byte to its last.
#[derive(Clone)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
    /// No longer text can match.
    max: usize,
}

impl Pattern {
    fn parse(text: &str, max: usize) -> Result<Self, String> {
        let inner = text.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')).filter(|inner| {
            // An escaped dollar is a character and anchors nothing.
            inner.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0
        });
        let Some(inner) = inner else { return Err("it is not anchored: it has to start with `^` and to end with `$`".to_owned()) };
        // Anchored once more around the whole, so that no `|` inside lets one of its sides go free.
        let regex = RegexBuilder::new(&format!(r"\A(?:{inner})\z")).unicode(false).size_limit(1 << 20).build();
        let regex = regex.map_err(|why| format!("it cannot be read: {}", why.to_string().lines().last().unwrap_or_default()))?;
        Ok(Self { text: text.to_owned(), regex, max })
    }

    pub(super) fn matches(&self, text: &[u8]) -> bool {
        text.len() <= self.max && self.regex.is_match(text)
    }

    /// The most bytes of a text that matches.
    pub(super) fn max(&self) -> usize {
        self.max
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.max == other.max
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

// -- reading --

/// Bodies that a pattern of what is answered with a MAC must not match: JSON and the text that a JSON Web Token signs.
const BODIES: &[&str] = &["{}", "[]", "{\"id\":\"1\"}", "[{\"id\":1}]", "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6MX0"];

impl Challenges {
    /// Reads `challenge`: a table, or an array of them. `params` are the names of what a route must configure.
    pub(super) fn read(section: &Section<'_>, params: &[String]) -> Option<Self> {
        let Some(item) = section.item("challenge") else { return Some(Self::default()) };
        let items = if item.is_array() { item.items()? } else { vec![item.clone()] };
        if items.is_empty() || items.len() > MAX_CHALLENGES {
            item.problem("`challenge` has no handshake or too many", format!("name 1 to {MAX_CHALLENGES}"));
            return None;
        }
        let pointers = Pointers::default();
        let read: Vec<Option<Challenge>> = items.iter().map(|item| Challenge::read(item, params, &pointers)).collect();
        Some(Self { list: read.into_iter().collect::<Option<_>>()?, pointers: pointers.into_vec() })
    }

    /// The names of the secrets that its handshakes compare with, which a route may configure in `params`.
    pub(super) fn tokens(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.list.iter().flat_map(Challenge::tokens).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether any of them hands over a secret.
    pub(crate) fn pairs(&self) -> bool {
        self.list.iter().any(|challenge| challenge.pair)
    }

    /// Whether any of them is answered with a MAC.
    #[cfg(test)]
    pub(super) fn answer_macs(&self) -> bool {
        self.list.iter().any(|challenge| challenge.mac.is_some())
    }
}

impl Challenge {
    fn read(item: &Item<'_>, params: &[String], pointers: &Pointers) -> Option<Self> {
        let section = item.section()?;
        let name = section.opt_string("name");
        let method = match section.opt_string("method") {
            None => Some(HttpMethod::POST),
            Some(text) => {
                let known = [HttpMethod::GET, HttpMethod::HEAD, HttpMethod::OPTIONS, HttpMethod::POST, HttpMethod::PUT];
                let found = known.into_iter().find(|method| method.as_str() == text);
                if found.is_none() {
                    section.problem("method", format!("`{text}` is no method of a handshake"), "GET, HEAD, OPTIONS, POST or PUT");
                }
                found
            }
        };
        let signed = section.bool_or("signed", true);
        let when = match section.item("when") {
            None => Some(Vec::new()),
            Some(item) => {
                let items = if item.is_array() { item.items() } else { Some(vec![item]) };
                items.and_then(|items| items.iter().map(|item| Condition::read(item, pointers)).collect::<Vec<_>>().into_iter().collect())
            }
        };
        let value = section.item("value").map(|item| Place::read_item(&item, pointers));
        let max = usize::try_from(section.u64_or("max", MAX_VALUE, 1..=MOST_VALUE)).unwrap_or(MAX_VALUE as usize);
        let pattern = section.item("pattern").map(|item| {
            let text = item.string()?;
            Pattern::parse(&text, max)
                .map_err(|why| item.problem(format!("`{text}` cannot guard an answer: {why}"), "write it like \"^[A-Za-z0-9]{8,64}$\""))
                .ok()
        });
        let also = section.strings("also");
        let mac = section.opt_section("mac").map(|table| {
            let algorithm = table.choice("algorithm", Algorithm::WORDS).unwrap_or(Algorithm::Sha256);
            let encoding = encoding(&table);
            let key = table.opt_section("key").map(|section| {
                let key = KeyForm::read(&section);
                section.finish();
                key
            });
            table.finish();
            Some(MacForm { algorithm, encoding: encoding?, key })
        });
        let wrong = match section.opt_u64("wrong", 401..=404) {
            None | Some(401) => Reason::TokenInvalid,
            Some(404) => Reason::NoRoute,
            Some(other) => {
                section.problem("wrong", format!("a wrong token is not answered with {other}"), "401 or 404");
                Reason::TokenInvalid
            }
        };
        let pair = section.bool_or("pair", false);
        let show = section.bool_or("show", false);
        let bare_refusals = section.bool_or("bare_refusals", false);
        let with = With { value: value.is_some(), mac: mac.is_some(), params };
        let answer = Answer::read(&section, &with);
        section.finish();
        // Everything has been read: only now may what is missing end it.
        let value = match value {
            Some(read) => Some(read?),
            None => None,
        };
        let pattern = match pattern {
            Some(read) => Some(read?),
            None => None,
        };
        let mac = match mac {
            Some(read) => Some(read?),
            None => None,
        };
        let read = Self { name, method: method?, signed, when: when?, value, pattern, max, also, mac, answer: answer?, wrong, pair, show, bare_refusals };
        read.check(item);
        Some(read)
    }

    /// Says what can never be, or must not.
    fn check(&self, item: &Item<'_>) {
        let problem = |what: &str, help: &str| item.problem(what, help);
        if self.when.is_empty() && self.value.is_none() && self.method == HttpMethod::POST {
            problem("this handshake has neither `when` nor `value`, so every delivery would be one", "say what tells it from a delivery");
        }
        if self.mac.is_some() && self.value.is_none() {
            problem("there is nothing to make the MAC of", "say where the challenge stands: value = { … }");
        }
        if self.mac.is_some() && self.pattern.is_none() {
            problem(
                "a MAC of whatever a stranger sends would be a signature of it",
                "say what may be answered: pattern = \"^[A-Za-z0-9]{8,64}$\"; deliveries whose signed content matches it are refused",
            );
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|_| self.mac.is_some())
            && let Some(body) = BODIES.iter().find(|body| pattern.matches(body.as_bytes()))
        {
            problem(&format!("the pattern matches `{body}`, which a delivery may well be"), "narrow it to what the provider's challenges are made of");
        }
        if self.pair && self.value.is_none() {
            problem("`pair` needs the place of the secret that is handed over", "value = { header = \"X-Hook-Secret\" }");
        }
        if self.pair && self.mac.is_some() {
            problem("a secret that is being handed over cannot make a MAC yet", "remove `mac` or `pair`");
        }
        if self.show && !self.pair {
            problem("`show` is for a secret that is handed over", "set `pair = true`, or remove it");
        }
        let places = self.when.iter().map(|condition| &condition.place).chain(&self.value);
        let (json, form) =
            places.fold((false, false), |(json, form), place| (json | matches!(place.at, At::Json { .. }), form | matches!(place.at, At::Form(_))));
        if json && form {
            problem("a body is JSON or a form, and not both", "");
        }
        if (json || form) && [HttpMethod::GET, HttpMethod::HEAD, HttpMethod::OPTIONS].contains(&self.method) {
            problem(&format!("{} has no body to look into", self.method), "name a header or a query parameter");
        }
    }

    /// For the log.
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("handshake")
    }

    fn tokens(&self) -> impl Iterator<Item = &str> {
        self.when.iter().filter_map(|condition| match &condition.test {
            Test::Param(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether the body decides.
    fn reads_body(&self) -> bool {
        self.places().any(|place| !place.in_head())
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.when.iter().filter(|condition| !matches!(condition.test, Test::Absent)).map(|condition| &condition.place).chain(&self.value)
    }
}

impl Condition {
    fn read(item: &Item<'_>, pointers: &Pointers) -> Option<Self> {
        let section = item.section()?;
        let place = Place::read(&section, pointers, None);
        let equals = section.item("equals").map(|item| if item.is_array() { item.strings() } else { item.string().map(|text| vec![text]) });
        let param = section.opt_string("param");
        let absent = section.bool_or("absent", false);
        section.finish();
        if usize::from(equals.is_some()) + usize::from(param.is_some()) + usize::from(absent) > 1 {
            item.problem("`equals`, `param` and `absent` exclude each other", "keep one of them");
        }
        let test = match (equals, param) {
            (Some(words), _) => Test::Equals(words?),
            (None, Some(name)) => Test::Param(name),
            (None, None) if absent => Test::Absent,
            (None, None) => Test::Stands,
        };
        Some(Self { place: place?, test })
    }
}

// -- answers --

/// What an answer may be made of.
struct With<'a> {
    value: bool,
    mac: bool,
    params: &'a [String],
}

#[derive(Clone, Debug)]
struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, Text)>,
    body: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Nothing,
    Plain(Text),
    /// Texts in it are templates.
    Json(Json),
}

/// A template of `{challenge}`, `{mac}` and `{param:NAME}`; `{{` and `}}` are the characters.
#[derive(Clone, Debug)]
struct Text(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Literal(String),
    Challenge,
    Mac,
    Param(String),
}

/// What the pieces stand for.
struct Fill<'a> {
    challenge: &'a str,
    mac: Option<&'a str>,
    params: &'a BTreeMap<String, String>,
}

impl Answer {
    /// Reads `answer = { status, headers, text, json }`; 200 without a body where it says nothing.
    fn read(section: &Section<'_>, with: &With<'_>) -> Option<Self> {
        let mut answer = Self { status: StatusCode::OK, headers: Vec::new(), body: Content::Nothing };
        let Some(table) = section.opt_section("answer") else {
            section.problem("answer", "`answer` is missing", "say what is answered: answer = { text = \"{challenge}\" }, or answer = { status = 200 }");
            return None;
        };
        let status = table.u64_or("status", 200, 200..=299);
        answer.status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
        let mut fine = true;
        let mut parse = |item: &Item<'_>, text: &str| match Text::parse(text, with) {
            Ok(text) => Some(text),
            Err(why) => {
                item.problem(why, "");
                fine = false;
                None
            }
        };
        if let Some(headers) = table.opt_section("headers") {
            for name in headers.keys() {
                let Some(item) = headers.item(&name) else { continue };
                let Some(text) = item.string() else { continue };
                let framing = ["content-length", "transfer-encoding", "connection", "content-type", "set-cookie", "location"];
                match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(header) if !framing.contains(&header.as_str()) => {
                        if let Some(text) = parse(&item, &text) {
                            answer.headers.push((header, text));
                        }
                    }
                    _ => item.problem(format!("`{}` is no header of a handshake's answer", name.escape_debug()), ""),
                }
            }
            headers.finish();
        }
        match (table.item("text"), table.item("json")) {
            (None, None) => {}
            (Some(item), None) => answer.body = Content::Plain(item.string().and_then(|text| parse(&item, &text))?),
            (None, Some(item)) => {
                let json = item.json()?;
                strings(&json, &mut |text| drop(parse(&item, text)));
                answer.body = Content::Json(json);
            }
            (Some(_), Some(_)) => table.problem("text", "an answer is `text` or `json`", "keep one of the two"),
        }
        table.finish();
        fine.then_some(answer)
    }
}

/// Every text of a JSON value.
fn strings(json: &Json, each: &mut dyn FnMut(&str)) {
    match json {
        Json::String(text) => each(text),
        Json::Array(items) => items.iter().for_each(|item| strings(item, each)),
        Json::Object(fields) => fields.values().for_each(|item| strings(item, each)),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

impl Text {
    fn parse(text: &str, with: &With<'_>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            if rest[at + 1..].starts_with(brace) {
                literal.push_str(brace);
                rest = &rest[at + 2..];
                continue;
            }
            let end = rest[at..].find('}').filter(|end| *end > 0).map(|end| end + at).ok_or("a brace stands alone; write `{{` or `}}` for the character")?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(match &rest[at + 1..end] {
                "challenge" if with.value => Piece::Challenge,
                "challenge" => return Err("`{challenge}` needs `value`, the place of the challenge".to_owned()),
                "mac" if with.mac => Piece::Mac,
                "mac" => return Err("`{mac}` needs `mac = { … }`".to_owned()),
                other => match other.strip_prefix("param:") {
                    Some(name) if with.params.iter().any(|known| known == name) => Piece::Param(name.to_owned()),
                    Some(name) => return Err(format!("`{name}` is not in `params`")),
                    None => return Err(format!("`{{{other}}}` is not known; known are {{challenge}}, {{mac}}, {{param:NAME}}")),
                },
            });
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    fn fill(&self, fill: &Fill<'_>) -> String {
        let mut out = String::new();
        for piece in &self.0 {
            out.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Challenge => fill.challenge,
                Piece::Mac => fill.mac.unwrap_or_default(),
                Piece::Param(name) => fill.params.get(name).map_or("", String::as_str),
            });
        }
        out
    }
}

/// The value with every text filled in; its form was checked when it was read.
fn filled(json: &Json, with: &With<'_>, fill: &Fill<'_>) -> Json {
    match json {
        Json::String(text) => Text::parse(text, with).map_or(Json::Null, |text| text.fill(fill).into()),
        Json::Array(items) => items.iter().map(|item| filled(item, with, fill)).collect(),
        Json::Object(fields) => Json::Object(fields.iter().map(|(name, item)| (name.clone(), filled(item, with, fill))).collect()),
        other => other.clone(),
    }
}

// -- judging --

/// What the head of a request tells of an unsigned handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// It is none.
    No,
    /// It is one.
    Head,
    /// It may be one: the body decides.
    Body,
}

/// What a handshake is answered with.
pub(crate) struct Reply {
    /// Which one it was, for the audit line.
    pub(crate) name: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Bytes,
    /// The secret that the provider hands over: to be kept before the answer goes out.
    pub(crate) secret: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Reply {
    /// Never the body: it may be a MAC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("name", &self.name).field("status", &self.status).finish_non_exhaustive()
    }
}

/// A provider's handshakes with a route's secrets.
#[derive(Default)]
pub(super) struct Bound {
    challenges: Challenges,
    /// By the handshake's number: a keyed MAC for each secret.
    macs: Vec<Vec<Key>>,
    tokens: BTreeMap<String, Known>,
    params: BTreeMap<String, String>,
    /// The names of the provider's own credentials in a query.
    own: Vec<String>,
    /// The receiver answers; then the receiver also compares tokens.
    forward: bool,
    /// The route's secret is the one that is handed over.
    paired: bool,
    /// What a delivery must not consist of.
    pub(super) guards: Vec<Pattern>,
}

struct Key {
    label: Arc<str>,
    not_after: Option<i64>,
    mac: Mac,
}

enum Fit<'a> {
    No,
    /// It is one, and its token is not the configured one.
    Wrong,
    Yes(Cow<'a, [u8]>),
}

impl Bound {
    /// Binds handshakes to a route's secrets; `key` is the form of the key that the scheme signs with. The error never shows a secret.
    pub(super) fn new(
        challenges: &Challenges,
        secrets: &[Secret],
        key: Option<&KeyForm>,
        params: &BTreeMap<String, String>,
        own: Vec<String>,
    ) -> Result<Self, String> {
        let mut macs = Vec::with_capacity(challenges.list.len());
        for challenge in &challenges.list {
            let keys = challenge.mac.iter().flat_map(|form| {
                secrets.iter().map(move |secret| {
                    let bytes = form.key.as_ref().or(key).cloned().unwrap_or_default().bytes(secret.expose());
                    let bytes = bytes.map_err(|why| format!("secret {}: {why}", secret.label()))?;
                    Ok(Key { label: secret.label().clone(), not_after: secret.not_after(), mac: Mac::hmac(form.algorithm, &bytes) })
                })
            });
            macs.push(keys.collect::<Result<Vec<_>, String>>()?);
        }
        let guards = challenges.list.iter().filter(|challenge| challenge.mac.is_some()).filter_map(|challenge| challenge.pattern.clone()).collect();
        let challenges = challenges.clone();
        Ok(Self { challenges, macs, tokens: BTreeMap::new(), params: params.clone(), own, forward: false, paired: false, guards })
    }

    /// What the route configures: the tokens that handshakes carry, and whether its receiver answers them.
    pub(super) fn configure(&mut self, tokens: BTreeMap<String, Secret>, forward: bool, paired: bool) {
        self.paired = paired;
        self.tokens = tokens.into_iter().map(|(name, secret)| (name, Known::new(&[secret]))).collect();
        self.forward = forward;
    }

    /// The tokens without which a handshake cannot be answered, and that the route does not configure.
    pub(super) fn missing(&self) -> Vec<&str> {
        let names = self.challenges.tokens();
        names.into_iter().filter(|name| !self.forward && !self.tokens.contains_key(*name)).collect()
    }

    pub(super) fn takes_secret(&self) -> bool {
        self.paired && !self.forward && self.challenges.pairs()
    }

    pub(super) fn forwards(&self) -> bool {
        self.forward
    }

    /// Whether refusals must have no body.
    pub(super) fn bare_refusals(&self) -> bool {
        self.challenges.list.iter().any(|challenge| challenge.bare_refusals)
    }

    /// Whether the secret that is handed over has to be given back by a person.
    pub(super) fn shows(&self) -> bool {
        self.challenges.list.iter().any(|challenge| challenge.show)
    }

    /// The methods of its handshakes.
    pub(super) fn methods(&self) -> Vec<HttpMethod> {
        let mut methods: Vec<HttpMethod> = Vec::new();
        for (_, challenge) in self.usable(true) {
            if !methods.contains(&challenge.method) {
                methods.push(challenge.method.clone());
            }
        }
        methods
    }

    /// The query parameters that are compared with a secret.
    pub(super) fn token_params(&self) -> impl Iterator<Item = &str> {
        self.challenges.list.iter().flat_map(|challenge| &challenge.when).filter_map(|condition| match (&condition.test, &condition.place.at) {
            (Test::Param(_), At::Query(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The handshakes that can be answered, with their numbers.
    fn usable(&self, armed: bool) -> impl Iterator<Item = (usize, &Challenge)> {
        let ready = move |challenge: &Challenge| {
            (armed || self.forward || !challenge.pair) && (self.forward || challenge.tokens().all(|name| self.tokens.contains_key(name)))
        };
        self.challenges.list.iter().enumerate().filter(move |(_, challenge)| ready(challenge))
    }

    /// Whether the head is that of a handshake with exactly its parameters, signed or not.
    pub(super) fn heads(&self, facts: &Facts<'_>, allowed: &[String]) -> bool {
        self.usable(true).any(|(_, challenge)| self.fits_head(challenge, facts, allowed))
    }

    /// What the head tells of a handshake that nobody signs.
    pub(super) fn asked(&self, facts: &Facts<'_>, allowed: &[String], armed: bool) -> Greeting {
        let mut asked = Greeting::No;
        for (_, challenge) in self.usable(armed).filter(|(_, challenge)| !challenge.signed) {
            if self.fits_head(challenge, facts, allowed) {
                match challenge.reads_body() {
                    true => asked = Greeting::Body,
                    false => return Greeting::Head,
                }
            }
        }
        asked
    }

    fn fits_head(&self, challenge: &Challenge, facts: &Facts<'_>, allowed: &[String]) -> bool {
        // The tokens are weighed once the handshake is answered or refused: here a wrong one is one, too.
        challenge.method == *facts.method && self.exact_query(challenge, facts, allowed) && !matches!(self.fit(challenge, facts, None, i64::MIN), Fit::No)
    }

    /// The answer, once the whole body is there. `proven` is the secret that verified the request; without one only handshakes that
    /// nobody signs count, and only exactly.
    ///
    /// Errors: [`Reason::TokenInvalid`] (or what `wrong` says) where the handshake's own token is not the configured one.
    pub(super) fn reply(
        &self,
        facts: &Facts<'_>,
        chunks: &mut Chunks,
        proven: Option<&Arc<str>>,
        allowed: &[String],
        armed: bool,
        now_ms: i64,
    ) -> Result<Option<Reply>, Reject> {
        for (at, challenge) in self.usable(armed) {
            if challenge.method != *facts.method || (proven.is_none() && (challenge.signed || !self.exact_query(challenge, facts, allowed))) {
                continue;
            }
            // Cheap first: most requests are deliveries.
            if matches!(self.fit(challenge, facts, None, now_ms), Fit::No) {
                continue;
            }
            let bodiless = [HttpMethod::GET, HttpMethod::HEAD, HttpMethod::OPTIONS].contains(&challenge.method);
            if chunks.len() > MAX_BODY || (bodiless && !chunks.is_empty()) {
                continue;
            }
            let fit = if challenge.reads_body() {
                let bytes = chunks.contiguous();
                if challenge.needle().is_some_and(|needle| memmem::find(bytes, needle.as_bytes()).is_none())
                    || (proven.is_none() && !challenge.exact_body(bytes))
                {
                    continue;
                }
                let whole = Whole::new(facts, chunks, &self.challenges.pointers);
                let (fields, flaw) = scan(&whole, &self.challenges.pointers);
                if flaw.is_some() && challenge.places().any(|place| matches!(place.at, At::Json { .. })) {
                    continue;
                }
                match self.fit(challenge, facts, Some(Body { whole: &whole, fields: &fields }), now_ms) {
                    Fit::Yes(value) => Fit::Yes(Cow::Owned(value.into_owned())),
                    Fit::Wrong => Fit::Wrong,
                    Fit::No => Fit::No,
                }
            } else {
                self.fit(challenge, facts, None, now_ms)
            };
            match fit {
                Fit::No => {}
                Fit::Wrong => return Err(Reject::new(challenge.wrong, format!("the token of the handshake `{}` is not the configured one", challenge.name()))),
                Fit::Yes(value) => {
                    if let Some(reply) = self.answer(at, challenge, &value, proven, now_ms) {
                        return Ok(Some(reply));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Without a body only what the head says is judged.
    fn fit<'a>(&self, challenge: &Challenge, facts: &Facts<'a>, body: Option<Body<'a>>, now_ms: i64) -> Fit<'a> {
        let mut wrong = false;
        for condition in challenge.when.iter().filter(|condition| condition.place.in_head() || body.is_some()) {
            let found = condition.place.value(facts, body);
            let holds = match (&condition.test, found) {
                (Test::Absent, found) => matches!(found, Ok(None)),
                (_, Err(_) | Ok(None)) => false,
                (Test::Stands, Ok(Some(_))) => true,
                (Test::Equals(words), Ok(Some(value))) => words.iter().any(|word| *word.as_bytes() == *value),
                (Test::Param(name), Ok(Some(value))) => {
                    wrong |= self.tokens.get(name).map_or(!self.forward, |known| known.find(&value, now_ms).is_none());
                    true
                }
            };
            if !holds {
                return Fit::No;
            }
        }
        let value = match &challenge.value {
            Some(place) if place.in_head() || body.is_some() => match place.value(facts, body) {
                Ok(Some(value)) if challenge.takes(&value) => value,
                _ => return Fit::No,
            },
            _ => Cow::Borrowed(&[][..]),
        };
        if wrong { Fit::Wrong } else { Fit::Yes(value) }
    }

    /// Whether the query holds what the handshake names, what may come with it, and nothing else.
    fn exact_query(&self, challenge: &Challenge, facts: &Facts<'_>, allowed: &[String]) -> bool {
        let named = |name: &[u8]| challenge.places().any(|place| matches!(&place.at, At::Query(known) if *known.as_bytes() == *name));
        let listed = |name: &[u8]| challenge.also.iter().chain(allowed).chain(&self.own).any(|known| *known.as_bytes() == *name);
        form::pairs(facts.query()).all(|(name, _)| named(&name) || listed(&name))
    }

    fn answer(&self, at: usize, challenge: &Challenge, value: &[u8], proven: Option<&Arc<str>>, now_ms: i64) -> Option<Reply> {
        let text = std::str::from_utf8(value).ok()?;
        let mac = match &challenge.mac {
            None => None,
            Some(form) => {
                let keys = self.macs.get(at)?.iter().filter(|key| key.not_after.is_none_or(|last| now_ms <= last));
                let key = keys.into_iter().find(|key| proven.is_none_or(|label| *label == key.label))?;
                let mut mac = key.mac.clone();
                mac.update(value);
                Some(form.encoding.encode(mac.finish().as_slice()))
            }
        };
        let fill = Fill { challenge: text, mac: mac.as_deref(), params: &self.params };
        let names: Vec<String> = self.params.keys().cloned().collect();
        let with = With { value: true, mac: mac.is_some(), params: &names };
        let (content_type, body) = match &challenge.answer.body {
            Content::Nothing => (None, Bytes::new()),
            Content::Plain(text) => (Some("text/plain; charset=utf-8"), Bytes::from(text.fill(&fill))),
            Content::Json(json) => (Some("application/json"), Bytes::from(filled(json, &with, &fill).to_string())),
        };
        let headers = challenge.answer.headers.iter().map(|(name, text)| Some((name.clone(), HeaderValue::from_str(&text.fill(&fill)).ok()?)));
        Some(Reply {
            name: challenge.name().to_owned(),
            status: challenge.answer.status,
            headers: headers.collect::<Option<_>>()?,
            content_type,
            body,
            secret: challenge.pair.then(|| Zeroizing::new(value.to_vec())),
        })
    }
}

impl Challenge {
    /// Whether a challenge may be answered: text without control characters or angle brackets, so that no answer is ever a page.
    fn takes(&self, value: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(value) else { return false };
        value.len() <= self.max
            && !text.chars().any(|c| c.is_control() || matches!(c, '<' | '>'))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(value))
    }

    /// A word that every body of this handshake has in it, as its provider writes it.
    fn needle(&self) -> Option<&str> {
        let words = self.when.iter().filter_map(|condition| match (&condition.test, &condition.place.at) {
            (Test::Equals(words), At::Json { .. } | At::Form(_)) if words.len() == 1 => words.first().map(String::as_str),
            _ => None,
        });
        let names = self.places().filter_map(|place| match &place.at {
            At::Json { pointer, .. } => pointer.tokens().last().map(String::as_str),
            At::Form(name) => Some(name.as_str()),
            _ => None,
        });
        // What JSON or a form would escape is no word to look for.
        words.chain(names).filter(|word| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))).max_by_key(|word| word.len())
    }

    /// Whether the body holds the fields that the handshake names, what may come with them, and nothing else.
    fn exact_body(&self, body: &[u8]) -> bool {
        let is_form = self.places().any(|place| matches!(place.at, At::Form(_)));
        let named = |name: &str| {
            self.places().any(|place| match &place.at {
                At::Json { pointer, .. } => pointer.tokens().first().is_some_and(|first| first == name),
                At::Form(known) => known == name,
                _ => false,
            }) || self.also.iter().any(|known| known == name)
        };
        if is_form {
            return form::pairs(body).all(|(name, _)| std::str::from_utf8(&name).is_ok_and(named));
        }
        // The parser bounds its own depth.
        match serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(body) {
            Ok(fields) => fields.keys().all(|name| named(name)),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::{
        super::{
            Catalogue, Means, Plan, Ready,
            cases::{Request, split_url},
            sign::{Wishes, sign},
        },
        *,
    };
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    const NOW: i64 = 1_760_000_000_000;
    const KEY: &str = "0123456789abcdef";
    const TOKEN: &str = "a verify token";

    fn reader(text: &str) -> Reader {
        Reader::new(Source { name: "t".into(), text: text.into() }, Inputs::memory(&[], &[]))
    }

    fn bind(catalogue: &Catalogue, name: &str) -> Plan {
        let definition = catalogue.definition(name).unwrap_or_else(|| panic!("{name} is a provider"));
        let secrets = [Secret::new("#1", KEY.into(), None)];
        let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
        let mut plan = Plan::new(definition, &Means::new(&secrets, &params)).unwrap_or_else(|why| panic!("{name}: {why}"));
        let tokens = definition.challenges.tokens().into_iter().map(|name| (name.to_owned(), Secret::new("#1", TOKEN.into(), None))).collect();
        plan.challenges.configure(tokens, false, definition.challenges.pairs());
        plan
    }

    fn preset(name: &str) -> Plan {
        bind(&Catalogue::shipped(), name)
    }

    fn define(text: &str) -> (Catalogue, Vec<String>) {
        let reader = reader(&format!("[providers.own]\n{text}"));
        let table = reader.parse();
        let catalogue = Catalogue::read(&reader.root(&table));
        (catalogue, reader.problems().iter().map(ToString::to_string).collect())
    }

    /// A provider that signs the body, with this handshake.
    fn own(challenge: &str) -> Plan {
        let (catalogue, problems) = define(&format!("{PLAIN}challenge = {challenge}"));
        assert!(problems.is_empty(), "{challenge}: {problems:?}");
        bind(&catalogue, "own")
    }

    const PLAIN: &str = "scheme = \"hmac\"\nalgorithm = \"sha256\"\nsignature = { header = \"X-Sig\", encoding = \"hex\" }\nsigned = \"{body}\"\n";

    fn request(line: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let (base, target) = (split_url("https://hooks.example.com/in").expect("a URL").0, target);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).expect("a header"), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        let method = method.parse().expect("a method");
        Request { method, base: base.into(), target: target.into(), headers: map, body: Bytes::copy_from_slice(body.as_bytes()).into() }
    }

    /// Signed as the provider does.
    fn signed(plan: &Plan, mut request: Request) -> Request {
        let wishes = Wishes { id: "id-1".into(), now_ms: NOW, ..Wishes::default() };
        sign(plan, &Secret::new("#1", KEY.into(), None), &mut request, &wishes).expect("it can be signed");
        request
    }

    /// The way of the pipeline: `STATUS TYPE BODY` of an answer, `-` for what is no handshake, `!reason` for what is refused.
    fn ask(plan: &Plan, request: &Request, armed: bool) -> String {
        let facts = request.facts();
        let mut body = request.body.clone();
        let asked = plan.asked(&facts, &[], armed);
        let show = |reply: Reply| {
            let headers: String = reply.headers.iter().map(|(name, value)| format!("{name}={} ", value.to_str().expect("text"))).collect();
            let kind = reply.content_type.map_or("-", |kind| kind.split(';').next().unwrap_or_default());
            format!("{} {headers}{kind} {}", reply.status.as_u16(), String::from_utf8_lossy(&reply.body))
        };
        if asked == Greeting::Head || (asked == Greeting::Body && plan.prepare(&facts, NOW).is_err()) {
            match plan.answer(&facts, &mut body, None, &[], armed, NOW) {
                Ok(Some(reply)) => return show(reply),
                Ok(None) => {}
                Err(why) => return format!("!{}", why.reason),
            }
        }
        if !plan.heads_handshake(&facts, &[]) && facts.method != HttpMethod::POST {
            return "-".to_owned();
        }
        match request.judge(plan, NOW) {
            Err(why) => format!("!{}", why.reason),
            Ok(signed) => match plan.answer(&facts, &mut body, Some(&signed), &[], armed, NOW) {
                Ok(reply) => reply.map_or_else(|| "-".to_owned(), show),
                Err(why) => format!("!{}", why.reason),
            },
        }
    }

    #[track_caller]
    fn check(plan: &Plan, request: &Request, want: &str) {
        assert_eq!(ask(plan, request, false), want);
    }

    #[track_caller]
    fn check_get(plan: &Plan, target: &str, want: &str) {
        check(plan, &request(&format!("GET {target}"), &[], ""), want);
    }

    fn hmac(algorithm: Algorithm, key: &[u8], text: &str) -> Vec<u8> {
        let mut mac = Mac::hmac(algorithm, key);
        mac.update(text.as_bytes());
        mac.finish().as_slice().to_vec()
    }

    // -- providers, by their documentation --

    #[test]
    fn slack_gets_its_challenge_back() {
        let slack = preset("slack");
        let body = r#"{"token":"Jhj5dZrVaK7ZwHHjRyZWjbDl","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}"#;
        let genuine = signed(&slack, request("POST /in", &[("content-type", "application/json")], body));
        check(&slack, &genuine, r#"200 application/json {"challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}"#);
        check(&slack, &request("POST /in", &[], body), "!signature_missing");
        check(&slack, &Request { body: Bytes::from(body.replace("3eZ", "4eZ")).into(), ..genuine }, "!signature_mismatch");
        check(&slack, &signed(&slack, request("POST /in", &[], r#"{"type":"event_callback","challenge":"x","event":{"type":"message"}}"#)), "-");
    }

    #[test]
    fn zoom_gets_a_mac_of_its_token() {
        let zoom = preset("zoom");
        let body = r#"{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event_ts":1654503849680,"event":"endpoint.url_validation"}"#;
        let want = HEXLOWER.encode(&hmac(Algorithm::Sha256, KEY.as_bytes(), "qgg8vlvZRS6UYooatFL8Aw"));
        let answer = format!(r#"200 application/json {{"plainToken":"qgg8vlvZRS6UYooatFL8Aw","encryptedToken":"{want}"}}"#);
        let genuine = signed(&zoom, request("POST /in", &[], body));
        let told: serde_json::Value = serde_json::from_str(ask(&zoom, &genuine, false).split_once("json ").expect("JSON").1).expect("JSON");
        assert_eq!(told, serde_json::from_str::<serde_json::Value>(answer.split_once("json ").expect("JSON").1).expect("JSON"));
        check(&zoom, &request("POST /in", &[], body), "!signature_missing");
        check(&zoom, &signed(&zoom, request("POST /in", &[], &body.replace("qgg8v", "v0:1:{}"))), "-");
    }

    #[test]
    fn meta_is_answered_where_its_token_is_right() {
        let meta = preset("meta");
        let with = |token: &str| format!("/in?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={token}");
        check_get(&meta, &with("a+verify%20token"), "200 text/plain 1158201444");
        check_get(&meta, &with("wrong"), "!token_invalid");
        check_get(&meta, &with(""), "-");
        check_get(&meta, &format!("{}&x=1", with("a+verify+token")), "-");
        check_get(&meta, &format!("{}&hub.challenge=2", with("a+verify+token")), "-");
        check_get(&meta, "/in?hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=a+verify+token", "-");
        check_get(&meta, "/in?hub.mode=subscribe&hub.verify_token=a+verify+token", "-");
        check_get(&meta, "/in", "-");
        check_get(&meta, &with("a+verify+token").replace("1158201444", "%3Cscript%3E"), "-");
        check(&meta, &request(&format!("HEAD {}", with("a+verify+token")), &[], ""), "-");
        check(&meta, &request(&format!("POST {}", with("a+verify+token")), &[], ""), "!signature_missing");
    }

    #[test]
    fn without_its_token_a_handshake_is_none() {
        let mut meta = preset("meta");
        meta.challenges.configure(BTreeMap::new(), false, false);
        assert_eq!(meta.challenges.missing(), ["verify_token"]);
        assert!(meta.handshake_methods().is_empty());
        check_get(&meta, "/in?hub.mode=subscribe&hub.challenge=1&hub.verify_token=", "-");
        meta.challenges.configure(BTreeMap::new(), true, false);
        assert_eq!(meta.handshake_methods(), [HttpMethod::GET]);
        assert!(meta.challenges.missing().is_empty(), "the receiver compares it");
    }

    #[test]
    fn dropbox_gets_its_challenge_as_text() {
        let dropbox = preset("dropbox");
        check_get(&dropbox, "/in?challenge=Xs1-_Q%3D", "200 text/plain Xs1-_Q=");
        for none in ["/in?challenge=", "/in?challenge=a&challenge=b", "/in?challenge=a&b=c", "/in?challenge=%3Cb%3E", "/in?challenge=a%00", "/in?challenge=%FF"]
        {
            check_get(&dropbox, none, "-");
        }
        check_get(&dropbox, &format!("/in?challenge={}", "a".repeat(1024)), &format!("200 text/plain {}", "a".repeat(1024)));
        check_get(&dropbox, &format!("/in?challenge={}", "a".repeat(1025)), "-");
        check(&dropbox, &request("GET /in?challenge=a", &[], "a body"), "!signature_missing");
    }

    #[test]
    fn twitch_gets_its_challenge_as_text() {
        let twitch = preset("twitch");
        let body = r#"{"challenge":"pogchamp-kappa-360noscope-vohiyo","subscription":{"id":"f1c2a387-161a-49f9-a165-0f21d7a4e1c4"}}"#;
        let kind = ("Twitch-Eventsub-Message-Type", "webhook_callback_verification");
        check(&twitch, &signed(&twitch, request("POST /in", &[kind], body)), "200 text/plain pogchamp-kappa-360noscope-vohiyo");
        check(&twitch, &signed(&twitch, request("POST /in", &[("Twitch-Eventsub-Message-Type", "notification")], body)), "-");
        check(&twitch, &request("POST /in", &[kind], body), "!signature_missing");
    }

    #[test]
    fn braintree_gets_a_mac_by_its_derived_key() {
        let braintree = preset("braintree");
        let challenge = "20f9f8ed05f77439fe955c977e4c8a53";
        let key = <sha1::Sha1 as sha1::Digest>::digest(KEY.as_bytes());
        let mac = HEXLOWER.encode(&hmac(Algorithm::Sha1, &key, challenge));
        check_get(&braintree, &format!("/in?bt_challenge={challenge}"), &format!("200 text/plain mine|{mac}"));
        for none in ["20F9F8ED05F77439FE95", "20f9f8ed05f77439fe9", "20f9f8ed05f77439fe955c977e4c8a530", "20f9f8ed05f77439fe955%0A", "bad"] {
            check_get(&braintree, &format!("/in?bt_challenge={none}"), "-");
        }
    }

    #[test]
    fn smartcar_gets_a_mac_though_it_signs_nothing() {
        let smartcar = preset("smartcar");
        let body = |challenge: &str| {
            format!(r#"{{"eventId":"52f6e0bb","eventType":"VERIFY","data":{{"challenge":"{challenge}"}},"meta":{{"version":"4.0","webhookId":"5a8e5e38"}}}}"#)
        };
        let mac = HEXLOWER.encode(&hmac(Algorithm::Sha256, KEY.as_bytes(), "3a5c8f72-e6d9"));
        check(&smartcar, &request("POST /in", &[], &body("3a5c8f72-e6d9")), &format!(r#"200 application/json {{"challenge":"{mac}"}}"#));
        check(&smartcar, &request("POST /in", &[], &body("{}")), "!signature_missing");
        check(&smartcar, &request("POST /in", &[], &body("a").replace("\"meta\"", "\"other\"")), "!signature_missing");
        check(&smartcar, &request("POST /in", &[("SC-Signature", &"0".repeat(64))], &body("a")), "!signature_mismatch");
        let old = r#"{"version":"2.0","webhookId":"u","eventName":"verify","payload":{"challenge":"3a5c8f72-e6d9"}}"#;
        check(&smartcar, &request("POST /in", &[], old), &format!(r#"200 application/json {{"challenge":"{mac}"}}"#));
    }

    #[test]
    fn a_secret_is_taken_only_while_the_route_is_armed() {
        let asana = preset("asana");
        let hello = request("POST /in", &[("X-Hook-Secret", "b537207f20cbfa02357cf448134da559")], "{}");
        check(&asana, &hello, "!signature_missing");
        assert_eq!(ask(&asana, &hello, true), "200 x-hook-secret=b537207f20cbfa02357cf448134da559 - ");
        let reply = asana.answer(&hello.facts(), &mut hello.body.clone(), None, &[], true, NOW).expect("right").expect("a handshake");
        assert_eq!(reply.secret.as_deref().map(Vec::as_slice), Some(&b"b537207f20cbfa02357cf448134da559"[..]));
        assert!(!format!("{reply:?}").contains("b537"), "{reply:?}");
        let notion = preset("notion");
        let hello = request("POST /in", &[], r#"{"verification_token":"secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"}"#);
        check(&notion, &hello, "!signature_missing");
        assert_eq!(ask(&notion, &hello, true), "200 - ");
        assert_eq!(ask(&notion, &request("POST /in", &[], r#"{"verification_token":"a","type":"page.created"}"#), true), "!signature_missing");
        assert!(notion.shows_secret() && notion.takes_secret() && !asana.shows_secret() && !preset("slack").takes_secret());
    }

    #[test]
    fn line_checks_with_no_events() {
        let line = preset("line");
        check(&line, &signed(&line, request("POST /in", &[], r#"{"destination":"xxxxxxxxxx","events":[]}"#)), "200 - ");
        check(&line, &signed(&line, request("POST /in", &[], r#"{"destination":"xxxxxxxxxx","events":[{"type":"message"}]}"#)), "-");
        check(&line, &request("POST /in", &[], r#"{"destination":"xxxxxxxxxx","events":[]}"#), "!signature_missing");
    }

    // -- the form --

    #[test]
    fn other_handshakes_are_data_too() {
        let x = preset("x");
        let mac = data_encoding::BASE64.encode(&hmac(Algorithm::Sha256, KEY.as_bytes(), "MDE2-ODBh"));
        check_get(&x, "/in?crc_token=MDE2-ODBh&nonce=1", &format!(r#"200 application/json {{"response_token":"sha256={mac}"}}"#));
        check_get(&x, "/in?crc_token=%7B%7D", "-");

        let strava = preset("strava");
        let asked = "/in?hub.verify_token=a+verify+token&hub.challenge=15f7\"&hub.mode=subscribe";
        check_get(&strava, asked, r#"200 application/json {"hub.challenge":"15f7\""}"#);
        check_get(&strava, &format!("{asked}&token={KEY}"), r#"200 application/json {"hub.challenge":"15f7\""}"#);
        check_get(&strava, &asked.replace("a+verify", "no"), "!token_invalid");

        let websub = own(
            r#"{ method = "GET", signed = false, when = [{ query = "hub.mode", equals = ["subscribe", "unsubscribe"] }, { query = "hub.topic", param = "topic" }], value = { query = "hub.challenge" }, also = ["hub.lease_seconds"], answer = { text = "{challenge}" } }"#,
        );
        check_get(&websub, "/in?hub.mode=subscribe&hub.topic=a+verify+token&hub.challenge=c&hub.lease_seconds=3600", "200 text/plain c");
        check_get(&websub, "/in?hub.mode=unsubscribe&hub.topic=a+verify+token&hub.challenge=c", "200 text/plain c");
        check_get(&websub, "/in?hub.mode=denied&hub.topic=a+verify+token&hub.reason=no", "-");

        let graph = preset("microsoft-graph");
        let token = "Validation%3a+Testing+client+application+reachability+for+subscription+Request-Id%3a+15d3";
        let told = "200 text/plain Validation: Testing client application reachability for subscription Request-Id: 15d3";
        check(&graph, &request(&format!("POST /in?validationToken={token}"), &[("content-type", "text/plain; charset=utf-8")], ""), told);
        assert!(ask(&graph, &request(&format!("POST /in?validationToken={token}&more=1"), &[], ""), false).starts_with('!'));
        check_get(&graph, &format!("/in?validationToken={token}"), "-");

        let okta = preset("okta");
        check(&okta, &request("GET /in", &[("X-Okta-Verification-Challenge", "a\"b")], ""), r#"200 application/json {"verification":"a\"b"}"#);
        check_get(&okta, "/in", "-");

        let fitbit = preset("fitbit");
        check_get(&fitbit, "/in?verify=a+verify+token", "204 - ");
        check_get(&fitbit, "/in?verify=wrong", "!no_route");

        let monday = own(r#"{ signed = false, value = { json = "/challenge" }, answer = { json = { challenge = "{challenge}" } } }"#);
        let body = r#"{"challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYd"}"#;
        check(&monday, &request("POST /in", &[], body), &format!("200 application/json {body}"));
        for none in [r#"{"challenge":"a","event":{}}"#, r#"{"challenge":"a","challenge":"b"}"#, r#"{"challenge":{"a":1}}"#, r#"[{"challenge":"a"}]"#, "", "{"] {
            check(&monday, &request("POST /in", &[], none), "!signature_missing");
        }

        let discord = own(r#"{ when = { json = "/type", equals = "1" }, answer = { json = { type = 1 } } }"#);
        check(&discord, &signed(&discord, request("POST /in", &[], r#"{"id":"1","type":1}"#)), r#"200 application/json {"type":1}"#);
        check(&discord, &signed(&discord, request("POST /in", &[], r#"{"id":"1","type":2}"#)), "-");
        check(&discord, &request("POST /in", &[("X-Sig", &"0".repeat(64))], r#"{"id":"1","type":1}"#), "!signature_mismatch");

        let grid = preset("azure-event-grid");
        let body = r#"[{"id":"2d17","topic":"/t","subject":"","data":{"validationCode":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}]"#;
        let told = r#"200 application/json {"validationResponse":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6"}"#;
        check(&grid, &request(&format!("POST /in?token={KEY}"), &[("aeg-event-type", "SubscriptionValidation")], body), told);
        check(&grid, &request("POST /in?token=wrong", &[("aeg-event-type", "SubscriptionValidation")], body), "!token_invalid");
        let origin = [("WebHook-Request-Origin", "eventgrid.azure.net"), ("WebHook-Request-Rate", "120")];
        let told = "200 webhook-allowed-origin=eventgrid.azure.net webhook-allowed-rate=* allow=POST - ";
        check(&grid, &request(&format!("OPTIONS /in?token={KEY}"), &origin, ""), told);
        check(&grid, &request("OPTIONS /in?token=wrong", &origin, ""), "!token_invalid");
        check(&grid, &request(&format!("OPTIONS /in?token={KEY}"), &[], ""), "-");

        let xero = preset("xero");
        let intent = r#"{"events":[],"firstEventSequence":0,"lastEventSequence":0,"entropy":"S0m3r4Nd0mt3xt"}"#;
        check(&xero, &signed(&xero, request("POST /in", &[], intent)), "200 - ");
        let wrong = data_encoding::BASE64.encode(&[0; 32]);
        check(&xero, &request("POST /in", &[("x-xero-signature", &wrong)], intent), "!signature_mismatch");
        assert!(xero.refuses_bare() && !discord.refuses_bare());

        let woo = preset("woocommerce");
        let ping = |body| request("POST /in", &[("content-type", "application/x-www-form-urlencoded")], body);
        check(&woo, &ping("webhook_id=12"), "200 - ");
        check(&woo, &ping("webhook_id=12&a=b"), "!signature_missing");

        for name in ["trello", "mandrill", "intercom"] {
            check(&preset(name), &request("HEAD /in", &[], ""), "200 - ");
            check(&preset(name), &request("HEAD /in?a=b", &[], ""), "-");
        }
        let mailchimp = preset("mailchimp");
        check_get(&mailchimp, &format!("/in?token={KEY}"), "200 - ");
        check_get(&mailchimp, "/in?token=wrong", "!token_invalid");
    }

    #[test]
    fn what_is_signed_and_what_the_route_allows_may_come_with_it() {
        let plan = preset("dropbox");
        let get = request("GET /in?tenant=7&challenge=a", &[], "");
        assert_eq!(plan.asked(&get.facts(), &[], false), Greeting::No);
        assert_eq!(plan.asked(&get.facts(), &["tenant".to_owned()], false), Greeting::Head);
        // A token in the callback URL comes with every request to it, and is proven like that of a delivery.
        let (catalogue, problems) = define(
            "scheme = \"token\"\nsignature = { query = \"code\" }\nreplay_key = \"none\"\n\
             challenge = { method = \"GET\", value = { query = \"hub.challenge\" }, answer = { text = \"{challenge}\" } }",
        );
        assert!(problems.is_empty(), "{problems:?}");
        let plan = bind(&catalogue, "own");
        check_get(&plan, &format!("/in?code={KEY}&hub.challenge=c"), "200 text/plain c");
        check_get(&plan, "/in?code=wrong&hub.challenge=c", "!token_invalid");
        check_get(&plan, "/in?hub.challenge=c", "!token_invalid");
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        let said = |challenge: &str| define(&format!("{PLAIN}challenge = {challenge}")).1.join("\n");
        for (challenge, want) in [
            ("{ answer = { status = 200 } }", "every delivery would be one"),
            ("{ value = { json = \"/a\" } }", "`answer` is missing"),
            ("{ value = { json = \"/a\" }, mac = { encoding = \"hex\" }, answer = { text = \"{mac}\" } }", "would be a signature of it"),
            ("{ value = { json = \"/a\" }, pattern = \"^a|b\", mac = { encoding = \"hex\" }, answer = { text = \"{mac}\" } }", "not anchored"),
            ("{ value = { json = \"/a\" }, pattern = \"^a\\\\$\", mac = { encoding = \"hex\" }, answer = { text = \"{mac}\" } }", "not anchored"),
            ("{ value = { json = \"/a\" }, pattern = \"^.*$\", mac = { encoding = \"hex\" }, answer = { text = \"{mac}\" } }", "which a delivery may well be"),
            ("{ value = { json = \"/a\" }, pattern = \"^[$\", mac = { encoding = \"hex\" }, answer = { text = \"{mac}\" } }", "cannot be read"),
            ("{ value = { json = \"/a\" }, answer = { text = \"{mac}\" } }", "`{mac}` needs"),
            ("{ value = { json = \"/a\" }, answer = { text = \"{nonce}\" } }", "is not known"),
            ("{ value = { json = \"/a\" }, answer = { text = \"{\" } }", "a brace stands alone"),
            ("{ when = { json = \"/a\" }, answer = { json = { a = [\"{challenge}\"] } } }", "needs `value`"),
            ("{ value = { json = \"/a\" }, answer = { text = \"{param:k}\" } }", "not in `params`"),
            ("{ value = { json = \"/a\" }, answer = { text = \"a\", json = {} } }", "`text` or `json`"),
            ("{ value = { json = \"/a\" }, answer = { status = 302 } }", "status"),
            ("{ value = { json = \"/a\" }, answer = { headers = { Location = \"{challenge}\" } } }", "no header of a handshake's answer"),
            ("{ method = \"GET\", value = { json = \"/a\" }, answer = { status = 200 } }", "has no body"),
            ("{ method = \"get\", value = { query = \"a\" }, answer = { status = 200 } }", "no method of a handshake"),
            ("{ when = { form = \"a\" }, value = { json = \"/a\" }, answer = { status = 200 } }", "JSON or a form"),
            ("{ value = { json = \"/a\" }, wrong = 403, answer = { status = 200 } }", "401 or 404"),
            ("{ when = { json = \"/a\", equals = \"b\", absent = true }, answer = { status = 200 } }", "exclude each other"),
            ("{ pair = true, when = { json = \"/a\" }, answer = { status = 200 } }", "place of the secret"),
            ("{ show = true, value = { json = \"/a\" }, answer = { status = 200 } }", "`pair = true`"),
            ("{ value = { json = \"/a\" }, max = 5000, answer = { status = 200 } }", "max"),
            ("[]", "no handshake or too many"),
            ("{ value = { json = \"/a\" }, reply = 1, answer = { status = 200 } }", "unknown key `reply`"),
        ] {
            assert!(said(challenge).contains(want), "{challenge}: {}", said(challenge));
        }
    }

    #[test]
    fn patterns_hold_from_end_to_end() {
        let pattern = Pattern::parse("^a|b$", 8).expect("a pattern");
        for (text, want) in [("a", true), ("b", true), ("ab", false), ("a\n", false), ("xb", false), ("", false)] {
            assert_eq!(pattern.matches(text.as_bytes()), want, "{text:?}");
        }
        assert!(Pattern::parse("^[a-z]*$", 3).is_ok_and(|pattern| pattern.matches(b"abc") && !pattern.matches(b"abcd")));
        assert!(Pattern::parse("^(?m)a$", 8).is_ok_and(|pattern| !pattern.matches(b"a\nb")));
    }

    // -- safety --

    /// The presets whose handshakes are answered with a MAC. A new one has to be thought about: what may be asked, and what is signed.
    const ANSWER_MACS: &[&str] = &["braintree", "smartcar", "x", "zoom"];

    #[test]
    fn the_presets_that_answer_macs_are_known() {
        let catalogue = Catalogue::shipped();
        let found: Vec<&str> = catalogue.names().into_iter().filter(|name| catalogue.definition(name).is_some_and(|d| d.challenges.answer_macs())).collect();
        assert_eq!(found, ANSWER_MACS);
    }

    /// What the gate would answer to a challenge: the MAC itself, of every kind that the preset makes. `None`: it answers nothing.
    fn answers(plan: &Plan, challenge: &str) -> Vec<Vec<u8>> {
        let bound = &plan.challenges;
        let all = bound.challenges.list.iter().enumerate().filter(|(_, kind)| kind.mac.is_some() && kind.takes(challenge.as_bytes()));
        all.map(|(at, _)| {
            let mut mac = bound.macs[at][0].mac.clone();
            mac.update(challenge.as_bytes());
            mac.finish().as_slice().to_vec()
        })
        .collect()
    }

    /// Requests of the preset's forms that carry `body` and, in each of its places, `tag` as their signature.
    fn forged(plan: &Plan, body: &str, tag: &[u8]) -> Vec<Request> {
        let mut all = Vec::new();
        for form in &plan.forms {
            let Ready::Signature(engine) = &form.ready else { continue };
            for signature in &engine.recipe.signatures {
                let text = format!("{}{}", signature.place.prefix, signature.encoding.encode(tag));
                let mut fake = match &signature.place.at {
                    At::Header(name) => request("POST /in", &[("content-type", "application/json"), (name.as_str(), &text)], body),
                    At::Form(name) => {
                        let form = [("content-type", "application/x-www-form-urlencoded")];
                        request("POST /in", &form, &format!("{body}&{name}=mine%7C{}", text.replace('+', "%2B")))
                    }
                    other => panic!("{other:?}: a place that this test cannot forge"),
                };
                if let Some((At::Header(name), unit)) = engine.recipe.timestamp.as_ref().map(|timestamp| (&timestamp.place.at, timestamp.unit)) {
                    fake.headers.insert(name, HeaderValue::from_str(&unit.write(NOW)).expect("a time"));
                }
                all.push(fake);
            }
        }
        all
    }

    /// Every answer to `challenge`, fed back as the signature of `body`, is refused; so is a genuine signature of the challenge itself.
    fn is_safe(name: &str, challenge: &str, body: &str) {
        let plan = preset(name);
        for tag in answers(&plan, challenge) {
            let bodies =
                [body.to_owned(), challenge.to_owned(), format!("{challenge}\n"), format!("bt_payload={challenge}"), format!("bt_payload={challenge}%0A")];
            for body in &bodies {
                for request in forged(&plan, body, &tag) {
                    assert!(request.judge(&plan, NOW).is_err(), "{name}: the answer to {challenge:?} signs {body:?}");
                }
            }
        }
    }

    #[test]
    fn no_answer_is_a_signature() {
        for name in ANSWER_MACS {
            for challenge in [
                "20f9f8ed05f77439fe955c977e4c8a53",
                "abcdefabcdefabcdefab",
                "3a5c8f72-e6d9",
                "qgg8vlvZRS6UYooatFL8Aw",
                "1",
                "null",
                "true",
                "0",
                "{}",
                "v0:1760000000:x",
            ] {
                is_safe(name, challenge, "{\"id\":\"1\"}");
            }
        }
        // What would be a signature: refused although it is one.
        let smartcar = preset("smartcar");
        for (body, want) in [("12345", "!signature_mismatch"), ("3a5c8f72-e6d9", "!signature_mismatch"), ("{\"a\":12345}", "-")] {
            let signature = HEXLOWER.encode(&hmac(Algorithm::Sha256, KEY.as_bytes(), body));
            check(&smartcar, &request("POST /in", &[("SC-Signature", &signature)], body), want);
        }
        let braintree = preset("braintree");
        let key = <sha1::Sha1 as sha1::Digest>::digest(KEY.as_bytes());
        for (payload, want) in [("abcdefabcdefabcdefab", Err(Reason::SignatureMismatch)), ("PG5vdGlmaWNhdGlvbj4=", Ok(()))] {
            let fed = &forged(&braintree, &format!("bt_payload={payload}"), &hmac(Algorithm::Sha1, &key, payload))[0];
            assert_eq!(fed.judge(&braintree, NOW).map(drop).map_err(|why| why.reason), want, "{payload}");
        }
    }

    #[test]
    fn an_answer_signs_nothing_at_another_route_of_the_same_secret() {
        let (mut x, mut github) = (preset("x"), preset("github"));
        let fed = &forged(&github, "12345", &hmac(Algorithm::Sha256, KEY.as_bytes(), "12345"))[0].copy();
        check(&github, fed, "-");
        super::super::share_guards(vec![&mut x, &mut github]);
        check(&github, fed, "!signature_mismatch");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_answer_is_a_signature_of_anything(hex in "[a-f0-9]{20,32}", word in "[A-Za-z0-9_=+/-]{1,128}", any in "\\PC{0,40}", body in "\\PC{0,200}", pick in 0..ANSWER_MACS.len()) {
            for challenge in [&hex, &word, &any] {
                is_safe(ANSWER_MACS[pick], challenge, &body);
            }
        }
    }
}
