//! HTTP/1.1 and HTTP/2 on one connection: requests out, answers in, time limits, the end of the connection.
//!
//! A request's future outlives its connection: a sender that hangs up does not cancel a delivery. A panic becomes a 500 and the
//! connection goes on. An answer given before the body's end closes an HTTP/1 connection, after a while of discarding what still
//! comes, so that the sender sees the answer and not a reset.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{
    HeaderValue, Method, Request, Response, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    request::Parts,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::Notify,
    task::unconstrained,
    time::{Sleep, sleep, timeout},
};

use super::{
    Fault, Limits, Serve,
    budget::{Budget, RequestGuard},
    wire::{Scanner, Watch, Watched},
};
use crate::{
    clock::{Clock, Mono},
    event::{Call, CallBody, Conn, EventId},
    limit::Limit,
    reject::{Reason, Reject},
};

/// How long what still comes is discarded after an early answer, and how long a closing connection may take.
const LINGER: Duration = Duration::from_secs(2);
/// How many bytes are discarded after an early answer. The usual libraries write their whole body before they look for an answer.
const LINGER_BYTES: usize = 64 << 20;

const H2_STREAMS: u32 = 100;
const H2_STREAM_WINDOW: u32 = 64 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams reset by the peer before we took them (rapid reset), and by us for the peer's errors, before the connection is cut.
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 256;

/// Both protocols' settings, made once per policy.
#[derive(Debug)]
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    header_timeout: Duration,
    idle_timeout: Duration,
}

impl Protocols {
    pub(super) fn new(limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        // hyper's header timeout would also end idle connections: the limits are kept by `Pacer`.
        http1.header_read_timeout(None).max_header_size(limits.header_bytes).half_close(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(H2_PENDING_RESETS)
            .max_local_error_reset_streams(H2_ERROR_RESETS);
        Self { http1, http2, header_timeout: limits.header_timeout, idle_timeout: limits.idle_timeout }
    }
}

/// Tells the connections of one worker to finish.
#[derive(Debug, Default)]
pub(super) struct Drain {
    begun: AtomicBool,
    cut: AtomicBool,
    notify: Notify,
}

impl Drain {
    pub(super) fn begin(&self) {
        self.begun.store(true, std::sync::atomic::Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Nobody waits any longer for what is in flight.
    pub(super) fn cut(&self) {
        self.cut.store(true, std::sync::atomic::Ordering::Release);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Acquire)
    }

    pub(super) async fn begun(&self) {
        let mut notified = pin!(self.notify.notified());
        notified.as_mut().enable();
        if !self.begun.load(Acquire) {
            notified.await;
        }
    }
}

/// The socket under a stream, for the end of a connection.
pub(super) trait Socket {
    fn socket(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Socket for Box<tokio_rustls::server::TlsStream<TcpStream>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// What one connection's requests need.
pub(super) struct Session<S> {
    pub(super) serve: Arc<S>,
    pub(super) conn: Arc<Conn>,
    pub(super) budget: Arc<Budget>,
    pub(super) clock: Clock,
}

/// Serves HTTP/1 until the connection ends.
pub(super) async fn http1<S: Serve, I: AsyncRead + AsyncWrite + Socket + Unpin + Send>(
    mut stream: I,
    session: Session<S>,
    protocols: &Protocols,
    drain: &Drain,
) {
    let watch = Arc::new(Watch::default());
    let pacer = Pacer::new(&watch, &session.clock, protocols, true);
    let ended = {
        let io = TokioIo::new(Watched::new(&mut stream, Arc::clone(&watch), Some(Scanner::new())));
        let conn = protocols.http1.serve_connection(io, service_fn(|request| session.handle(&watch, request, true)));
        drive(pin!(conn), |conn| conn.graceful_shutdown(), pacer, drain).await
    };
    let refused = session.report(&ended);
    if refused || (matches!(ended, Ended::Finished(_)) && watch.in_body()) {
        linger(&mut stream).await;
    }
}

/// Serves HTTP/2 until the connection ends.
pub(super) async fn http2<S: Serve, I: AsyncRead + AsyncWrite + Socket + Unpin + Send>(
    mut stream: I,
    session: Session<S>,
    protocols: &Protocols,
    drain: &Drain,
) {
    let watch = Arc::new(Watch::default());
    let pacer = Pacer::new(&watch, &session.clock, protocols, false);
    let ended = {
        let io = TokioIo::new(Watched::new(&mut stream, Arc::clone(&watch), None));
        let conn = protocols.http2.serve_connection(io, service_fn(|request| session.handle(&watch, request, false)));
        drive(pin!(conn), |conn| conn.graceful_shutdown(), pacer, drain).await
    };
    if session.report(&ended) {
        linger(&mut stream).await;
    }
}

/// How a connection ended.
enum Ended {
    Finished(hyper::Result<()>),
    /// A time limit ran out; `None` where that is nobody's fault.
    Cut(Option<Fault>),
}

/// Polls a connection to its end, keeping the time limits and finishing it early when the worker drains.
async fn drive<C: Future<Output = hyper::Result<()>>>(mut conn: Pin<&mut C>, finish: fn(Pin<&mut C>), mut pacer: Pacer<'_>, drain: &Drain) -> Ended {
    let mut notified = pin!(drain.notify.notified());
    let mut listening = false;
    let mut finishing = false;
    poll_fn(|cx| {
        // Once registered, the drain wakes this task by itself; the flag is all there is to look at from then on.
        if !listening {
            listening = true;
            let _ = pin!(unconstrained(notified.as_mut())).poll(cx);
        }
        if !finishing && drain.begun.load(Acquire) {
            finishing = true;
            finish(conn.as_mut());
        }
        loop {
            if let Poll::Ready(done) = conn.as_mut().poll(cx) {
                return Poll::Ready(Ended::Finished(done));
            }
            match pacer.check(cx) {
                Pace::Fine => return Poll::Pending,
                Pace::Idle => {
                    finishing = true;
                    finish(conn.as_mut());
                }
                Pace::Cut(fault) => return Poll::Ready(Ended::Cut(fault)),
            }
        }
    })
    .await
}

impl<S: Serve> Session<S> {
    /// Hands one request over and brings its answer back.
    fn handle(
        &self,
        watch: &Arc<Watch>,
        request: Request<Incoming>,
        http1: bool,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + 'static + use<S> {
        let number = watch.requests.fetch_add(1, Relaxed).wrapping_add(1);
        let active = Active::new(watch);
        let (head, body) = request.into_parts();
        let flaw = if http1 { watch.flaw(number) } else { None };
        let framed = flaw.map_or_else(|| framing_check(&head), |flaw| Err(Reject::new(Reason::BadRequest, flaw)));
        let closes = http1 && framed.is_err();
        let started = self.clock.now();
        let body = CallBody::Incoming(RequestBody { incoming: Some(body), discard: !http1, watch: Arc::clone(watch) });
        let call = Call { id: EventId::at(started.wall_ms), started, conn: Arc::clone(&self.conn), head, body };
        let work = match framed.and_then(|()| self.budget.request()) {
            Ok(guard) => Work::Running(Detached::new(Arc::clone(&self.serve), call, guard)),
            Err(why) => Work::Refused(self.serve.refuse(call, why)),
        };
        async move {
            let mut response = match work {
                Work::Running(detached) => detached.await,
                Work::Refused(response) => response,
            };
            if closes || (http1 && active.watch.unfinished(number)) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let piece = if http1 { usize::MAX } else { H2_PIECE };
            Ok(response.map(|body| AnswerBody { body, rest: Bytes::new(), piece, _active: active.answered() }))
        }
    }

    /// Reports how a connection ended badly; true if the peer still deserves to read an answer.
    fn report(&self, ended: &Ended) -> bool {
        let (fault, detail, answered) = match ended {
            Ended::Finished(Ok(())) | Ended::Cut(None) => return false,
            Ended::Cut(Some(fault)) => (*fault, String::new(), false),
            Ended::Finished(Err(why)) => match judge(why) {
                Some(fault) => (fault, why.to_string(), true),
                None => return false,
            },
        };
        self.serve.fault(self.conn.peer, fault, &detail);
        answered
    }
}

/// The peer's fault in an error of hyper's; `None`: it went away, which is not one.
fn judge(why: &hyper::Error) -> Option<Fault> {
    if why.is_parse_too_large() {
        return Some(Fault::HeadersTooLarge);
    }
    if why.is_parse() {
        return Some(Fault::BadRequest);
    }
    let mut cause = std::error::Error::source(why);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return (error.is_library() && !error.is_io()).then_some(Fault::Http2);
        }
        cause = error.source();
    }
    None
}

enum Work<S: Serve> {
    Running(Detached<S>),
    Refused(Response<Full<Bytes>>),
}

/// A request's work, which goes on in a task of its own if the connection ends first.
struct Detached<S: Serve> {
    work: Option<Ongoing>,
    serve: Arc<S>,
    conn: Arc<Conn>,
    id: EventId,
}

/// The place in the budget is for the work: a sender that does not take its answer holds only its connection.
struct Ongoing {
    calling: Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>,
    guard: RequestGuard,
}

impl<S: Serve> Detached<S> {
    fn new(serve: Arc<S>, call: Call, guard: RequestGuard) -> Self {
        let (conn, id) = (Arc::clone(&call.conn), call.id);
        // Large: put into its box at once, and wrapped in nothing that would move it there once more.
        let calling = Box::pin(Arc::clone(&serve).call(Box::new(call)));
        Self { work: Some(Ongoing { calling, guard }), serve, conn, id }
    }
}

impl<S: Serve> Future for Detached<S> {
    type Output = Response<Full<Bytes>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(work) = &mut this.work else { return Poll::Pending };
        let polled = catch_unwind(AssertUnwindSafe(|| work.calling.as_mut().poll(cx)));
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        this.work = None;
        match polled {
            Ok(answered) => answered,
            Err(_) => Poll::Ready(this.serve.panicked(this.id, &this.conn)),
        }
    }
}

impl<S: Serve> Drop for Detached<S> {
    fn drop(&mut self) {
        if let Some(Ongoing { calling, guard }) = self.work.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let (serve, conn, id) = (Arc::clone(&self.serve), Arc::clone(&self.conn), self.id);
            runtime.spawn(async move {
                if AssertUnwindSafe(calling).catch_unwind().await.is_err() {
                    serve.panicked(id, &conn);
                }
                drop(guard);
            });
        }
    }
}

/// Counts a request until its answer is given to the socket.
struct Active {
    watch: Arc<Watch>,
    unsent: Option<usize>,
}

impl Active {
    fn new(watch: &Arc<Watch>) -> Self {
        watch.active.fetch_add(1, Relaxed);
        Self { watch: Arc::clone(watch), unsent: None }
    }

    fn answered(mut self) -> Self {
        let generation = usize::from(self.watch.generation.load(Relaxed));
        self.watch.unsent[generation].fetch_add(1, Relaxed);
        self.unsent = Some(generation);
        self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.watch.active.fetch_sub(1, Relaxed);
        if let Some(generation) = self.unsent {
            self.watch.unsent[generation].fetch_sub(1, Relaxed);
        }
    }
}

/// A request's body as it arrives.
///
/// Dropped before its end, an HTTP/2 body is discarded for a while longer: some clients (curl 7.88) take a stream that is reset
/// during their upload for an error, although the answer came before. HTTP/1 does the same for the whole connection at its end.
pub(crate) struct RequestBody {
    /// Always there until it is dropped.
    incoming: Option<Incoming>,
    discard: bool,
    watch: Arc<Watch>,
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), discard: false, watch: Arc::default() }
    }
}

impl RequestBody {
    /// For the time that the body may take; to be given back with [`RequestBody::keep`].
    pub(crate) fn limit(&self) -> Limit {
        self.watch.take_limit()
    }

    pub(crate) fn keep(&self, limit: Limit) {
        self.watch.keep_limit(limit);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.discard = false;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.discard
            && !self.is_end_stream()
            && let Some(mut incoming) = self.incoming.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(LINGER, async move {
                let mut left = LINGER_BYTES;
                while let Some(Ok(frame)) = incoming.frame().await {
                    left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                    if left == 0 {
                        break;
                    }
                }
            }));
        }
    }
}

/// How much of an answer HTTP/2 is given at once: it keeps what the peer's windows do not let out, and a piece is little to keep.
const H2_PIECE: usize = 16 << 10;

/// An answer's body, which counts as unsent until it is given to the socket.
pub(super) struct AnswerBody {
    body: Full<Bytes>,
    rest: Bytes,
    piece: usize,
    _active: Active,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
                other => return other,
            }
        }
        let piece = self.piece.min(self.rest.len());
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64 + self.body.size_hint().lower())
    }
}

/// What the time limits say.
enum Pace {
    Fine,
    /// Nothing was asked for `idle_timeout`: finish politely.
    Idle,
    Cut(Option<Fault>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request yet.
    First,
    /// Between requests.
    Idle,
    /// The head of a further request has begun.
    Head,
    /// A request is being answered.
    Busy,
    /// The peer does not take what we write.
    Blocked,
    /// Finishing, for at most [`LINGER`].
    Closing,
}

/// Keeps a connection's time limits. Costs a clock reading when the phase changes and one timer, reset only when it has run out
/// or comes too late.
struct Pacer<'c> {
    watch: Arc<Watch>,
    clock: &'c Clock,
    header_timeout: Duration,
    idle_timeout: Duration,
    http1: bool,
    /// The phase, and for idle ones the number of requests so far.
    at: Option<(Phase, u32)>,
    due: Option<Mono>,
    /// When the timer runs out, if it runs.
    armed: Option<Mono>,
    timer: Pin<Box<Sleep>>,
}

impl<'c> Pacer<'c> {
    fn new(watch: &Arc<Watch>, clock: &'c Clock, protocols: &Protocols, http1: bool) -> Self {
        Self {
            watch: Arc::clone(watch),
            clock,
            header_timeout: protocols.header_timeout,
            idle_timeout: protocols.idle_timeout,
            http1,
            at: None,
            due: None,
            armed: None,
            timer: Box::pin(sleep(Duration::ZERO)),
        }
    }

    fn phase(&self) -> (Phase, u32) {
        if let Some((Phase::Closing, _)) = self.at {
            return (Phase::Closing, 0);
        }
        let requests = self.watch.requests.load(Relaxed);
        if self.watch.blocked.load(Relaxed) {
            (Phase::Blocked, 0)
        } else if self.watch.active.load(Relaxed) > 0 {
            (Phase::Busy, 0)
        } else if requests == 0 {
            (Phase::First, 0)
        } else if self.http1 && self.watch.in_head() {
            (Phase::Head, requests)
        } else {
            (Phase::Idle, requests)
        }
    }

    /// How long a phase may last. An answer must be taken within `idle_timeout`; making it is limited elsewhere.
    fn limit(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::First | Phase::Head => Some(self.header_timeout),
            Phase::Idle | Phase::Blocked => Some(self.idle_timeout),
            // HTTP/2 answers can wait for the peer's windows without a blocked socket: look at their age now and then.
            Phase::Busy => (!self.http1).then_some(self.idle_timeout),
            Phase::Closing => Some(LINGER),
        }
    }

    fn enter(&mut self, at: (Phase, u32), cx: &mut Context<'_>) {
        self.at = Some(at);
        self.due = self.limit(at.0).map(|limit| self.clock.mono().plus(limit));
        if let (Some(due), Some(limit)) = (self.due, self.limit(at.0))
            && self.armed.is_none_or(|armed| due < armed)
        {
            self.arm(due, limit, cx);
        }
    }

    fn arm(&mut self, due: Mono, span: Duration, cx: &mut Context<'_>) {
        self.armed = Some(due);
        self.timer.set(sleep(span));
        // Registers this task, which is the only one to poll; without tokio's budget, which may be spent and would put it off for ever.
        let _ = pin!(unconstrained(self.timer.as_mut())).poll(cx);
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Pace {
        let at = self.phase();
        if self.at != Some(at) {
            self.enter(at, cx);
        }
        while self.armed.is_some() && self.timer.is_elapsed() {
            self.armed = None;
            let Some(due) = self.due else { break };
            let now = self.clock.mono();
            if now < due {
                self.arm(due, due.since(now), cx);
                continue;
            }
            match at.0 {
                Phase::First | Phase::Head => return Pace::Cut(Some(Fault::HeaderTimeout)),
                Phase::Blocked => return Pace::Cut(Some(Fault::AnswerNotTaken)),
                Phase::Closing => return Pace::Cut(None),
                Phase::Idle => {
                    self.enter((Phase::Closing, 0), cx);
                    return Pace::Idle;
                }
                Phase::Busy => {
                    let old = usize::from(!self.watch.generation.load(Relaxed));
                    if self.watch.unsent[old].load(Relaxed) > 0 {
                        return Pace::Cut(Some(Fault::AnswerNotTaken));
                    }
                    self.watch.generation.store(old == 1, Relaxed);
                    self.enter(at, cx);
                }
            }
        }
        Pace::Fine
    }
}

/// Half-closes, then discards what still comes: closing with unread bytes would reset the connection and take the answer with it.
async fn linger<I: AsyncWrite + Socket + Unpin>(stream: &mut I) {
    let discard = async {
        let _ = stream.shutdown().await;
        let socket = stream.socket();
        let mut left = LINGER_BYTES;
        while socket.readable().await.is_ok() {
            match discard_some(socket) {
                Ok(0) => break,
                Ok(read) if read < left => left -= read,
                Ok(_) => break,
                Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    };
    let _ = timeout(LINGER, discard).await;
}

/// Tells a client that speaks plain HTTP to a TLS port.
pub(super) async fn answer_plain(stream: &mut TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\nThis port speaks TLS: use https://\n";
    if stream.write_all(ANSWER).await.is_ok() {
        linger(stream).await;
    }
}

/// Reads into a buffer that all connections of a thread share: nobody looks at it.
fn discard_some(socket: &TcpStream) -> std::io::Result<usize> {
    thread_local! {
        static SINK: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    SINK.with_borrow_mut(|sink| {
        sink.resize(64 << 10, 0);
        socket.try_read(sink)
    })
}

/// What HTTP demands of a request's head beyond what the parser enforces: one host, one length, a target that names one thing.
pub(crate) fn framing_check(head: &Parts) -> Result<(), Reject> {
    let bad = |detail: &'static str| Err(Reject::new(Reason::BadRequest, detail));
    let uri = &head.uri;
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("more than one Host");
    }
    if host.is_some_and(|host| !plausible_host(host.as_bytes())) {
        return bad("a malformed Host");
    }
    if head.method == Method::CONNECT {
        return bad("CONNECT asks for a tunnel");
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, Some(_)) => return Err(Reject::new(Reason::BadTarget, "a target without a path")),
        (Some("http" | "https"), Some(authority)) => {
            if authority.as_str().contains('@') {
                return Err(Reject::new(Reason::BadTarget, "user information in the target"));
            }
            // HTTP/1.1 demands Host beside an absolute target (RFC 9112, 3.2.2); where both stand, they must agree.
            if host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())) {
                return bad("Host and the target's authority differ");
            }
        }
        (Some(_), _) => return Err(Reject::new(Reason::BadTarget, "a target that is not http")),
        (None, None) if head.version == Version::HTTP_2 => return bad("no authority"),
        (None, None) => {}
    }
    if head.version == Version::HTTP_11 && host.is_none() {
        return bad("no Host");
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() || length.is_some_and(|length| length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return bad("more than one Content-Length, or a malformed one");
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if length.is_some() {
            return bad("both Content-Length and Transfer-Encoding");
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return bad("a transfer coding other than chunked");
        }
    }
    Ok(())
}

/// A host name, an IPv4 address or a bracketed IPv6 one, with or without a port (RFC 9110, 7.2); names may hold an underscore.
fn plausible_host(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end) if end > 0 && rest[..end].iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) => (&rest[..end], &rest[end + 1..]),
            _ => return false,
        },
        _ => host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len())),
    };
    let bracketed = host.starts_with(b"[");
    let named = bracketed || (!name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')));
    let ported = match port {
        [] => true,
        [b':', digits @ ..] => (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    named && ported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spent_budget_does_not_lose_the_timer() {
        let (watch, clock) = (Arc::default(), Clock::system());
        let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
        let mut pacer = Pacer::new(&watch, &clock, &Protocols::new(&limits), true);
        let mut spent = false;
        let cut = poll_fn(|cx| {
            while !spent && pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            spent = true;
            match pacer.check(cx) {
                Pace::Fine => Poll::Pending,
                Pace::Idle => Poll::Ready(None),
                Pace::Cut(fault) => Poll::Ready(fault),
            }
        });
        assert_eq!(timeout(Duration::from_secs(20), cut).await, Ok(Some(Fault::HeaderTimeout)));
    }

    fn check(build: http::request::Builder, want: Option<(Reason, &str)>) {
        let (head, ()) = build.body(()).expect("a request that http takes").into_parts();
        let got = framing_check(&head).err();
        assert_eq!(got.as_ref().map(|why| (why.reason, &*why.detail)), want, "{head:?}");
    }

    fn post(target: &str) -> http::request::Builder {
        Request::post(target)
    }

    #[test]
    fn hosts() {
        check(post("/").header("host", "a.example:8443"), None);
        check(post("/").header("host", "[::1]:8443"), None);
        check(post("/"), Some((Reason::BadRequest, "no Host")));
        check(post("/").version(Version::HTTP_10), None);
        check(post("/").header("host", "a").header("host", "a"), Some((Reason::BadRequest, "more than one Host")));
        for host in ["", "a b", "a,b", "a/b", "a@b", "a:b", "a:", "[::1", "[]", "[::1]x", "a:123456", "a\\b"] {
            check(post("/").header("host", host), Some((Reason::BadRequest, "a malformed Host")));
        }
    }

    #[test]
    fn targets() {
        check(post("http://a.example/x").header("host", "A.example"), None);
        check(post("http://a.example/x").header("host", "b.example"), Some((Reason::BadRequest, "Host and the target's authority differ")));
        check(post("http://a.example/x"), Some((Reason::BadRequest, "no Host")));
        check(post("https://a.example/x").version(Version::HTTP_2), None);
        check(post("/x").version(Version::HTTP_2), Some((Reason::BadRequest, "no authority")));
        check(post("http://u:p@a.example/x").header("host", "a.example"), Some((Reason::BadTarget, "user information in the target")));
        check(post("ftp://a.example/x").header("host", "a.example"), Some((Reason::BadTarget, "a target that is not http")));
        check(post("a.example").header("host", "a.example"), Some((Reason::BadTarget, "a target without a path")));
        check(Request::connect("a.example:443").header("host", "a.example:443"), Some((Reason::BadRequest, "CONNECT asks for a tunnel")));
    }

    #[test]
    fn lengths() {
        let to = || post("/").header("host", "a");
        check(to().header("content-length", "5"), None);
        check(to().header("transfer-encoding", "chunked"), None);
        check(to().header("content-length", "5").header("content-length", "5"), Some((Reason::BadRequest, "more than one Content-Length, or a malformed one")));
        check(to().header("content-length", "5, 5"), Some((Reason::BadRequest, "more than one Content-Length, or a malformed one")));
        check(to().header("content-length", "+5"), Some((Reason::BadRequest, "more than one Content-Length, or a malformed one")));
        check(
            to().header("content-length", "5").header("transfer-encoding", "chunked"),
            Some((Reason::BadRequest, "both Content-Length and Transfer-Encoding")),
        );
        check(to().header("transfer-encoding", "gzip, chunked"), Some((Reason::BadRequest, "a transfer coding other than chunked")));
    }
}
