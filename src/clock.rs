//! The only reader of the system's clocks, and a hand-wound one for tests.
//!
//! Tolerance of signed times uses the wall clock; timers, rates and backoff the monotonic one.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
use std::time::Duration;

/// A point on the monotonic clock: nanoseconds since the process first asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mono(pub(crate) u64);

impl Mono {
    pub(crate) fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn plus(self, span: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Unix time in milliseconds.
    pub(crate) wall_ms: i64,
    pub(crate) mono: Mono,
}

#[derive(Clone, Debug)]
pub(crate) struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Hand(Arc<Hand>),
}

#[derive(Debug)]
struct Hand {
    wall_ms: AtomicI64,
    mono: AtomicU64,
}

static START: LazyLock<std::time::Instant> = LazyLock::new(start);

#[expect(clippy::disallowed_methods, reason = "this file is the one reader of the clocks")]
fn start() -> std::time::Instant {
    std::time::Instant::now()
}

/// The runtime's clock, for its timers.
#[expect(clippy::disallowed_methods, reason = "this file is the one reader of the clocks")]
pub(crate) fn runtime_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

impl Clock {
    pub(crate) fn system() -> Self {
        LazyLock::force(&START);
        Self(Source::System)
    }

    /// A clock that stands until `advance` or `step_wall` moves it.
    pub(crate) fn hand(wall_ms: i64) -> Self {
        Self(Source::Hand(Arc::new(Hand { wall_ms: AtomicI64::new(wall_ms), mono: AtomicU64::new(1_000_000_000) })))
    }

    #[expect(clippy::disallowed_methods, reason = "this file is the one reader of the clocks")]
    pub(crate) fn now(&self) -> Now {
        match &self.0 {
            Source::System => {
                let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                Now { wall_ms: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX), mono: Mono::default().plus(START.elapsed()) }
            }
            Source::Hand(hand) => Now { wall_ms: hand.wall_ms.load(Ordering::SeqCst), mono: Mono(hand.mono.load(Ordering::SeqCst)) },
        }
    }

    pub(crate) fn mono(&self) -> Mono {
        match &self.0 {
            Source::System => Mono::default().plus(START.elapsed()),
            Source::Hand(_) => self.now().mono,
        }
    }

    /// Moves both clocks of a hand-wound clock; the system's cannot be moved.
    #[cfg(test)]
    pub(crate) fn advance(&self, span: Duration) {
        if let Source::Hand(hand) = &self.0 {
            hand.wall_ms.fetch_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
            hand.mono.fetch_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Steps only the wall clock of a hand-wound clock, as an operator or NTP does.
    #[cfg(test)]
    pub(crate) fn step_wall(&self, ms: i64) {
        if let Source::Hand(hand) = &self.0 {
            hand.wall_ms.fetch_add(ms, Ordering::SeqCst);
        }
    }
}
