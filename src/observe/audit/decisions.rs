//! The last decisions, in memory.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::lock;

/// Decisions kept in memory for the admin page.
pub(super) const KEPT: usize = 200;

/// The last 200 audit lines, for the admin page.
#[derive(Clone, Debug)]
pub(crate) struct Decisions(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    /// Each with its number, from 1.
    lines: Mutex<VecDeque<(u64, Arc<str>)>>,
    last: watch::Sender<u64>,
}

impl Decisions {
    pub(super) fn new() -> Self {
        Self(Arc::new(Kept { lines: Mutex::default(), last: watch::Sender::new(0) }))
    }

    /// Takes in the last of these lines.
    pub(super) fn push_last(&self, new: &str) {
        let mut first = new.len();
        for _ in 0..KEPT {
            if first == 0 {
                break;
            }
            // Behind the line feed that ends the line before.
            first = memchr::memrchr(b'\n', &new.as_bytes()[..first - 1]).map_or(0, |end| end + 1);
        }
        let mut lines = lock(&self.0.lines);
        let mut last = *self.0.last.borrow();
        for line in new[first..].split_inclusive('\n') {
            last += 1;
            if lines.len() == KEPT {
                lines.pop_front();
            }
            lines.push_back((last, line.into()));
        }
        drop(lines);
        self.0.last.send_replace(last);
    }

    /// Those after number `after`, oldest first: number and JSON object.
    pub(crate) fn list(&self, after: u64) -> Vec<(u64, Arc<str>)> {
        lock(&self.0.lines).iter().filter(|(seq, _)| *seq > after).cloned().collect()
    }

    /// Tells the number of the newest.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.last.subscribe()
    }
}
