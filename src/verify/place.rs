//! Where a value stands in a request, and how it is cut out of what stands there.

use std::{borrow::Cow, cell::RefCell, fmt};

use bytes::Bytes;
use http::{HeaderName, header};

use super::{Facts, form};
use crate::{
    event::Chunks,
    reject::{Reason, Reject},
    section::{Item, Section},
    validate::json::{self, Pointer, Value},
};

/// How deep a body may be nested for a field of it to be read.
const FIELD_DEPTH: usize = 128;

/// The most signatures that are looked at in one request: over all lists, pairs and numbered headers.
pub(super) const MAX_SIGNATURES: usize = 128;

/// One place. A value that stands there twice is never guessed at: the request is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) at: At,
    /// Cut off before anything else (format `plain`) or off each item; a value without it is not read.
    pub(super) prefix: String,
    pub(super) pick: Pick,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum At {
    Header(HeaderName),
    /// Headers whose name is this and a decimal number, such as `x-docusign-signature-1`.
    Numbered(String),
    Query(String),
    Form(String),
    /// Index into the plan's pointers.
    Json {
        index: usize,
        pointer: Pointer,
        kind: Option<Kind>,
    },
}

/// What a JSON field must be; without it strings, numbers and booleans are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pick {
    Whole,
    /// `name=value` items; blanks around an item are cut off.
    Pairs {
        separator: String,
        assign: String,
        field: String,
    },
    /// Items that start with `version`; others are passed over.
    List {
        separator: String,
        version: String,
    },
    /// The item of this position, from 1.
    Item {
        separator: String,
        number: usize,
    },
}

/// The JSON pointers of one scheme, read from a body in one pass.
#[derive(Debug, Default)]
pub(super) struct Pointers(RefCell<Vec<Pointer>>);

impl Pointers {
    pub(super) fn index(&self, pointer: &Pointer) -> usize {
        let mut all = self.0.borrow_mut();
        if let Some(at) = all.iter().position(|p| p == pointer) {
            return at;
        }
        all.push(pointer.clone());
        all.len() - 1
    }

    pub(super) fn into_vec(self) -> Vec<Pointer> {
        self.0.into_inner()
    }
}

/// A whole body, with the fields that a plan asks of it.
pub(super) struct Whole<'a> {
    chunks: &'a Chunks,
    joined: Bytes,
    form: bool,
    pointers: &'a [Pointer],
}

impl<'a> Whole<'a> {
    /// `chunks` is in one piece wherever a field of it is read: see [`Chunks::contiguous`].
    pub(super) fn new(facts: &Facts<'_>, chunks: &'a Chunks, pointers: &'a [Pointer]) -> Self {
        Self { chunks, joined: chunks.pieces().next().cloned().unwrap_or_default(), form: is_form(facts), pointers }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.joined
    }

    pub(super) fn chunks(&self) -> &'a Chunks {
        self.chunks
    }

    /// The values at the plan's pointers; scanned once by the caller, who keeps them beside this body.
    pub(super) fn scan(&self) -> Result<Vec<Option<Value<'_>>>, json::Flaw> {
        json::find(&self.joined, FIELD_DEPTH, self.pointers)
    }

    /// The body as a form. An empty body is an empty form whatever its type.
    pub(super) fn form(&self) -> Result<&[u8], Reject> {
        if self.form || self.joined.is_empty() {
            return Ok(&self.joined);
        }
        Err(Reject::new(Reason::SignatureMalformed, "the body's content type is not application/x-www-form-urlencoded, which this scheme signs"))
    }
}

/// A body and what was found at the pointers in it.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    pub(super) whole: &'a Whole<'a>,
    pub(super) fields: &'a [Option<Value<'a>>],
}

pub(super) fn is_form(facts: &Facts<'_>) -> bool {
    content_type(facts).is_some_and(|essence| essence.eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

/// The media type of the request without its parameters; `None` where there is none or more than one.
pub(super) fn content_type<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    let mut all = facts.headers.get_all(header::CONTENT_TYPE).iter();
    let first = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    Some(first.split(';').next().unwrap_or("").trim())
}

impl Place {
    pub(super) fn header(name: HeaderName) -> Self {
        Self { at: At::Header(name), prefix: String::new(), pick: Pick::Whole }
    }

    /// Whether the value is known before the body is.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.at, At::Header(_) | At::Numbered(_) | At::Query(_))
    }

    /// Whether anything stands here at all, judged by the head alone.
    pub(super) fn stands(&self, facts: &Facts<'_>) -> bool {
        match &self.at {
            At::Header(name) => facts.headers.contains_key(name),
            At::Numbered(prefix) => numbered(facts, prefix).next().is_some(),
            At::Query(name) => form::pairs(facts.query()).any(|(key, _)| *key == *name.as_bytes()),
            At::Form(_) | At::Json { .. } => false,
        }
    }

    fn twice(&self) -> Reject {
        Reject::new(Reason::SignatureMalformed, format!("{self} stands more than once"))
    }

    fn malformed(&self) -> Reject {
        Reject::new(Reason::SignatureMalformed, format!("{self} is not in the form that is wanted"))
    }

    /// What stands at the place, uncut; `None` where it is absent or empty.
    fn uncut<'a>(&self, facts: &Facts<'a>, body: Option<Body<'a>>) -> Result<Option<Cow<'a, [u8]>>, Reject> {
        let value = match &self.at {
            At::Header(name) => {
                let mut all = facts.headers.get_all(name).iter();
                let first = all.next();
                if all.next().is_some() {
                    return Err(self.twice());
                }
                first.map(|value| Cow::Borrowed(value.as_bytes()))
            }
            At::Numbered(prefix) => {
                let mut all = numbered(facts, prefix);
                let first = all.next();
                if all.next().is_some() {
                    return Err(self.twice());
                }
                first.map(Cow::Borrowed)
            }
            At::Query(name) => form::one(facts.query(), name.as_bytes()).map_err(|()| self.twice())?,
            At::Form(name) => match body {
                None => None,
                Some(body) => form::one(body.whole.form()?, name.as_bytes()).map_err(|()| self.twice())?,
            },
            At::Json { index, kind, .. } => {
                let found = body.and_then(|body| body.fields.get(*index)).and_then(Option::as_ref);
                match (found, kind) {
                    (Some(Value::Text(text)), None | Some(Kind::Text)) => Some(Cow::Owned(text.as_bytes().to_vec())),
                    (Some(Value::Number(text)), None | Some(Kind::Number)) => Some(Cow::Borrowed(text.as_bytes())),
                    (Some(Value::Bool(truth)), None) => Some(Cow::Borrowed(if *truth { &b"true"[..] } else { b"false" })),
                    (Some(Value::Null) | None, _) => None,
                    _ => return Err(self.malformed()),
                }
            }
        };
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The one value; `None` where it is absent or empty.
    pub(super) fn value<'a>(&self, facts: &Facts<'a>, body: Option<Body<'a>>) -> Result<Option<Cow<'a, [u8]>>, Reject> {
        let Some(uncut) = self.uncut(facts, body)? else { return Ok(None) };
        let cut = |whole: &[u8]| -> Result<Option<(usize, usize)>, Reject> {
            let piece = match &self.pick {
                Pick::Whole => Some(whole),
                Pick::Pairs { separator, assign, field } => {
                    let mut all = pairs(whole, separator, assign).filter(|(name, _)| *name == field.as_bytes()).map(|(_, value)| value);
                    let first = all.next();
                    if all.next().is_some() {
                        return Err(self.twice());
                    }
                    first
                }
                Pick::List { separator, version } => {
                    let mut all = list(whole, separator).filter_map(|item| item.strip_prefix(version.as_bytes()));
                    let first = all.next();
                    if all.next().is_some() {
                        return Err(self.twice());
                    }
                    first
                }
                Pick::Item { separator, number } => list(whole, separator).nth(number - 1),
            };
            let Some(piece) = piece else { return Ok(None) };
            let piece = piece.strip_prefix(self.prefix.as_bytes()).ok_or_else(|| self.malformed())?;
            let start = piece.as_ptr() as usize - whole.as_ptr() as usize;
            Ok((!piece.is_empty()).then_some((start, start + piece.len())))
        };
        Ok(match &uncut {
            Cow::Borrowed(whole) => cut(whole)?.map(|(from, to)| Cow::Borrowed(&whole[from..to])),
            Cow::Owned(whole) => cut(whole)?.map(|(from, to)| Cow::Owned(whole[from..to].to_vec())),
        })
    }

    /// A value for people and conditions: UTF-8, at most 512 bytes; anything else counts as absent.
    pub(super) fn text(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Option<String> {
        let value = self.value(facts, body).ok()??;
        (value.len() <= 512).then(|| String::from_utf8(value.into_owned()).ok())?
    }

    /// Every signature that stands here, as `decode` reads it. A list's items that are no signature are passed over, as the senders' own
    /// libraries do; where nothing is left, or a single value cannot be read, the request is refused. So it is when `out` says that
    /// there are too many.
    pub(super) fn signatures<T>(
        &self,
        facts: &Facts<'_>,
        body: Option<Body<'_>>,
        decode: impl Fn(&[u8]) -> Option<T>,
        out: &mut dyn FnMut(T) -> bool,
    ) -> Result<(), Reject> {
        let too_many = || Reject::new(Reason::SignatureMalformed, format!("more signatures in {self} than any provider sends"));
        if let At::Numbered(prefix) = &self.at {
            if facts.headers.keys().any(|name| is_numbered(name, prefix) && facts.headers.get_all(name).iter().nth(1).is_some()) {
                return Err(self.twice());
            }
            let (mut any, mut good) = (false, false);
            for value in numbered(facts, prefix).filter(|value| !value.is_empty()) {
                any = true;
                if let Some(tag) = value.strip_prefix(self.prefix.as_bytes()).and_then(&decode) {
                    good = true;
                    if !out(tag) {
                        return Err(too_many());
                    }
                }
            }
            return match (any, good) {
                (false, _) => Err(self.missing()),
                (true, false) => Err(self.malformed()),
                (true, true) => Ok(()),
            };
        }
        let uncut = self.uncut(facts, body)?.ok_or_else(|| self.missing())?;
        let mut good = false;
        let mut each = |item: &[u8]| -> Result<(), Reject> {
            if let Some(tag) = item.strip_prefix(self.prefix.as_bytes()).and_then(&decode) {
                good = true;
                if !out(tag) {
                    return Err(too_many());
                }
            }
            Ok(())
        };
        match &self.pick {
            Pick::Whole => each(&uncut)?,
            Pick::Pairs { separator, assign, field } => {
                pairs(&uncut, separator, assign).filter(|(name, _)| *name == field.as_bytes()).try_for_each(|(_, value)| each(value))?
            }
            Pick::List { separator, version } => list(&uncut, separator).filter_map(|item| item.strip_prefix(version.as_bytes())).try_for_each(each)?,
            Pick::Item { separator, number } => list(&uncut, separator).nth(number - 1).map_or(Ok(()), each)?,
        }
        if good { Ok(()) } else { Err(self.malformed()) }
    }

    pub(super) fn missing(&self) -> Reject {
        Reject::new(Reason::SignatureMissing, format!("{self} is missing or empty"))
    }

    /// Reads a place out of a table: one of `header`, `query`, `json`, `form`, and how to cut. `same` lends its separators to
    /// a `field` of the same header. The caller reads its own keys and finishes the table.
    pub(super) fn read(section: &Section<'_>, pointers: &Pointers, same: Option<&Place>) -> Option<Self> {
        let mut places = Vec::new();
        for key in ["header", "query", "json", "form"] {
            if let Some(item) = section.item(key) {
                places.push(At::read(key, &item, section, pointers));
            }
        }
        let at = match places.len() {
            1 => places.remove(0)?,
            0 => {
                section.problem("header", "the place is not said", "name one of `header`, `query`, `json`, `form`");
                return None;
            }
            _ => {
                section.problem(
                    "header",
                    "more than one place is named",
                    "name one of `header`, `query`, `json`, `form`; several signatures are an array of tables",
                );
                return None;
            }
        };
        let prefix = section.string_or("prefix", "");
        let format = section.choice("format", &[("plain", Form::Plain), ("pairs", Form::Pairs), ("list", Form::List)]);
        let field = section.opt_string("field");
        let item = section.opt_u64("item", 1..=64);
        let separator = section.opt_string("separator");
        let assign = section.opt_string("assign");
        let version = section.opt_string("version");
        if separator.as_ref().is_some_and(String::is_empty) || assign.as_ref().is_some_and(String::is_empty) {
            section.problem("separator", "a separator is empty", "leave the key out for the default");
            return None;
        }
        let lent = same.filter(|other| other.at == at).map(|other| &other.pick);
        let format = format.unwrap_or(if field.is_some() {
            Form::Pairs
        } else if version.is_some() {
            Form::List
        } else {
            Form::Plain
        });
        let only = |key: &str, set: bool, what: &str| {
            if set {
                section.problem(key, format!("`{key}` is for the format {what}"), format!("set `format = {what}`, or remove it"));
            }
        };
        let pick = if let Some(number) = item {
            let separator = separator.or_else(|| lent.and_then(Pick::separator).map(str::to_owned)).unwrap_or_else(|| ",".to_owned());
            Pick::Item { separator, number: usize::try_from(number).unwrap_or(1) }
        } else {
            match format {
                Form::Plain => {
                    only("separator", separator.is_some(), "\"pairs\" or \"list\"");
                    only("assign", assign.is_some(), "\"pairs\"");
                    only("version", version.is_some(), "\"list\"");
                    only("field", field.is_some(), "\"pairs\"");
                    Pick::Whole
                }
                Form::Pairs => {
                    only("version", version.is_some(), "\"list\"");
                    let (lent_separator, lent_assign) = match lent {
                        Some(Pick::Pairs { separator, assign, .. }) => (separator.as_str(), assign.as_str()),
                        _ => (",", "="),
                    };
                    let Some(field) = field else {
                        section.problem("field", "`field` is missing", "say which `field=value` item holds the value");
                        return None;
                    };
                    Pick::Pairs {
                        separator: separator.unwrap_or_else(|| lent_separator.to_owned()),
                        assign: assign.unwrap_or_else(|| lent_assign.to_owned()),
                        field,
                    }
                }
                Form::List => {
                    only("assign", assign.is_some(), "\"pairs\"");
                    only("field", field.is_some(), "\"pairs\"");
                    Pick::List { separator: separator.unwrap_or_else(|| ",".to_owned()), version: version.unwrap_or_default() }
                }
            }
        };
        Some(Self { at, prefix, pick })
    }

    /// The same, where a header's bare name is allowed too.
    pub(super) fn read_item(item: &Item<'_>, pointers: &Pointers) -> Option<Self> {
        if item.is_table() {
            let section = item.section()?;
            let place = Self::read(&section, pointers, None);
            section.finish();
            return place;
        }
        match At::header(&item.string()?) {
            Some(at) => Some(Self { at, prefix: String::new(), pick: Pick::Whole }),
            None => {
                item.problem("this is not the name of a header", "letters, digits and `-`");
                None
            }
        }
    }
}

/// A place that must have a value, and what that may consist of.
#[derive(Clone, Debug)]
pub(super) struct Required {
    pub(super) place: Place,
    only: Option<Vec<(u8, u8)>>,
}

impl Required {
    /// A header's bare name, or a table: a place and `only`, a set of ASCII characters and ranges such as `A-Za-z0-9_`.
    pub(super) fn read(item: &Item<'_>, pointers: &Pointers) -> Option<Self> {
        if !item.is_table() {
            return Place::read_item(item, pointers).map(|place| Self { place, only: None });
        }
        let section = item.section()?;
        let place = Place::read(&section, pointers, None);
        let only = section.opt_string("only");
        section.finish();
        if let Some(set) = &only
            && (set.is_empty() || !set.is_ascii())
        {
            item.problem("`only` is not a set of ASCII characters", "write it like \"A-Za-z0-9_\"; a `-` itself stands first or last");
        }
        Some(Self { place: place?, only: only.map(|set| ranges(set.as_bytes())) })
    }

    pub(super) fn check(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<(), Reject> {
        let place = &self.place;
        let value = place
            .value(facts, body)?
            .ok_or_else(|| Reject::new(Reason::SignatureMissing, format!("{place}, which this provider always sends, is missing or empty")))?;
        if self.only.as_ref().is_some_and(|only| !value.iter().all(|byte| only.iter().any(|(from, to)| (from..=to).contains(&byte)))) {
            return Err(Reject::new(Reason::SignatureMalformed, format!("{place} holds a character that this provider never sends there")));
        }
        Ok(())
    }
}

/// `A-Z_` as ranges.
fn ranges(set: &[u8]) -> Vec<(u8, u8)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < set.len() {
        match set[at..] {
            [from, b'-', to, ..] => {
                out.push((from, to));
                at += 3;
            }
            [one, ..] => {
                out.push((one, one));
                at += 1;
            }
            [] => {}
        }
    }
    out
}

#[derive(Clone, Copy)]
enum Form {
    Plain,
    Pairs,
    List,
}

impl Pick {
    fn separator(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Pairs { separator, .. } | Self::List { separator, .. } | Self::Item { separator, .. } => Some(separator),
        }
    }
}

impl At {
    fn header(name: &str) -> Option<Self> {
        if let Some(prefix) = name.strip_suffix('#') {
            HeaderName::from_bytes(prefix.as_bytes()).ok()?;
            return Some(Self::Numbered(prefix.to_ascii_lowercase()));
        }
        HeaderName::from_bytes(name.as_bytes()).ok().map(Self::Header)
    }

    fn read(key: &str, item: &Item<'_>, section: &Section<'_>, pointers: &Pointers) -> Option<Self> {
        let name = item.string()?;
        if name.is_empty() && key != "json" {
            item.problem(format!("`{key}` is empty"), "name it");
            return None;
        }
        match key {
            "header" => Self::header(&name).or_else(|| {
                item.problem(format!("`{name}` is not the name of a header"), "letters, digits and `-`; a `#` at the end stands for a number");
                None
            }),
            "json" => {
                let kind = section.choice("type", &[("string", Kind::Text), ("number", Kind::Number)]);
                match Pointer::parse(&name) {
                    Ok(pointer) => Some(Self::Json { index: pointers.index(&pointer), pointer, kind }),
                    Err(why) => {
                        item.problem(format!("`{name}` is not a JSON pointer: {why}"), "write it like \"/data/id\"");
                        None
                    }
                }
            }
            "query" => Some(Self::Query(name)),
            _ => Some(Self::Form(name)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Pick::Pairs { field, .. } = &self.pick {
            write!(f, "`{field}` of ")?;
        }
        match &self.at {
            At::Header(name) => write!(f, "the header `{name}`"),
            At::Numbered(prefix) => write!(f, "the header `{prefix}N`"),
            At::Query(name) => write!(f, "the query parameter `{name}`"),
            At::Form(name) => write!(f, "the form field `{name}`"),
            At::Json { pointer, .. } => write!(f, "the JSON field `{}`", pointer.as_str()),
        }
    }
}

/// Whether a header is named `prefix` and a number of at most four digits.
pub(super) fn is_numbered(name: &HeaderName, prefix: &str) -> bool {
    name.as_str().strip_prefix(prefix).is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The values of the headers that are so named.
fn numbered<'a>(facts: &Facts<'a>, prefix: &str) -> impl Iterator<Item = &'a [u8]> {
    let prefix = prefix.to_owned();
    facts.headers.iter().filter(move |(name, _)| is_numbered(name, &prefix)).map(|(_, value)| value.as_bytes())
}

/// The items of a list, blanks around them cut off.
fn list<'a>(value: &'a [u8], separator: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(value);
    let separator = separator.as_bytes();
    std::iter::from_fn(move || {
        let whole = rest?;
        match whole.windows(separator.len()).position(|window| window == separator) {
            Some(at) => {
                rest = Some(&whole[at + separator.len()..]);
                Some(&whole[..at])
            }
            None => {
                rest = None;
                Some(whole)
            }
        }
    })
    .map(<[u8]>::trim_ascii)
}

fn pairs<'a>(value: &'a [u8], separator: &'a str, assign: &'a str) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let assign = assign.as_bytes();
    list(value, separator).filter_map(move |item| {
        let at = item.windows(assign.len()).position(|window| window == assign)?;
        Some((&item[..at], &item[at + assign.len()..]))
    })
}
