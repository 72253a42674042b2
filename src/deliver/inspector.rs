//! `builtin:inspector`: a receiver inside the gate that keeps the last events for the admin page.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

/// Events kept.
const KEPT: usize = 100;

/// One event as a receiver got it; credentials are masked before it is kept.
#[derive(Clone, Debug)]
pub(crate) struct InspectedEvent {
    /// From 1, in the order of arrival; [`Store::push`] sets it.
    pub(crate) seq: u64,
    pub(crate) id: String,
    /// Unix time in milliseconds.
    pub(crate) received_ms: i64,
    pub(crate) route: String,
    pub(crate) provider: Option<String>,
    pub(crate) verified: &'static str,
    pub(crate) event_type: Option<String>,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// The body was longer than what is kept of it.
    pub(crate) truncated: bool,
}

/// The last 100 events.
#[derive(Debug)]
pub(crate) struct Store {
    events: Mutex<VecDeque<Arc<InspectedEvent>>>,
    last: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self { events: Mutex::default(), last: watch::Sender::new(0) }
    }
}

impl Store {
    pub(crate) fn push(&self, event: InspectedEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = *self.last.borrow() + 1;
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(Arc::new(InspectedEvent { seq, ..event }));
        drop(events);
        self.last.send_replace(seq);
    }

    /// Those after number `after`, oldest first.
    pub(crate) fn list(&self, after: u64) -> Vec<Arc<InspectedEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|event| event.seq > after).cloned().collect()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<InspectedEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().find(|event| event.id == id).cloned()
    }

    /// Tells the number of the newest.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}
