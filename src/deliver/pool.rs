//! Connections to one receiver, kept between requests: a shelf for each worker, so that workers never wait for each other.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock::{Clock, Mono},
    egress::{self, ConnectError, Stream, Target},
    event::Chunks,
    limit::Limit,
};

/// The most unused connections on one shelf; one more is closed.
const MOST_IDLE: usize = 64;

/// Workers beyond this share shelves.
const SHELVES: usize = 16;

/// The largest head of an answer.
const HEAD_BYTES: u32 = 64 << 10;

/// What a receiver may send before its answer's head is complete, interim answers included: more than one head, because the read
/// that ends it may bring the start of the body, and hyper reads up to 400 KB at once.
const H1_BYTES: u64 = 1 << 20;

/// The same for all the streams of one HTTP/2 connection, between two steps of progress of any of them.
const H2_BYTES: u64 = 4 << 20;

/// The longest a connection may take to become free again after its answer is complete.
const SETTLE: Duration = Duration::from_secs(5);

/// One connection, ready for a request.
pub(super) enum Connection {
    H1 {
        sender: http1::SendRequest<Chunks>,
        gauge: Arc<Gauge>,
    },
    /// Shared: it stays on the shelf while in use.
    H2 {
        sender: http2::SendRequest<Chunks>,
        gauge: Arc<Gauge>,
    },
}

pub(super) struct Pool {
    shelves: Box<[Mutex<Vec<Idle>>]>,
    idle_timeout: Duration,
    reaping: AtomicBool,
}

struct Idle {
    connection: Connection,
    /// For the next request on it, by the worker that shelved it: the timer in it is that worker's, and ends with it.
    limit: Limit,
    worker: usize,
    since: Mono,
}

impl Connection {
    /// Over a fresh stream; the connection's own task ends with it.
    pub(super) async fn open(target: &Target, http2: bool) -> Result<Self, OpenError> {
        let stream = egress::connect(target).await?;
        let http2 = http2 || stream.is_h2();
        let gauge = Arc::new(Gauge::default());
        let io = TokioIo::new(Metered { stream, gauge: Arc::clone(&gauge) });
        if http2 {
            gauge.allow(H2_BYTES);
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(HEAD_BYTES)
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10));
            let (sender, connection) = builder.handshake(io).await?;
            tokio::spawn(connection);
            return Ok(Self::H2 { sender, gauge });
        }
        gauge.allow(H1_BYTES);
        let (sender, connection) = http1::Builder::new().max_header_size(HEAD_BYTES as usize).handshake(io).await?;
        tokio::spawn(connection);
        Ok(Self::H1 { sender, gauge })
    }

    pub(super) fn is_h2(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::H1 { sender, .. } => sender.is_closed(),
            Self::H2 { sender, .. } => sender.is_closed(),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::H1 { sender, .. } => sender.is_ready(),
            Self::H2 { sender, .. } => sender.is_ready(),
        }
    }

    pub(super) async fn send(&mut self, request: Request<Chunks>) -> Result<Response<Incoming>, TrySendError<Request<Chunks>>> {
        match self {
            Self::H1 { sender, gauge } => {
                gauge.allow(H1_BYTES);
                let response = sender.try_send_request(request).await?;
                // From here on the body's own bound counts.
                gauge.allow(u64::MAX);
                Ok(response)
            }
            Self::H2 { sender, gauge } => {
                let response = sender.try_send_request(request).await?;
                gauge.allow(H2_BYTES);
                Ok(response)
            }
        }
    }

    /// The answer makes progress.
    pub(super) fn progress(&self) {
        if let Self::H2 { gauge, .. } = self {
            gauge.allow(H2_BYTES);
        }
    }

    /// Whether anything was received since the request was sent. For HTTP/2 that is not known of one request.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Self::H1 { gauge, .. } => gauge.read.load(Relaxed) > 0,
            Self::H2 { .. } => false,
        }
    }

    pub(super) fn has_overflowed(&self) -> bool {
        let (Self::H1 { gauge, .. } | Self::H2 { gauge, .. }) = self;
        gauge.overflowed.load(Relaxed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection cannot be used: {0}")]
    Handshake(#[from] hyper::Error),
}

impl Pool {
    pub(super) fn new(idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self { shelves: (0..SHELVES).map(|_| Mutex::default()).collect(), idle_timeout, reaping: AtomicBool::new(false) })
    }

    /// A connection that was used before, and the limit of its last use.
    pub(super) fn take(&self) -> Option<(Connection, Limit)> {
        let mut shelf = self.shelf();
        while let Some(idle) = shelf.pop() {
            if idle.connection.is_closed() {
                continue;
            }
            if let Connection::H2 { sender, gauge } = &idle.connection {
                let shared = Connection::H2 { sender: sender.clone(), gauge: Arc::clone(gauge) };
                shelf.push(Idle { since: Clock::system().mono(), ..idle });
                return Some((shared, Limit::default()));
            }
            let limit = if idle.worker == worker() { idle.limit } else { Limit::default() };
            return Some((idle.connection, limit));
        }
        None
    }

    /// Back on the shelf of this worker, once it is free for another request.
    pub(super) fn put(self: &Arc<Self>, connection: Connection, limit: Limit) {
        if connection.is_closed() {
            return;
        }
        if connection.is_ready() {
            self.shelve(connection, limit);
            return;
        }
        // The answer came before the request was sent to its end, or the connection's task has not run since.
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let mut connection = connection;
            let settled = match &mut connection {
                Connection::H1 { sender, .. } => tokio::time::timeout(SETTLE, sender.ready()).await,
                Connection::H2 { sender, .. } => tokio::time::timeout(SETTLE, sender.ready()).await,
            };
            if matches!(settled, Ok(Ok(()))) {
                pool.shelve(connection, limit);
            }
        });
    }

    /// Takes the HTTP/2 connection off this worker's shelf: its requests under way end as they may.
    pub(super) fn forget_h2(&self) {
        self.shelf().retain(|idle| !idle.connection.is_h2());
    }

    fn shelve(self: &Arc<Self>, connection: Connection, limit: Limit) {
        {
            let mut shelf = self.shelf();
            if shelf.len() >= MOST_IDLE || (connection.is_h2() && shelf.iter().any(|idle| idle.connection.is_h2() && !idle.connection.is_closed())) {
                return;
            }
            shelf.push(Idle { connection, limit, worker: worker(), since: Clock::system().mono() });
        }
        if !self.reaping.swap(true, Relaxed) {
            tokio::spawn(reap(Arc::downgrade(self), self.idle_timeout));
        }
    }

    /// Closes what was unused for too long; says how many are left.
    fn sweep(&self, now: Mono) -> usize {
        let mut left = 0;
        for shelf in &self.shelves {
            let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.retain(|idle| !idle.connection.is_closed() && now.since(idle.since) < self.idle_timeout);
            left += shelf.len();
        }
        left
    }

    fn shelf(&self) -> MutexGuard<'_, Vec<Idle>> {
        // The lock is held for a push or a pop; no panic leaves the list half changed.
        self.shelves[worker() % SHELVES].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the last unused connection, or with the pool.
async fn reap(pool: std::sync::Weak<Pool>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep((idle_timeout / 2).max(Duration::from_millis(10))).await;
        let Some(pool) = pool.upgrade() else { return };
        if pool.sweep(Clock::system().mono()) == 0 {
            pool.reaping.store(false, Relaxed);
            // One may have come in between, and have seen that somebody reaps.
            if pool.sweep(Clock::system().mono()) == 0 || pool.reaping.swap(true, Relaxed) {
                return;
            }
        }
    }
}

/// A small number for each thread.
fn worker() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! { static WORKER: usize = NEXT.fetch_add(1, Relaxed); }
    WORKER.with(|worker| *worker)
}

/// Counts what is received, and cuts a connection that sends more than was allowed.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    read: AtomicU64,
    allowed: AtomicU64,
    overflowed: AtomicBool,
}

impl Gauge {
    fn allow(&self, bytes: u64) {
        self.read.store(0, Relaxed);
        self.allowed.store(bytes, Relaxed);
    }
}

struct Metered {
    stream: Stream,
    gauge: Arc<Gauge>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let count = (buf.filled().len() - before) as u64;
        if count > 0 {
            let read = self.gauge.read.fetch_add(count, Relaxed).saturating_add(count);
            if read > self.gauge.allowed.load(Relaxed) {
                self.gauge.overflowed.store(true, Relaxed);
                return Poll::Ready(Err(io::Error::other("more bytes than may come before an answer")));
            }
        }
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
