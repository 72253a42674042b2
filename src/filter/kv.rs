//! The filters' small store: a namespace per filter, bounded, with expiry.
//!
//! The gate keeps it in its [`State`]; [`Memory`] is for `check`, benches and tests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;

use crate::{
    clock::{Mono, Now},
    state::{self, State},
};

/// Longest key, in bytes; an empty one is refused too.
pub(crate) const KEY_BYTES: usize = 256;
/// Longest value, in bytes.
pub(crate) const VALUE_BYTES: usize = 64 << 10;
/// All keys and values of one filter, in bytes, with [`ENTRY_BYTES`] for each entry.
pub(crate) const NAMESPACE_BYTES: usize = 1 << 20;
/// What an entry costs beside its key and value.
const ENTRY_BYTES: usize = 64;

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
        let reply = reply.map_err(|why| match why {
            state::KvError::NotANumber => KvError::NotANumber,
            state::KvError::Full => KvError::Full,
            state::KvError::Unavailable => KvError::Unavailable("the state store does not answer".to_owned()),
        });
        Box::pin(std::future::ready(reply))
    }
}

/// In memory, for one process.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<BTreeMap<String, Namespace>>);

impl Kv for Memory {
    fn run<'a>(&'a self, filter: &'a str, key: String, operation: Operation, now: Now) -> BoxFuture<'a, Result<Reply, KvError>> {
        let mut namespaces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !namespaces.contains_key(filter) {
            namespaces.insert(filter.to_owned(), Namespace::default());
        }
        let reply = namespaces.get_mut(filter).map_or(Err(KvError::Full), |namespace| namespace.run(key, operation, now.mono));
        Box::pin(std::future::ready(reply))
    }
}

#[derive(Debug, Default)]
struct Namespace {
    entries: HashMap<String, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    expires: Option<Mono>,
}

impl Namespace {
    fn run(&mut self, key: String, operation: Operation, now: Mono) -> Result<Reply, KvError> {
        if self.entries.get(&key).is_some_and(|entry| expired(entry, now)) {
            self.remove(&key);
        }
        match operation {
            Operation::Get => Ok(Reply::Value(self.entries.get(&key).map(|entry| entry.value.clone()))),
            Operation::Delete => Ok(Reply::Done(self.remove(&key))),
            Operation::Set { value, ttl } => self.put(key, value, ttl.map(|ttl| now.plus(ttl)), now).map(|()| Reply::Done(true)),
            Operation::Increment { by, ttl } => {
                let (old, expires) = match self.entries.get(&key) {
                    Some(entry) => (number(&entry.value).ok_or(KvError::NotANumber)?, entry.expires),
                    None => (0, ttl.map(|ttl| now.plus(ttl))),
                };
                let sum = old.checked_add(by).ok_or(KvError::NotANumber)?;
                self.put(key, sum.to_string().into_bytes(), expires, now)?;
                Ok(Reply::Sum(sum))
            }
            Operation::Swap { expected, value, ttl } => {
                if self.entries.get(&key).map(|entry| &entry.value) != expected.as_ref() {
                    return Ok(Reply::Done(false));
                }
                self.put(key, value, ttl.map(|ttl| now.plus(ttl)), now)?;
                Ok(Reply::Done(true))
            }
        }
    }

    fn put(&mut self, key: String, value: Vec<u8>, expires: Option<Mono>, now: Mono) -> Result<(), KvError> {
        let old = self.entries.get(&key).map_or(0, |entry| cost(&key, entry));
        let entry = Entry { value, expires };
        let new = cost(&key, &entry);
        if self.bytes - old + new > NAMESPACE_BYTES {
            let gone: Vec<String> = self.entries.iter().filter(|(_, entry)| expired(entry, now)).map(|(key, _)| key.clone()).collect();
            for key in &gone {
                self.remove(key);
            }
            if self.bytes - old + new > NAMESPACE_BYTES {
                return Err(KvError::Full);
            }
        }
        self.bytes = self.bytes - old + new;
        self.entries.insert(key, entry);
        Ok(())
    }

    fn remove(&mut self, key: &str) -> bool {
        let removed = self.entries.remove(key);
        self.bytes -= removed.as_ref().map_or(0, |entry| cost(key, entry));
        removed.is_some()
    }
}

fn expired(entry: &Entry, now: Mono) -> bool {
    entry.expires.is_some_and(|at| at <= now)
}

fn cost(key: &str, entry: &Entry) -> usize {
    key.len() + entry.value.len() + ENTRY_BYTES
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(steps: &[(u64, &str, Operation, Result<Reply, KvError>)]) {
        let mut namespace = Namespace::default();
        for (seconds, key, operation, expected) in steps {
            let got = namespace.run((*key).to_owned(), operation.clone(), Mono(seconds * 1_000_000_000));
            assert_eq!(&got, expected, "{operation:?} of {key} at {seconds} s");
        }
        let counted: usize = namespace.entries.iter().map(|(key, entry)| cost(key, entry)).sum();
        assert_eq!(namespace.bytes, counted, "the account is right");
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
