//! The values of an evaluation: scalars, and views of what the event holds.

use std::{cmp::Ordering, sync::Arc};

use http::HeaderMap;
use serde_json::Value as Json;

use super::Pairs;

/// Text that lies in the event or the condition, or was made by the evaluation.
#[derive(Clone, Debug)]
pub(super) enum Text<'a> {
    Borrowed(&'a str),
    Made(Arc<str>),
}

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Made(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    /// Nanoseconds of Unix time.
    Time(i128),
    /// Nanoseconds.
    Span(i128),
    List(Arc<[Value<'a>]>),
    Map(Arc<[(Value<'a>, Value<'a>)]>),
    /// An array or an object of the body; scalars become the variants above.
    Array(&'a [Json]),
    Object(&'a serde_json::Map<String, Json>),
    /// A form or a query; of several equal names the first counts.
    Pairs(&'a Pairs),
    Headers(&'a HeaderMap),
    /// `event` and `client`: a record whose fields were resolved.
    Record(Arc<[(&'static str, Value<'a>)]>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: &'a str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    pub(super) fn made(text: impl Into<Arc<str>>) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    pub(super) fn opt_text(text: Option<&'a str>) -> Self {
        text.map_or(Self::Null, Self::text)
    }

    pub(super) fn json(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(truth) => Self::Bool(*truth),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(int),
                (None, Some(uint)) => Self::Uint(uint),
                (None, None) => number.as_f64().map_or(Self::Null, Self::Double),
            },
            Json::String(text) => Self::text(text),
            Json::Array(array) => Self::Array(array),
            Json::Object(object) => Self::Object(object),
        }
    }

    /// For messages: says the type, never the value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) => "a whole number",
            Self::Double(_) => "a number",
            Self::Text(_) => "text",
            Self::Time(_) => "a time",
            Self::Span(_) => "a duration",
            Self::List(_) | Self::Array(_) => "a list",
            Self::Map(_) | Self::Object(_) | Self::Pairs(_) | Self::Headers(_) | Self::Record(_) => "a map",
        }
    }

    /// How many elements or entries; `None` for what holds none.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Self::List(list) => Some(list.len()),
            Self::Array(array) => Some(array.len()),
            Self::Map(map) => Some(map.len()),
            Self::Object(object) => Some(object.len()),
            Self::Pairs(pairs) => Some(pairs.len()),
            Self::Headers(headers) => Some(headers.keys_len()),
            Self::Record(fields) => Some(fields.len()),
            _ => None,
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Array(_))
    }

    pub(super) fn is_map(&self) -> bool {
        self.len().is_some() && !self.is_list()
    }

    /// The entry of a map by name; `Some(None)` where it has none, `None` where this is no map.
    pub(super) fn field(&self, name: &str) -> Option<Option<Value<'a>>> {
        Some(match self {
            Self::Object(object) => object.get(name).map(Value::json),
            Self::Pairs(pairs) => pairs.iter().find(|(key, _)| key == name).map(|(_, value)| Value::text(value)),
            Self::Headers(headers) => headers.get(name).map(header),
            Self::Record(fields) => fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()),
            Self::Map(map) => map.iter().find(|(key, _)| matches!(key, Value::Text(text) if text.as_str() == name)).map(|(_, value)| value.clone()),
            _ => return None,
        })
    }

    /// The entry of a map by key, the element of a list by position; `Some(None)` where there is none, `None` where it cannot be asked.
    pub(super) fn entry(&self, key: &Value<'_>) -> Option<Option<Value<'a>>> {
        if let Value::Text(name) = key {
            return self.field(name.as_str());
        }
        match self {
            Self::Map(map) => Some(map.iter().find(|(own, _)| own.equals(key, &mut |_| ())).map(|(_, value)| value.clone())),
            Self::List(list) => Some(list.get(position(key)?).cloned()),
            Self::Array(array) => Some(array.get(position(key)?).map(Value::json)),
            // Names of these are always text.
            Self::Object(_) | Self::Pairs(_) | Self::Headers(_) | Self::Record(_) => Some(None),
            _ => None,
        }
    }

    /// The elements of a list, the keys of a map; nothing for a scalar.
    pub(super) fn elements(&self) -> Vec<Value<'a>> {
        match self {
            Self::List(list) => list.to_vec(),
            Self::Array(array) => array.iter().map(Value::json).collect(),
            Self::Map(map) => map.iter().map(|(key, _)| key.clone()).collect(),
            Self::Pairs(pairs) => pairs.iter().map(|(key, _)| Value::text(key)).collect(),
            Self::Object(object) => object.keys().map(|key| Value::text(key)).collect(),
            Self::Headers(headers) => headers.keys().map(|name| Value::text(name.as_str())).collect(),
            Self::Record(fields) => fields.iter().map(|(key, _)| Value::text(key)).collect(),
            _ => Vec::new(),
        }
    }

    /// Equality of the language: numbers by value whatever their type, lists and maps by their contents, other types never.
    ///
    /// `charge` is told the cost of every comparison made.
    pub(super) fn equals(&self, other: &Value<'_>, charge: &mut dyn FnMut(usize)) -> bool {
        charge(1);
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::Time(a), Value::Time(b)) | (Self::Span(a), Value::Span(b)) => a == b,
            (Self::Text(a), Value::Text(b)) => {
                charge(a.as_str().len().min(b.as_str().len()) / 64);
                a.as_str() == b.as_str()
            }
            _ if self.is_list() && other.is_list() => {
                let (own, theirs) = (self.elements(), other.elements());
                charge(own.len());
                own.len() == theirs.len() && own.iter().zip(&theirs).all(|(a, b)| a.equals(b, charge))
            }
            _ if self.is_map() && other.is_map() => {
                let keys = self.elements();
                charge(keys.len());
                self.len() == other.len()
                    && keys.iter().all(|key| matches!((self.entry(key), other.entry(key)), (Some(Some(a)), Some(Some(b))) if a.equals(&b, charge)))
            }
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// The order of two numbers, texts, booleans, times or durations; `None` where there is none.
    pub(super) fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Value::Text(b)) => Some(a.as_str().cmp(b.as_str())),
            (Self::Time(a), Value::Time(b)) | (Self::Span(a), Value::Span(b)) => Some(a.cmp(b)),
            (Self::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), b) => Some(whole_to_double(b.whole()?, *a)?.reverse()),
            (a, Value::Double(b)) => whole_to_double(a.whole()?, *b),
            (a, b) => Some(a.whole()?.cmp(&b.whole()?)),
        }
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(i128::from(*int)),
            Self::Uint(uint) => Some(i128::from(*uint)),
            _ => None,
        }
    }
}

/// Exact: neither side is rounded to the other's type.
fn whole_to_double(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // Beyond every whole number we hold; the cast below saturates only outside this range.
    if double >= 1e30 {
        return Some(Ordering::Less);
    }
    if double <= -1e30 {
        return Some(Ordering::Greater);
    }
    let floor = double.floor();
    Some(match whole.cmp(&(floor as i128)) {
        Ordering::Equal if double > floor => Ordering::Less,
        order => order,
    })
}

fn position(key: &Value<'_>) -> Option<usize> {
    match key {
        Value::Int(int) => Some(usize::try_from(*int).unwrap_or(usize::MAX)),
        Value::Uint(uint) => Some(usize::try_from(*uint).unwrap_or(usize::MAX)),
        _ => None,
    }
}

/// A header's value as text; bytes that are no UTF-8 are replaced.
fn header(value: &http::HeaderValue) -> Value<'_> {
    match String::from_utf8_lossy(value.as_bytes()) {
        std::borrow::Cow::Borrowed(text) => Value::text(text),
        std::borrow::Cow::Owned(text) => Value::made(text),
    }
}
