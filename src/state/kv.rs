//! The filters' values: a namespace per filter, in memory as a whole, written behind. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;

use crate::clock::{Mono, Now};

/// All keys and values of one namespace, in bytes, with [`ENTRY_BYTES`] for each entry.
pub(crate) const NAMESPACE_BYTES: usize = 1 << 20;
/// What an entry costs beside its key and value.
const ENTRY_BYTES: usize = 64;

/// Why a value was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvError {
    /// A number was wanted where there is none, or the sum would overflow.
    NotANumber,
    /// The namespace is full.
    Full,
    /// The store does not answer.
    Unavailable,
}

/// What must be written of a change: the value and when it expires in Unix milliseconds (0: never), or that it is gone.
pub(crate) type Written = Option<(u64, Bytes)>;

#[derive(Debug, Default)]
pub(crate) struct Namespaces(BTreeMap<Box<str>, Namespace>);

#[derive(Debug, Default)]
struct Namespace {
    entries: HashMap<Box<str>, Entry>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Bytes,
    expires: Option<Mono>,
    expires_wall_ms: u64,
}

impl Entry {
    fn new(value: Bytes, ttl: Option<Duration>, now: Now) -> Self {
        let wall = |ttl: Duration| u64::try_from(now.wall_ms).unwrap_or(0).saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)).max(1);
        Self { value, expires: ttl.map(|ttl| now.mono.plus(ttl)), expires_wall_ms: ttl.map_or(0, wall) }
    }

    fn is_over(&self, now: Now) -> bool {
        self.expires.is_some_and(|at| at <= now.mono)
    }

    fn written(&self) -> Written {
        Some((self.expires_wall_ms, self.value.clone()))
    }
}

impl Namespaces {
    pub(crate) fn get(&self, namespace: &str, key: &str, now: Now) -> Option<Bytes> {
        self.0.get(namespace)?.live(key, now).map(|entry| entry.value.clone())
    }

    pub(crate) fn set(&mut self, namespace: &str, key: &str, value: Bytes, ttl: Option<Duration>, now: Now) -> Result<Written, KvError> {
        self.space(namespace).put(key, Entry::new(value, ttl, now), now)
    }

    /// The change, or `None` where there was nothing.
    pub(crate) fn delete(&mut self, namespace: &str, key: &str, now: Now) -> Option<Written> {
        let space = self.space(namespace);
        let live = space.live(key, now).is_some();
        space.remove(key);
        live.then_some(None)
    }

    pub(crate) fn increment(&mut self, namespace: &str, key: &str, by: i64, ttl: Option<Duration>, now: Now) -> Result<(i64, Written), KvError> {
        let space = self.space(namespace);
        let (sum, mut entry) = match space.live(key, now) {
            Some(entry) => {
                let number: i64 = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()).ok_or(KvError::NotANumber)?;
                (number.checked_add(by).ok_or(KvError::NotANumber)?, entry.clone())
            }
            None => (by, Entry::new(Bytes::new(), ttl, now)),
        };
        entry.value = sum.to_string().into();
        Ok((sum, space.put(key, entry, now)?))
    }

    /// The change, or `None` where something else stood there.
    pub(crate) fn compare_and_set(
        &mut self,
        namespace: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: Bytes,
        ttl: Option<Duration>,
        now: Now,
    ) -> Result<Option<Written>, KvError> {
        let space = self.space(namespace);
        if space.live(key, now).map(|entry| &entry.value[..]) != expected {
            return Ok(None);
        }
        space.put(key, Entry::new(value, ttl, now), now).map(Some)
    }

    /// Takes in what was read from the file; what is here already is newer.
    pub(super) fn load(&mut self, namespace: &str, key: &str, value: &[u8], expires_wall_ms: u64, now: Now) {
        let left = expires_wall_ms.checked_sub(u64::try_from(now.wall_ms).unwrap_or(0)).map(Duration::from_millis);
        let expires = if expires_wall_ms == 0 { None } else { Some(now.mono.plus(left.unwrap_or_default())) };
        let space = self.space(namespace);
        if !space.entries.contains_key(key) {
            let entry = Entry { value: Bytes::copy_from_slice(value), expires, expires_wall_ms };
            space.bytes += cost(key, &entry);
            space.entries.insert(key.into(), entry);
        }
    }

    /// Drops what has expired and says what it was.
    pub(super) fn sweep(&mut self, now: Now) -> Vec<(Box<str>, Box<str>)> {
        let mut gone = Vec::new();
        for (name, space) in &mut self.0 {
            gone.extend(space.sweep(now).into_iter().map(|key| (name.clone(), key)));
        }
        gone
    }

    fn space(&mut self, namespace: &str) -> &mut Namespace {
        if !self.0.contains_key(namespace) {
            self.0.insert(namespace.into(), Namespace::default());
        }
        self.0.entry(namespace.into()).or_default()
    }
}

impl Namespace {
    fn live(&self, key: &str, now: Now) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.is_over(now))
    }

    fn put(&mut self, key: &str, entry: Entry, now: Now) -> Result<Written, KvError> {
        let old = self.entries.get(key).map_or(0, |old| cost(key, old));
        let new = cost(key, &entry);
        // Expired entries stay for the sweep to write off, and do not count against the bound.
        let bytes = self.bytes - old + new;
        if bytes > NAMESPACE_BYTES {
            let dead: usize = self.entries.iter().filter(|(name, entry)| &***name != key && entry.is_over(now)).map(|(name, entry)| cost(name, entry)).sum();
            if bytes - dead > NAMESPACE_BYTES {
                return Err(KvError::Full);
            }
        }
        self.bytes = bytes;
        let written = entry.written();
        self.entries.insert(key.into(), entry);
        Ok(written)
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= cost(key, &entry);
        }
    }

    fn sweep(&mut self, now: Now) -> Vec<Box<str>> {
        let gone: Vec<Box<str>> = self.entries.iter().filter(|(_, entry)| entry.is_over(now)).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
        gone
    }
}

fn cost(key: &str, entry: &Entry) -> usize {
    key.len() + entry.value.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { wall_ms: 1_790_000_000_000 + i64::try_from(seconds).expect("small") * 1000, mono: Mono(seconds * 1_000_000_000) }
    }

    fn value(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn counted(kv: &Namespaces) {
        for space in kv.0.values() {
            assert_eq!(space.bytes, space.entries.iter().map(|(key, entry)| cost(key, entry)).sum::<usize>(), "the account is right");
        }
    }

    #[test]
    fn a_counter_keeps_its_window() {
        let mut kv = Namespaces::default();
        let mut add = |seconds: u64, by: i64| kv.increment("f", "n", by, Some(Duration::from_secs(10)), at(seconds)).map(|(sum, _)| sum);
        assert_eq!((add(0, 2), add(9, -5), add(10, 1)), (Ok(2), Ok(-3), Ok(1)));
        assert_eq!((add(11, i64::MAX), add(12, i64::MAX - 1)), (Err(KvError::NotANumber), Ok(i64::MAX)));
        kv.set("f", "x", value("text"), None, at(0)).expect("room");
        assert_eq!(kv.increment("f", "x", 1, None, at(0)), Err(KvError::NotANumber));
        counted(&kv);
    }

    #[test]
    fn swaps_only_what_is_expected() {
        let mut kv = Namespaces::default();
        let mut swap = |expected: Option<&[u8]>, new: &str| kv.compare_and_set("f", "a", expected, value(new), None, at(0)).map(|written| written.is_some());
        assert_eq!((swap(Some(b"x"), "y"), swap(None, "y"), swap(None, "z"), swap(Some(b"y"), "z")), (Ok(false), Ok(true), Ok(false), Ok(true)));
        assert_eq!(kv.get("f", "a", at(0)), Some(value("z")));
        assert_eq!(kv.get("g", "a", at(0)), None, "namespaces are apart");
    }

    #[test]
    fn a_full_namespace_refuses_until_something_expires() {
        let mut kv = Namespaces::default();
        let big = value(&"x".repeat(64 << 10));
        for n in 0..15 {
            let ttl = (n == 3).then_some(Duration::from_secs(60));
            kv.set("f", &n.to_string(), big.clone(), ttl, at(0)).expect("room");
        }
        assert_eq!(kv.set("f", "15", big.clone(), None, at(0)), Err(KvError::Full));
        assert!(kv.set("f", "0", big.clone(), None, at(0)).is_ok(), "in place of the old");
        assert!(kv.set("g", "15", big.clone(), None, at(0)).is_ok(), "another namespace");
        assert!(kv.set("f", "15", big, None, at(60)).is_ok());
        assert_eq!(kv.sweep(at(60)), [("f".into(), "3".into())]);
        counted(&kv);
    }

    #[test]
    fn what_is_read_from_the_file_keeps_its_end() {
        let mut kv = Namespaces::default();
        let written = kv.set("f", "a", value("1"), Some(Duration::from_secs(10)), at(0)).expect("room").expect("a value");
        let mut later = Namespaces::default();
        later.load("f", "a", &written.1, written.0, at(4));
        assert_eq!((later.get("f", "a", at(9)), later.get("f", "a", at(10))), (Some(value("1")), None));
        later.load("f", "b", b"2", written.0, at(11));
        assert_eq!((later.get("f", "b", at(11)), later.sweep(at(11)).len()), (None, 2));
        counted(&later);
    }
}
