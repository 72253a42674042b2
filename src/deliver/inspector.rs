//! `builtin:inspector`: an embedded receiver that keeps the last events for the page at the admin address. Answers 200.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    event::{Credentials, Event, is_credential},
    outcome::Answer,
};

/// How many events are kept.
pub(crate) const KEPT: usize = 100;

/// How much of a body is kept.
pub(crate) const BODY: usize = 64 << 10;

/// How much of a header field's value is kept.
const VALUE: usize = 2 << 10;

/// What stands in place of a credential.
const MASK: &str = "[masked]";

/// The last events, shared by all workers.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    /// The number of the newest event: changes with every one.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    seen: VecDeque<std::sync::Arc<Seen>>,
    /// Delivery ids (or, without one, bodies) of the kept events, and how often each is among them.
    keys: HashMap<Key, usize>,
    last: u64,
}

/// What makes two events copies of each other for the eye: route and delivery id, else route and body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    route: String,
    id: Option<String>,
    body: Bytes,
}

/// One event as it reached the inspector.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Seen {
    /// Counts up from 1; for [`Store::list`].
    pub(crate) number: u64,
    pub(crate) id: String,
    /// When the gate received it: Unix time in milliseconds.
    pub(crate) received_ms: i64,
    pub(crate) route: String,
    pub(crate) provider: Option<String>,
    /// `content`, `sender` or `none`.
    pub(crate) verified: &'static str,
    pub(crate) event_type: Option<String>,
    pub(crate) delivery_id: Option<String>,
    pub(crate) client: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) attempt: u32,
    /// An event of the same route with the same delivery id, or the same body where none has an id, is kept already.
    pub(crate) duplicate: bool,
    /// Names and values; what lets its bearer in is masked.
    pub(crate) headers: Vec<(String, String)>,
    /// The first [`BODY`] bytes as text; bytes that are no UTF-8 are replaced.
    pub(crate) body: String,
    /// The whole body's length in bytes.
    pub(crate) body_bytes: usize,
    #[serde(skip)]
    key: Key,
}

impl Default for Store {
    fn default() -> Self {
        Self { inner: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Store {
    /// Those after `number`, oldest first; 0 for all that are kept.
    pub(crate) fn list(&self, after: u64) -> Vec<std::sync::Arc<Seen>> {
        self.lock().seen.iter().filter(|seen| seen.number > after).cloned().collect()
    }

    /// One by its event id: the newest where several have it.
    pub(crate) fn get(&self, id: &str) -> Option<std::sync::Arc<Seen>> {
        self.lock().seen.iter().rev().find(|seen| seen.id == id).cloned()
    }

    /// Changes to the newest number with every event: for live pages.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Takes one event in.
    pub(crate) fn receive(&self, event: &Event, attempt: u32) -> Answer {
        let mut seen = seen(event, attempt);
        let number = {
            let mut inner = self.lock();
            inner.last += 1;
            seen.number = inner.last;
            let copies = inner.keys.entry(seen.key.clone()).or_default();
            seen.duplicate = *copies > 0;
            *copies += 1;
            inner.seen.push_back(seen.into());
            if inner.seen.len() > KEPT
                && let Some(oldest) = inner.seen.pop_front()
                && let Some(copies) = inner.keys.get_mut(&oldest.key)
            {
                *copies -= 1;
                if *copies == 0 {
                    inner.keys.remove(&oldest.key);
                }
            }
            inner.last
        };
        self.newest.send_replace(number);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Answer { status: StatusCode::OK, headers, body: Bytes::from_static(b"seen\n") }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A list of finished records: nothing is left half done by a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seen(event: &Event, attempt: u32) -> Seen {
    let mut start = BytesMut::new();
    for piece in event.body.pieces() {
        let room = BODY - start.len();
        start.extend_from_slice(&piece[..piece.len().min(room)]);
        if start.len() == BODY {
            break;
        }
    }
    let start = start.freeze();
    Seen {
        number: 0,
        id: event.id.to_string(),
        received_ms: event.received_ms,
        route: event.route.to_string(),
        provider: event.provider.as_deref().map(str::to_owned),
        verified: event.verification.code(),
        event_type: event.event_type.clone(),
        delivery_id: event.delivery_id.clone(),
        client: event.client.ip.to_string(),
        method: event.method.to_string(),
        path: event.path.clone(),
        query: event.query_without(Credentials::Masked).map(Cow::into_owned),
        attempt,
        duplicate: false,
        headers: event.headers.iter().map(|(name, value)| (name.to_string(), shown(name, value))).collect(),
        body: String::from_utf8_lossy(&start).into_owned(),
        body_bytes: event.body.len(),
        key: Key { route: event.route.to_string(), id: event.delivery_id.clone(), body: if event.delivery_id.is_some() { Bytes::new() } else { start } },
    }
}

fn shown(name: &HeaderName, value: &HeaderValue) -> String {
    if is_credential(name, value) {
        return MASK.to_owned();
    }
    let value = value.as_bytes();
    let text = String::from_utf8_lossy(&value[..value.len().min(VALUE)]).into_owned();
    if value.len() > VALUE { format!("{text}…") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::tests::event;

    #[test]
    fn the_last_hundred_are_kept_and_copies_flagged() {
        let store = Store::default();
        let mut live = store.subscribe();
        for n in 0..150 {
            store.receive(&event(&format!("body {n}")), 1);
        }
        assert_eq!(*live.borrow_and_update(), 150);
        let all = store.list(0);
        assert_eq!((all.len(), all[0].number, all[99].body.as_str()), (KEPT, 51, "body 149"));
        assert!(all.iter().all(|seen| !seen.duplicate));
        store.receive(&event("body 149"), 1);
        store.receive(&event("body 3"), 1);
        let news: Vec<(u64, bool)> = store.list(150).iter().map(|seen| (seen.number, seen.duplicate)).collect();
        assert_eq!(news, [(151, true), (152, false)], "what was pushed out is forgotten");
        assert_eq!(store.inner.lock().expect("whole").keys.len(), KEPT - 1);
        let mut delivered = event("one body");
        delivered.delivery_id = Some("d1".to_owned());
        store.receive(&delivered, 1);
        delivered.body = Bytes::from_static(b"another").into();
        store.receive(&delivered, 2);
        let news = store.list(153);
        assert_eq!((news[0].duplicate, news[0].attempt), (true, 2));
        assert_eq!(store.get(&delivered.id.to_string()).map(|seen| seen.number), Some(154));
        assert!(store.get("nothing").is_none());
    }

    #[test]
    fn credentials_are_masked_and_bodies_cut() {
        let store = Store::default();
        let mut large = event(&"x".repeat(BODY + 1));
        for name in ["authorization", "cookie", "x-gitlab-token", "x-hub-signature-256"] {
            large.headers.insert(HeaderName::from_static(name), HeaderValue::from_static("s3cret"));
        }
        let mut token = HeaderValue::from_static("s3cret");
        token.set_sensitive(true);
        large.headers.insert("x-acme-auth", token);
        store.receive(&large, 1);
        let seen = &store.list(0)[0];
        let shown: Vec<&str> = seen.headers.iter().filter(|(_, value)| value == "s3cret").map(|(name, _)| &**name).collect();
        assert_eq!((shown, seen.body.len(), seen.body_bytes), (vec!["x-hub-signature-256"], BODY, BODY + 1));
        assert_eq!(seen.headers.iter().filter(|(_, value)| value == MASK).count(), 4);
    }
}
