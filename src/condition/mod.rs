//! Conditions (`when`): CEL expressions over an event, compiled at load and evaluated in bounds. Pure.
//!
//! The only room that knows the `cel` crate, and of it only the parser. Its evaluator has no limit in steps, recurses on the
//! caller's stack and wants the body copied into its own values; ours walks the same syntax tree over the event where it lies,
//! counts its steps, and follows the language's definition but for one rule of the contract: what is absent is `null`, not an error.
//!
//! The language: literals, lists, maps, `==` and the other comparisons, `&&`, `||`, `!`, `?:`, `in`, arithmetic, `has()`, `size()`,
//! `contains`, `startsWith`, `endsWith`, `matches` (linear-time patterns, written out), `all`, `exists`, `exists_one`, `map`, `filter`,
//! `int`, `uint`, `double`, `string`, `bool`, `timestamp`, `duration` and the accessors of the last two.

pub(crate) mod bench;
mod compile;
mod eval;
mod exclude;
mod value;

use std::{borrow::Cow, cell::OnceCell, fmt};

use http::header::CONTENT_TYPE;

use crate::{clock::Now, event::Event};

/// The longest source text, in bytes.
pub(crate) const MAX_SOURCE: usize = 4096;

/// The deepest nesting of the compiled tree: evaluation recurses on a worker's stack.
pub(crate) const MAX_DEPTH: usize = 64;

/// The most steps one evaluation may take: one for each node visited, more for long texts and lists.
pub(crate) const MAX_STEPS: u32 = 200_000;

/// The longest one evaluation may take, counted from its 1,024th step: shorter ones never ask the clock.
pub(crate) const MAX_TIME: std::time::Duration = std::time::Duration::from_millis(20);

/// The most values a body may hold for a condition to look into it; a tree of them costs about a hundred bytes each.
const MAX_VALUES: usize = 250_000;

/// One compiled condition.
pub(crate) struct Condition {
    text: String,
    root: compile::Node,
    params: Vec<String>,
}

impl Condition {
    /// Reads and checks the text; the error says what is wrong, where, and what to do.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        let (root, params) = compile::compile(text)?;
        Ok(Self { text: text.to_owned(), root, params })
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The path parameters that it names.
    pub(crate) fn path_params(&self) -> &[String] {
        &self.params
    }

    /// Whether it holds for the event. Never longer than the bounds above; what to do on an error is the caller's rule.
    pub(crate) fn matches(&self, scope: &Scope<'_>) -> Result<bool, Error> {
        eval::matches(&self.root, scope)
    }

    /// Whether this and `other` provably never hold for one event, by constants that the same field is compared with.
    ///
    /// "No" means only that no proof was found.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        exclude::disjoint(&self.root, &other.root)
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.text)
    }
}

/// Why an evaluation gave no answer. Says nothing of the event's own values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the condition is {0}, not true or false")]
    NotBool(&'static str),
    #[error("`{operation}` does not take {found}")]
    Type { operation: &'static str, found: &'static str },
    #[error("`{0}` is out of range")]
    Range(&'static str),
    #[error("division by zero")]
    DivisionByZero,
    #[error("`{0}` cannot read its text")]
    Unreadable(&'static str),
    #[error("the evaluation took more than {MAX_STEPS} steps")]
    Steps,
    #[error("the evaluation took longer than {} ms", MAX_TIME.as_millis())]
    Time,
    #[error("the body holds more than {MAX_VALUES} values")]
    BodyTooLarge,
}

impl Error {
    /// Limits end the evaluation; other errors give way to a side of `&&` or `||` that decides by itself.
    fn is_limit(&self) -> bool {
        matches!(self, Self::Steps | Self::Time | Self::BodyTooLarge)
    }
}

/// What conditions see of one event. Made once an event; the body and the query are read when first asked for, once.
pub(crate) struct Scope<'a> {
    event: &'a Event,
    now: Now,
    body: OnceCell<Result<Body, Error>>,
    query: OnceCell<Pairs>,
}

/// Names and values, in the order they came.
type Pairs = Vec<(String, String)>;

#[derive(Debug, PartialEq)]
enum Body {
    Json(serde_json::Value),
    Form(Pairs),
    /// Neither: `null`.
    Other,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(event: &'a Event, now: Now) -> Self {
        Self { event, now, body: OnceCell::new(), query: OnceCell::new() }
    }

    fn body(&self) -> Result<&Body, Error> {
        self.body.get_or_init(|| Body::read(self.event)).as_ref().map_err(Clone::clone)
    }

    fn query(&self) -> &Pairs {
        self.query.get_or_init(|| self.event.query.as_deref().map(|query| pairs(query.as_bytes())).unwrap_or_default())
    }
}

impl Body {
    fn read(event: &Event) -> Result<Self, Error> {
        let bytes = match event.body.pieces().count() {
            1 => event.body.pieces().next().map_or(Cow::Borrowed(&[][..]), |piece| Cow::Borrowed(&piece[..])),
            _ => Cow::Owned(event.body.to_bytes().into()),
        };
        let kind = event.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            if memchr::memchr_iter(b'&', &bytes).count() >= MAX_VALUES {
                return Err(Error::BodyTooLarge);
            }
            return Ok(Self::Form(pairs(&bytes)));
        }
        // A text of n commas and opening brackets holds at most n + 1 values.
        if memchr::memchr3_iter(b',', b'[', b'{', &bytes).count() >= MAX_VALUES {
            return Err(Error::BodyTooLarge);
        }
        Ok(serde_json::from_slice(&bytes).map_or(Self::Other, Self::Json))
    }
}

fn pairs(text: &[u8]) -> Pairs {
    form_urlencoded::parse(text).into_owned().collect()
}

#[cfg(test)]
mod tests;
