//! `builtin:inspector`: an embedded receiver that keeps the last events for the page at the admin address. Answers 200.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;

use crate::event::Event;

/// How many events are kept.
pub(crate) const KEPT: usize = 100;

/// How much of a body is kept.
pub(crate) const BODY: usize = 64 << 10;

/// The last events, shared by all workers.
#[derive(Debug)]
pub(crate) struct Store {
    seen: Mutex<VecDeque<Arc<Seen>>>,
    /// The number of the newest event: changes with every one.
    newest: watch::Sender<u64>,
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
    /// A copy of it is kept already.
    pub(crate) duplicate: bool,
    /// Names and values; what lets its bearer in is masked.
    pub(crate) headers: Vec<(String, String)>,
    /// The first [`BODY`] bytes as text; bytes that are no UTF-8 are replaced.
    pub(crate) body: String,
    /// The whole body's length in bytes.
    pub(crate) body_bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self { seen: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Store {
    /// Those after `number`, oldest first; 0 for all that are kept.
    pub(crate) fn list(&self, after: u64) -> Vec<Arc<Seen>> {
        self.lock().iter().filter(|seen| seen.number > after).cloned().collect()
    }

    /// One by its event id: the newest where several have it.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Seen>> {
        self.lock().iter().rev().find(|seen| seen.id == id).cloned()
    }

    /// Changes to the newest number with every event: for live pages.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Takes one event in.
    pub(crate) fn receive(&self, event: &Event, attempt: u32) {
        let body = event.body.to_bytes();
        let mut lines = self.lock();
        let number = *self.newest.borrow() + 1;
        let shown = |name: &http::HeaderName, value: &http::HeaderValue| {
            if matches!(name.as_str(), "authorization" | "proxy-authorization" | "cookie") {
                "[masked]".into()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
        };
        let seen = Seen {
            number,
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
            query: event.query.clone(),
            attempt,
            duplicate: false,
            headers: event.headers.iter().map(|(name, value)| (name.to_string(), shown(name, value))).collect(),
            body: String::from_utf8_lossy(&body[..body.len().min(BODY)]).into_owned(),
            body_bytes: body.len(),
        };
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(Arc::new(seen));
        drop(lines);
        self.newest.send_replace(number);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Seen>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
