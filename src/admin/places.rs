//! Who may be connected, and for how long: a place for each connection, time limits, and who gives way when all places are taken.
//!
//! A stranger can open connections and leave them half way, and a load balancer must still hear `/readyz`. So every wait has a limit,
//! and with all places taken a new connection is served all the same: the one that has gone longest without an answer gives way. Who
//! showed the token is no stranger: while that request is worked on, or its live stream runs, others give way first.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Sleep, sleep},
};

use crate::clock::Clock;

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) places: usize,
    /// For the TLS handshake.
    pub(super) handshake: Duration,
    /// For a request's head, and for idling between two.
    pub(super) head: Duration,
    /// For a request's whole body.
    pub(super) body: Duration,
    /// For the client to take a piece of an answer.
    pub(super) taking: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { places: 128, handshake: seconds(5), head: seconds(30), body: seconds(10), taking: seconds(10) }
    }
}

/// All places of the listener.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    clock: Clock,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    places: BTreeMap<u64, Place>,
}

/// The place of one connection; clones are the same place.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Spot>);

#[derive(Debug)]
struct Spot {
    clock: Clock,
    /// When it came, or was last answered; nanoseconds of the monotonic clock.
    since: AtomicU64,
    /// Requests under way that showed the token.
    trusted: AtomicUsize,
    cut: Notify,
}

/// Holds a place; dropping it frees it.
pub(super) struct Taken {
    places: Arc<Places>,
    number: u64,
    place: Place,
}

impl Places {
    pub(super) fn new(most: usize, clock: Clock) -> Arc<Self> {
        Arc::new(Self { most, clock, open: Mutex::default() })
    }

    /// A place for a new connection; with all taken, another connection loses its own.
    pub(super) fn take(self: &Arc<Self>) -> Taken {
        let place =
            Place(Arc::new(Spot { clock: self.clock.clone(), since: AtomicU64::new(self.clock.mono().0), trusted: AtomicUsize::new(0), cut: Notify::new() }));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.places.len() >= self.most {
            let rank = |(number, place): (&u64, &Place)| (place.0.trusted.load(Relaxed) > 0, place.0.since.load(Relaxed), *number);
            if let Some((_, _, number)) = open.places.iter().map(rank).min()
                && let Some(gone) = open.places.remove(&number)
            {
                gone.0.cut.notify_one();
            }
        }
        let number = open.next;
        open.next += 1;
        open.places.insert(number, place.clone());
        Taken { places: Arc::clone(self), number, place }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).places.len()
    }
}

impl Taken {
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Resolves when the place is given to another connection.
    pub(super) async fn lost(&self) {
        self.place.0.cut.notified().await;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.open.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

impl Place {
    /// An answer begins to go out.
    pub(super) fn answered(&self) {
        self.0.since.store(self.0.clock.mono().0, Relaxed);
    }

    /// Others give way first for as long as this is kept.
    pub(super) fn trust(&self) -> Trust {
        self.0.trusted.fetch_add(1, Relaxed);
        Trust(self.clone())
    }
}

/// A request that showed the token.
#[derive(Debug)]
pub(super) struct Trust(Place);

impl Drop for Trust {
    fn drop(&mut self) {
        self.0.0.trusted.fetch_sub(1, Relaxed);
    }
}

/// A socket whose peer has to take what is written: a write that makes no progress for `limit` fails.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    limit: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stuck: None }
    }

    fn pace<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let limit = self.limit;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.pace(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.pace(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.pace(cx, polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.pace(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_longest_without_an_answer_gives_way_and_the_trusted_last() {
        let clock = Clock::hand(0);
        let places = Places::new(3, clock.clone());
        let second = || clock.advance(Duration::from_secs(1));
        let first = places.take();
        let trust = first.place().trust();
        second();
        let (two, three) = (places.take(), places.take());
        second();
        two.place().answered();
        let lost = |taken: &Taken| taken.lost().now_or_never().is_some();
        let four = places.take();
        assert_eq!([&first, &two, &three, &four].map(lost), [false, false, true, false]);
        drop(three);
        drop(trust);
        let five = places.take();
        assert_eq!([&first, &two, &four, &five].map(lost), [true, false, false, false]);
        assert_eq!(places.len(), 3);
        drop((first, two, four));
        assert_eq!(places.len(), 1);
        drop(five);
        assert_eq!(places.len(), 0);
    }

    #[tokio::test]
    async fn a_write_that_nobody_takes_ends() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut ours = Paced::new(ours, Duration::from_millis(20));
        ours.write_all(b"12345678").await.expect("room");
        assert_eq!(ours.write_all(b"1").await.expect_err("stuck").kind(), io::ErrorKind::TimedOut);
        theirs.read_exact(&mut [0; 8]).await.expect("bytes");
        ours.write_all(b"12345678").await.expect("room again");
    }
}
