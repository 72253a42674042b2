//! Sockets, TLS and HTTP: the way in.
//!
//! Promises: whatever a peer does, it is limited in number, time and bytes before a request of it exists; a request that exists is
//! handed over once, and its work goes on whether or not its sender waits. Knows nothing of routes, signatures or deliveries: it
//! hands each [`Call`] to a [`Serve`] and writes what comes back.

pub(crate) mod budget;
pub(crate) mod http;
mod proxy_protocol;
mod tcp;
mod tls;
mod wire;

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

pub(crate) use tls::TlsMaterial;

use self::{
    budget::{Budget, Quota},
    http::{Drain, Protocols},
    tcp::{Door, Live, Shared},
    tls::{SelfSigned, TlsState},
};
use crate::{
    clock::{Clock, Now},
    event::{Call, Conn, EventId},
    problem::Problem,
    reject::{Reason, Reject},
    section::Section,
};

/// What answers requests: the application.
pub(crate) trait Serve: Send + Sync + 'static {
    /// Answers one request. Runs to its end even if the sender hangs up. The call is boxed: every step that it is handed through would
    /// hold a copy of its own.
    fn call(self: Arc<Self>, call: Box<Call>) -> impl Future<Output = ::http::Response<Full<Bytes>>> + Send + 'static;

    /// Answers a request that this room refuses: its framing is ambiguous, or too many are in flight. Its body is not read.
    fn refuse(&self, call: Call, why: Reject) -> ::http::Response<Full<Bytes>>;

    /// Answers a request whose [`Serve::call`] panicked: a 500 without detail. The event's place in the log is this call.
    fn panicked(&self, id: EventId, conn: &Conn) -> ::http::Response<Full<Bytes>>;

    /// Deliveries under way that no request in flight stands for: a stop waits for them as well.
    fn afterwork(&self) -> usize;

    /// Counts and audits a connection that ended by its peer's fault before a request could be made of it. May come in floods.
    fn fault(&self, peer: SocketAddr, fault: Fault, detail: &str);
}

/// How a peer ends its connection before there is a request to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// `connections` is reached.
    ConnectionLimit,
    /// `per_ip_connections` is reached.
    AddressLimit,
    /// `proxy_protocol` is on and the peer is not in `trusted_proxies`.
    ProxyUntrusted,
    ProxyHeader,
    HandshakeTimeout,
    HandshakeFailed,
    HeaderTimeout,
    /// HTTP/1 that cannot be parsed; answered with a bare 400 or 414.
    BadRequest,
    /// Answered with a bare 431.
    HeadersTooLarge,
    /// HTTP/2 that breaks its rules, or a flood of it.
    Http2,
    /// An answer was not taken within `idle_timeout`.
    AnswerNotTaken,
}

impl Fault {
    #[cfg(test)]
    pub(crate) const ALL: &'static [Fault] = &[
        Self::ConnectionLimit,
        Self::AddressLimit,
        Self::ProxyUntrusted,
        Self::ProxyHeader,
        Self::HandshakeTimeout,
        Self::HandshakeFailed,
        Self::HeaderTimeout,
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::Http2,
        Self::AnswerNotTaken,
    ];

    /// The refusal that it amounts to, where HTTP itself refused a request.
    pub(crate) const fn reason(self) -> Option<Reason> {
        match self {
            Self::BadRequest => Some(Reason::BadRequest),
            Self::HeadersTooLarge => Some(Reason::HeadersTooLarge),
            Self::ConnectionLimit
            | Self::AddressLimit
            | Self::ProxyUntrusted
            | Self::ProxyHeader
            | Self::HandshakeTimeout
            | Self::HandshakeFailed
            | Self::HeaderTimeout
            | Self::Http2
            | Self::AnswerNotTaken => None,
        }
    }

    /// The stable word; where a refusal of a request means the same, its word.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::ConnectionLimit => "connection_limit",
            Self::AddressLimit => "address_limit",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyHeader => "proxy_header",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeFailed => "handshake_failed",
            Self::HeaderTimeout => "header_timeout",
            Self::BadRequest => "bad_request",
            Self::HeadersTooLarge => "headers_too_large",
            Self::Http2 => "http2_error",
            Self::AnswerNotTaken => "answer_not_taken",
        }
    }
}

/// What `[server]` says of listening.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Default `0.0.0.0:8443`; port 0 lets the system choose.
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) proxy_protocol: bool,
    /// Threads that serve; 0: one per core. Default 0.
    pub(crate) workers: usize,
    /// How long a stop waits for requests in flight. Default 30 s.
    pub(crate) drain_timeout: Duration,
    /// `None`: plain HTTP, asked for with `tls = false`.
    pub(crate) tls: Option<TlsMaterial>,
    pub(crate) limits: Limits,
}

/// `[server.limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The largest body in bytes, unless a route says otherwise. Default 10 MiB.
    pub(crate) body: u64,
    /// The largest head in bytes: request line and headers. Default 32 KiB.
    pub(crate) header_bytes: usize,
    /// For the PROXY header, and again for the TLS handshake. Default 5 s.
    pub(crate) handshake_timeout: Duration,
    /// From the first byte of a head to its end, and for the first request to come. Default 10 s.
    pub(crate) header_timeout: Duration,
    /// For a whole body, unless a route says otherwise. Default 20 s.
    pub(crate) body_timeout: Duration,
    /// Between requests, and for an answer to be taken. Default 60 s.
    pub(crate) idle_timeout: Duration,
    /// Open connections. Default 10 000.
    pub(crate) connections: u64,
    /// Open connections of one address; trusted proxies are not counted. Default 256.
    pub(crate) per_ip_connections: u64,
    /// Requests in flight. Default 1000.
    pub(crate) requests: u64,
    /// All bodies together. Default 256 MiB.
    pub(crate) buffered_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 10 << 20,
            header_bytes: 32 << 10,
            handshake_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(60),
            connections: 10_000,
            per_ip_connections: 256,
            requests: 1000,
            buffered_bytes: 256 << 20,
        }
    }
}

impl Limits {
    fn quota(&self) -> Quota {
        Quota { connections: self.connections, per_ip_connections: self.per_ip_connections, requests: self.requests, buffered_bytes: self.buffered_bytes }
    }
}

impl Default for Settings {
    /// A policy without `[server]`: TLS all the same, by a certificate of our own making.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443))],
            proxy_protocol: false,
            workers: 0,
            drain_timeout: Duration::from_secs(30),
            tls: Some(TlsMaterial::self_signed()),
            limits: Limits::default(),
        }
    }
}

/// Reads this room's keys of `[server]`; the caller reads `client_ip`, `trusted_proxies`, `public_url` and finishes the section.
pub(crate) fn read(server: &Section<'_>, now: Now) -> Option<Settings> {
    let default = Settings::default();
    let listen = listen(server);
    let tls = match server.item("tls") {
        None => Some(default.tls),
        Some(item) if item.as_bool() == Some(false) => Some(None),
        Some(item) if item.as_bool() == Some(true) => {
            item.problem("`tls = true` does not say which certificate", "name it in [server.tls], or leave `tls` out for a self-signed one");
            None
        }
        Some(item) => item.section().and_then(|section| tls::read(section, now)).map(Some),
    };
    let settings = Settings {
        listen: listen.unwrap_or(default.listen),
        proxy_protocol: server.bool_or("proxy_protocol", false),
        workers: server.opt_u64("workers", 0..=1024).and_then(|n| usize::try_from(n).ok()).unwrap_or(default.workers),
        drain_timeout: server.duration_or("drain_timeout", default.drain_timeout),
        limits: server.opt_section("limits").map(limits).unwrap_or_default(),
        tls: tls?,
    };
    Some(settings)
}

fn listen(server: &Section<'_>) -> Option<Vec<SocketAddr>> {
    let item = server.item("listen")?;
    let items = if item.is_array() { item.items()? } else { vec![item.clone()] };
    if items.is_empty() {
        item.problem("`listen` is empty", "name at least one address, such as \"0.0.0.0:8443\"");
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for entry in &items {
        let Some(text) = entry.string() else { continue };
        match text.parse() {
            Ok(address) if addresses.contains(&address) && address.port() != 0 => entry.problem(format!("`{text}` stands twice"), "remove one"),
            Ok(address) => addresses.push(address),
            Err(_) => entry.problem(format!("`{text}` is not an address and a port"), "write it like \"0.0.0.0:8443\", \"127.0.0.1:8443\" or \"[::]:8443\""),
        }
    }
    Some(addresses)
}

fn limits(section: Section<'_>) -> Limits {
    let default = Limits::default();
    let span = |key: &str, default: Duration| match section.opt_duration(key) {
        Some(span) if span.is_zero() => {
            section.problem(key, format!("`{key}` is zero"), "a limit in time cannot be turned off: give a longer one");
            default
        }
        Some(span) => span,
        None => default,
    };
    let count = |key: &str, default: u64| section.u64_or(key, default, 1..=10_000_000);
    let header_bytes = section.size_or("header_bytes", default.header_bytes as u64);
    if !(1 << 10..=1 << 20).contains(&header_bytes) {
        section.problem("header_bytes", format!("`header_bytes` is {header_bytes}"), "a size from 1KiB to 1MiB is wanted");
    }
    let limits = Limits {
        body: section.size_or("body", default.body),
        header_bytes: usize::try_from(header_bytes).unwrap_or(default.header_bytes),
        handshake_timeout: span("handshake_timeout", default.handshake_timeout),
        header_timeout: span("header_timeout", default.header_timeout),
        body_timeout: span("body_timeout", default.body_timeout),
        idle_timeout: span("idle_timeout", default.idle_timeout),
        connections: count("connections", default.connections),
        per_ip_connections: count("per_ip_connections", default.per_ip_connections),
        requests: count("requests", default.requests),
        buffered_bytes: section.size_or("buffered_bytes", default.buffered_bytes),
    };
    if limits.buffered_bytes < limits.body {
        section.problem("buffered_bytes", "`buffered_bytes` is less than one body may have", "set it to several times `body`");
    }
    section.finish();
    limits
}

/// What the rest of the policy means for listening.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context<'a> {
    /// `trusted_proxies`.
    pub(crate) trusted: &'a [IpNet],
    /// A route judges client certificates by a CA of its own: any is let through the handshake once its key is proven, and every
    /// route that wants one must check the chain, be it against `client_ca`.
    pub(crate) ask_client_certs: bool,
}

/// Bound sockets that do not accept yet.
pub(crate) struct Listener {
    settings: Settings,
    addresses: Vec<SocketAddr>,
    sockets: Vec<std::net::TcpListener>,
    control: Arc<Control>,
}

/// What a reload and the metrics reach.
pub(crate) struct Control {
    live: Arc<ArcSwap<Live>>,
    budget: Arc<Budget>,
    clock: Clock,
    state_dir: PathBuf,
    tls: Mutex<TlsHeld>,
}

struct TlsHeld {
    state: TlsState,
    own: Option<SelfSigned>,
}

impl Listener {
    /// Binds every address and reads or makes what TLS needs. `state_dir` keeps the self-signed CA.
    pub(crate) fn open(settings: &Settings, context: Context<'_>, state_dir: &Path, clock: Clock) -> Result<Self, Problem> {
        let limits = affordable(&settings.limits);
        let mut held = TlsHeld { state: TlsState::new()?, own: None };
        let live = held.live(settings, context, state_dir, &clock)?;
        let sockets = settings.listen.iter().map(|address| tcp::bind(*address)).collect::<Result<Vec<_>, _>>()?;
        let addresses = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        let control = Control {
            live: Arc::new(ArcSwap::from_pointee(live)),
            budget: Budget::new(limits.quota()),
            clock,
            state_dir: state_dir.to_owned(),
            tls: Mutex::new(held),
        };
        Ok(Self { settings: settings.clone(), addresses, sockets, control: Arc::new(control) })
    }

    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    pub(crate) fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.control.budget)
    }

    /// Starts the workers: from here on connections are served.
    pub(crate) fn start<S: Serve>(self, serve: Arc<S>) -> Result<Running, Problem> {
        let problem = |why: std::io::Error| Problem::error("server.workers", None, format!("the workers cannot start: {why}"));
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = if self.settings.workers == 0 { cores() } else { self.settings.workers };
        let (doors, inboxes): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (send, receive) = mpsc::unbounded_channel();
                (Door { open: Arc::new(AtomicUsize::new(0)), send }, receive)
            })
            .unzip();
        let shared = Arc::new(Shared {
            serve,
            live: Arc::clone(&self.control.live),
            budget: Arc::clone(&self.control.budget),
            clock: self.control.clock.clone(),
            doors,
            logged: Default::default(),
        });
        let mut running = Running { addresses: self.addresses, control: self.control, drains: Vec::new(), threads: Vec::new(), ends: Vec::new() };
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let sockets = self.sockets.iter().map(std::net::TcpListener::try_clone).collect::<Result<Vec<_>, _>>().map_err(problem)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(problem)?;
            let drain = Arc::new(Drain::default());
            running.drains.push(Arc::clone(&drain));
            let (shared, drain_timeout) = (Arc::clone(&shared), self.settings.drain_timeout);
            if index == 0 {
                runtime.spawn(renew(Arc::clone(&running.control)));
            }
            let (ended, end) = oneshot::channel::<()>();
            let thread = std::thread::Builder::new().name(format!("hooklatch-{index}")).spawn(move || {
                let left = tcp::work(runtime, index, sockets, inbox, shared, drain, drain_timeout);
                drop(ended);
                left
            });
            running.threads.push(thread.map_err(problem)?);
            running.ends.push(end);
        }
        Ok(running)
    }
}

/// A gate that serves.
pub(crate) struct Running {
    addresses: Vec<SocketAddr>,
    control: Arc<Control>,
    drains: Vec<Arc<Drain>>,
    threads: Vec<JoinHandle<u64>>,
    ends: Vec<oneshot::Receiver<()>>,
}

impl Running {
    /// The addresses in use, with the ports that the system chose.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Stops accepting, lets what is in flight finish for at most `drain_timeout` or until `enough`, deliveries without a sender
    /// included, then cuts off the rest and says how much that was.
    pub(crate) async fn drain(self, enough: impl Future<Output = ()>) -> u64 {
        self.drains.iter().for_each(|drain| drain.begin());
        let ended = async {
            for end in self.ends {
                let _ = end.await; // ends by being dropped
            }
        };
        let mut ended = pin!(ended);
        tokio::select! {
            () = &mut ended => {}
            () = enough => {
                self.drains.iter().for_each(|drain| drain.cut());
                ended.await;
            }
        }
        let mut left = 0;
        for thread in self.threads {
            match thread.join() {
                // Each looked at all that was left in the gate: the first to end saw the most.
                Ok(seen) => left = seen.max(left),
                Err(_) => tracing::error!("a worker panicked"),
            }
        }
        left
    }
}

impl Control {
    /// Puts new limits, certificates and trusted proxies in use for connections to come; open ones keep what they began with.
    /// `listen`, `workers` and `drain_timeout` stay as they are.
    pub(crate) fn reload(&self, settings: &Settings, context: Context<'_>) -> Result<(), Problem> {
        let mut held = self.tls();
        let live = held.live(settings, context, &self.state_dir, &self.clock)?;
        self.live.store(Arc::new(live));
        self.budget.set(affordable(&settings.limits).quota());
        Ok(())
    }

    /// Name and end, in Unix seconds, of every certificate in use.
    pub(crate) fn expiries(&self) -> Vec<(String, i64)> {
        if self.live.load().tls.is_some() { self.tls().state.expiries() } else { Vec::new() }
    }

    /// The CA that clients are told to trust, where the certificate is self-signed.
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        self.tls().own.as_ref().map(|own| own.ca_file.clone())
    }

    #[cfg(test)]
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    fn tls(&self) -> MutexGuard<'_, TlsHeld> {
        // A panic while it was held left either the old or the new state, both whole.
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the self-signed leaf when it is due.
    fn renew(&self) {
        let now = self.clock.now();
        let mut held = self.tls();
        if !held.own.as_ref().is_some_and(|own| own.due(now)) {
            return;
        }
        match SelfSigned::open(&self.state_dir, now) {
            Ok(own) => {
                held.state.renew(&own);
                held.own = Some(own);
                info!("renewed the self-signed certificate");
            }
            Err(why) => warn!("{why}"),
        }
    }
}

impl TlsHeld {
    fn live(&mut self, settings: &Settings, context: Context<'_>, state_dir: &Path, clock: &Clock) -> Result<Live, Problem> {
        let tls = match &settings.tls {
            None => None,
            Some(material) => {
                let own = if material.is_self_signed() { Some(SelfSigned::open(state_dir, clock.now())?) } else { None };
                let config = self.state.build(material, own.as_ref(), context.ask_client_certs)?;
                self.own = own;
                Some(TlsAcceptor::from(config))
            }
        };
        if tls.is_none() {
            self.own = None;
        }
        Ok(Live {
            tls,
            protocols: Protocols::new(&settings.limits),
            handshake_timeout: settings.limits.handshake_timeout,
            proxy_protocol: settings.proxy_protocol,
            trusted: context.trusted.to_vec(),
        })
    }
}

/// Looks twice a day whether the self-signed leaf is due.
async fn renew(control: Arc<Control>) {
    loop {
        tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
        control.renew();
    }
}

/// The limits, with no more connections than the process may have descriptors for: three of four, the rest is for receivers.
fn affordable(limits: &Limits) -> Limits {
    let mut limits = limits.clone();
    if let Some(files) = open_files() {
        let most = (files / 4 * 3).max(8);
        if limits.connections > most {
            warn!(
                connections = limits.connections,
                "only {most} connections are taken: the limit of open files is {files}; raise it (ulimit -n, LimitNOFILE=)"
            );
            limits.connections = most;
        }
    }
    limits
}

/// The soft limit of open files, where the system tells.
fn open_files() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests;
