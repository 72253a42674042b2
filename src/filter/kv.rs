//! The filters' small store: a namespace per filter, bounded, with expiry.
//!
//! The gate keeps it in its [`State`]; [`Memory`] is for `check`, benches and tests.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;

pub(crate) use crate::state::NAMESPACE_BYTES;
use crate::{
    clock::Now,
    state::{self, Namespaces, State},
};

/// Longest key, in bytes; an empty one is refused too.
pub(crate) const KEY_BYTES: usize = 256;
/// Longest value, in bytes.
pub(crate) const VALUE_BYTES: usize = 64 << 10;

/// What a filter asks of its namespace; each is one step that no other call can get between.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    Get,
    Set {
        value: Vec<u8>,
        ttl: Option<Duration>,
    },
    Delete,
    /// Adds to a number kept as decimal text; `ttl` counts only when the key is made.
    Increment {
        by: i64,
        ttl: Option<Duration>,
    },
    /// Sets the value only if it is `expected` now; `None`: only if absent.
    Swap {
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Value(Option<Vec<u8>>),
    /// Whether it was done: there was something to delete, the expected value stood there.
    Done(bool),
    Sum(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KvError {
    /// A number was wanted where there is none, or it would overflow.
    NotANumber,
    Full,
    Unavailable(String),
}

/// A store of filters' values. Keys and values are within their limits already.
pub(crate) trait Kv: Send + Sync {
    fn run<'a>(&'a self, filter: &'a str, key: String, operation: Operation, now: Now) -> BoxFuture<'a, Result<Reply, KvError>>;
}

/// On disk, beside the replay records.
impl Kv for State {
    fn run<'a>(&'a self, filter: &'a str, key: String, operation: Operation, now: Now) -> BoxFuture<'a, Result<Reply, KvError>> {
        let reply = match operation {
            Operation::Get => Ok(Reply::Value(self.kv_get(filter, &key, now).map(|value| value.to_vec()))),
            Operation::Set { value, ttl } => self.kv_set(filter, &key, value.into(), ttl, now).map(|()| Reply::Done(true)),
            Operation::Delete => self.kv_delete(filter, &key, now).map(Reply::Done),
            Operation::Increment { by, ttl } => self.kv_increment(filter, &key, by, ttl, now).map(Reply::Sum),
            Operation::Swap { expected, value, ttl } => self.kv_compare_and_set(filter, &key, expected.as_deref(), value.into(), ttl, now).map(Reply::Done),
        };
        Box::pin(std::future::ready(reply.map_err(KvError::from)))
    }
}

impl From<state::KvError> for KvError {
    fn from(why: state::KvError) -> Self {
        match why {
            state::KvError::NotANumber => Self::NotANumber,
            state::KvError::Full => Self::Full,
            state::KvError::Unavailable => Self::Unavailable("the state store does not answer".to_owned()),
        }
    }
}

/// In memory, for one process: what the state keeps, without its file.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Namespaces>);

impl Kv for Memory {
    fn run<'a>(&'a self, filter: &'a str, key: String, operation: Operation, now: Now) -> BoxFuture<'a, Result<Reply, KvError>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match operation {
            Operation::Get => Ok(Reply::Value(all.get(filter, &key, now).map(|value| value.to_vec()))),
            Operation::Set { value, ttl } => all.set(filter, &key, value.into(), ttl, now).map(|_| Reply::Done(true)),
            Operation::Delete => Ok(Reply::Done(all.delete(filter, &key, now).is_some())),
            Operation::Increment { by, ttl } => all.increment(filter, &key, by, ttl, now).map(|(sum, _)| Reply::Sum(sum)),
            Operation::Swap { expected, value, ttl } => {
                all.compare_and_set(filter, &key, expected.as_deref(), value.into(), ttl, now).map(|written| Reply::Done(written.is_some()))
            }
        };
        Box::pin(std::future::ready(reply.map_err(KvError::from)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::Mono;

    fn check(steps: &[(u64, &str, Operation, Result<Reply, KvError>)]) {
        let memory = Memory::default();
        for (seconds, key, operation, expected) in steps {
            let now = Now { wall_ms: i64::try_from(seconds * 1000).expect("small"), mono: Mono(seconds * 1_000_000_000) };
            let got = memory.run("f", (*key).to_owned(), operation.clone(), now).now_or_never();
            assert_eq!(got.as_ref(), Some(expected), "{operation:?} of {key} at {seconds} s");
        }
    }

    fn set(value: &str, ttl: Option<u64>) -> Operation {
        Operation::Set { value: value.into(), ttl: ttl.map(Duration::from_secs) }
    }

    fn add(by: i64, ttl: Option<u64>) -> Operation {
        Operation::Increment { by, ttl: ttl.map(Duration::from_secs) }
    }

    fn swap(expected: Option<&str>, value: &str) -> Operation {
        Operation::Swap { expected: expected.map(Into::into), value: value.into(), ttl: None }
    }

    fn value(value: &str) -> Result<Reply, KvError> {
        Ok(Reply::Value(Some(value.into())))
    }

    const NOTHING: Result<Reply, KvError> = Ok(Reply::Value(None));
    const YES: Result<Reply, KvError> = Ok(Reply::Done(true));
    const NO: Result<Reply, KvError> = Ok(Reply::Done(false));

    #[test]
    fn values_come_and_go() {
        check(&[
            (0, "a", Operation::Get, NOTHING),
            (0, "a", set("1", None), YES),
            (9, "a", Operation::Get, value("1")),
            (9, "a", Operation::Delete, YES),
            (9, "a", Operation::Delete, NO),
        ]);
        check(&[(0, "a", set("1", Some(5)), YES), (4, "a", Operation::Get, value("1")), (5, "a", Operation::Get, NOTHING)]);
    }

    #[test]
    fn a_counter_keeps_its_window() {
        check(&[
            (0, "n", add(2, Some(10)), Ok(Reply::Sum(2))),
            (9, "n", add(-5, Some(10)), Ok(Reply::Sum(-3))),
            (10, "n", add(1, Some(10)), Ok(Reply::Sum(1))),
        ]);
        check(&[(0, "n", set("x", None), YES), (0, "n", add(1, None), Err(KvError::NotANumber))]);
        check(&[(0, "n", add(i64::MAX, None), Ok(Reply::Sum(i64::MAX))), (0, "n", add(1, None), Err(KvError::NotANumber))]);
    }

    #[test]
    fn swaps_only_what_is_expected() {
        check(&[
            (0, "a", swap(Some("x"), "y"), NO),
            (0, "a", swap(None, "y"), YES),
            (0, "a", swap(None, "z"), NO),
            (0, "a", swap(Some("y"), "z"), YES),
            (0, "a", Operation::Get, value("z")),
        ]);
    }

    #[test]
    fn a_full_namespace_refuses_until_something_expires() {
        let big = "x".repeat(VALUE_BYTES);
        let mut steps: Vec<(u64, String, Operation, Result<Reply, KvError>)> =
            (0..15).map(|n| (0, n.to_string(), set(&big, (n == 3).then_some(60)), YES)).collect();
        steps.push((0, "15".into(), set(&big, None), Err(KvError::Full)));
        steps.push((0, "0".into(), set(&big, None), YES));
        steps.push((60, "15".into(), set(&big, None), YES));
        let steps: Vec<_> = steps.iter().map(|(at, key, operation, expected)| (*at, key.as_str(), operation.clone(), expected.clone())).collect();
        check(&steps);
    }
}
