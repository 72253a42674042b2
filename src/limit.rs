//! A limit in time whose timer is kept from one use to the next.
//!
//! Setting a timer of tokio's takes a lock and, where it is to run out before all others, a system call that wakes the very thread it
//! is set from; taking it back takes the lock again. Limits that follow one another mostly end ever later: the timer is left as it
//! is, and set for the rest when it runs out too soon.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;

/// A limit that is set anew for every use. It belongs to the runtime that it was first waited for in.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    /// `None`: not set, it never ends.
    due: Option<Instant>,
    /// When the timer runs out, if it runs.
    armed: Option<Instant>,
    /// Made when something first waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    /// A limit of this length, from now.
    pub(crate) fn of(span: Duration) -> Self {
        Self { due: clock::runtime_now().checked_add(span), ..Self::default() }
    }

    /// One that ends at the same time.
    pub(crate) fn until(other: &Limit) -> Self {
        Self { due: other.due, ..Self::default() }
    }

    /// Goes on with the timer of a limit that is over, where it has none of its own.
    pub(crate) fn go_on_with(&mut self, used: Limit) {
        if self.timer.is_none() {
            *self = Self { due: self.due, ..used };
        }
    }

    /// Sets it anew, from now.
    pub(crate) fn set(&mut self, span: Duration) {
        self.due = clock::runtime_now().checked_add(span);
    }

    /// Ready once the limit has come.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        loop {
            match &mut self.timer {
                Some(timer) if self.armed.is_some_and(|armed| armed <= due) => {
                    ready!(timer.as_mut().poll(cx));
                    self.armed = None;
                    if clock::runtime_now() >= due {
                        return Poll::Ready(());
                    }
                }
                Some(timer) => {
                    timer.as_mut().reset(due);
                    self.armed = Some(due);
                }
                None => {
                    self.timer = Some(Box::pin(sleep_until(due)));
                    self.armed = Some(due);
                }
            }
        }
    }
}

/// The future's end, or `None` when the limit comes first. The future is pinned by the caller, so that it is kept once and not twice.
pub(crate) async fn within<F: Future + ?Sized>(limit: &mut Limit, mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => limit.poll(cx).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::pin};

    use super::*;

    /// That this limit, already used for others, ends, and not before its time, in milliseconds.
    async fn check(limit: &mut Limit, span: u64) {
        limit.set(Duration::from_millis(span));
        let begun = clock::runtime_now();
        assert_eq!(within(limit, pin!(pending::<()>())).await, None);
        assert!(clock::runtime_now() - begun >= Duration::from_millis(span), "{span} ms");
    }

    #[test]
    fn it_ends_at_its_time_whatever_it_was_used_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let mut limit = Limit::default();
            assert_eq!(within(&mut limit, pin!(async { 1 })).await, Some(1), "nothing waits");
            check(&mut limit, 40).await;
            check(&mut limit, 10).await;
            limit.set(Duration::from_millis(20));
            // Begun and over before its time: the timer runs on, for too short a time for the next use.
            assert_eq!(within(&mut limit, pin!(tokio::task::yield_now())).await, Some(()));
            check(&mut limit, 60).await;
            limit.set(Duration::from_secs(3600));
            assert_eq!(within(&mut limit, pin!(tokio::task::yield_now())).await, Some(()));
            check(&mut limit, 10).await;
        });
    }
}
