//! Sockets and workers: one thread and one runtime a worker, all accepting from the same sockets.
//!
//! A connection goes to the least busy worker. Everything before HTTP is limited here: how many, from where, how long.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::{
    Fault, Serve,
    budget::{Budget, ConnectionGuard, Full},
    http::{self, Drain, Protocols, Session},
    proxy_protocol,
};
use crate::{
    clock::{Clock, Mono},
    event::{Conn, Tls},
    problem::Problem,
};

/// Connections that the kernel may hold before we accept them; the system caps it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// The first and the longest pause after the system refused to hand out a connection.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often such a refusal is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What new connections are served by; swapped whole by a reload.
pub(super) struct Live {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) protocols: Protocols,
    pub(super) handshake_timeout: Duration,
    pub(super) proxy_protocol: bool,
    pub(super) trusted: Vec<IpNet>,
}

impl Live {
    fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&ip))
    }
}

/// What all workers share.
pub(super) struct Shared<S> {
    pub(super) serve: Arc<S>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) budget: Arc<Budget>,
    pub(super) clock: Clock,
    pub(super) doors: Vec<Door>,
    /// When a failing accept was last logged.
    pub(super) logged: AtomicU64,
}

/// The way to a worker.
pub(super) struct Door {
    pub(super) open: Arc<AtomicUsize>,
    pub(super) send: UnboundedSender<Handed>,
}

/// A connection on its way to another worker.
pub(super) struct Handed {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    guard: ConnectionGuard,
    open: Open,
}

/// Counts a connection of a worker.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Binds one address.
pub(super) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Problem> {
    let bound = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // `[::]` takes IPv4 as well, as everywhere else; two entries for one port each take their own.
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bound().map_err(|why| {
        let help = match why.kind() {
            io::ErrorKind::AddrInUse => "another program listens there, maybe another hooklatch: stop it or choose another port",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=): choose a port above, or grant it",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: use one of its own, or 0.0.0.0",
            _ => "choose another address",
        };
        Problem::error("server.listen", None, format!("cannot listen on {address}: {why}")).help(help)
    })
}

/// Runs one worker to its end: accept, serve, drain. Returns how much work of the whole gate its drain left undone.
pub(super) fn work<S: Serve>(
    runtime: Runtime,
    index: usize,
    sockets: Vec<std::net::TcpListener>,
    handed: UnboundedReceiver<Handed>,
    shared: Arc<Shared<S>>,
    drain: Arc<Drain>,
    drain_timeout: Duration,
) -> u64 {
    let left = runtime.block_on(async {
        for socket in sockets {
            match TcpListener::from_std(socket) {
                Ok(listener) => drop(tokio::spawn(accept(listener, index, Arc::clone(&shared), Arc::clone(&drain)))),
                Err(why) => tracing::error!(worker = index, "a socket cannot be used: {why}"),
            }
        }
        tokio::spawn(receive(handed, Arc::clone(&shared), Arc::clone(&drain)));
        drain.begun().await;
        let limit = shared.clock.mono().plus(drain_timeout);
        let open = &shared.doors[index].open;
        // What goes on without its sender runs here as well, and ends with this runtime.
        let unfinished = || shared.budget.requests() + shared.serve.afterwork() as u64;
        while (open.load(Relaxed) > 0 || unfinished() > 0) && shared.clock.mono() < limit && !drain.is_cut() {
            sleep(Duration::from_millis(10)).await;
        }
        let left = open.load(Relaxed);
        if left > 0 {
            warn!(worker = index, connections = left, "cut off connections that did not finish within drain_timeout");
        }
        unfinished()
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    left
}

/// Accepts until the drain begins.
async fn accept<S: Serve>(listener: TcpListener, index: usize, shared: Arc<Shared<S>>, drain: Arc<Drain>) {
    let mut pause = PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.begun() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE;
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                match shared.budget.connection() {
                    Ok(guard) => place(stream, peer, guard, index, &shared, &drain),
                    Err(_) => shared.serve.fault(peer, Fault::ConnectionLimit, ""),
                }
            }
            // The peer gave up before we looked: its loss, and no reason to pause.
            Err(why) if matches!(why.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted) => {}
            // Out of descriptors or memory. The connection stays in the kernel's queue, so trying again at once would spin.
            Err(why) => {
                if shared.may_log() {
                    warn!("connections cannot be accepted: {why}; trying again, raise the limit of open files (ulimit -n, LimitNOFILE=) if this goes on");
                }
                tokio::select! {
                    () = drain.begun() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

impl<S> Shared<S> {
    fn may_log(&self) -> bool {
        let now = self.clock.mono();
        let last = self.logged.load(Relaxed);
        let due = last == 0 || now.since(Mono(last)) >= LOG_EVERY;
        due && self.logged.compare_exchange(last, now.0.max(1), Relaxed, Relaxed).is_ok()
    }
}

/// Serves a connection here, or hands it to a worker that has less to do.
fn place<S: Serve>(stream: TcpStream, peer: SocketAddr, guard: ConnectionGuard, index: usize, shared: &Arc<Shared<S>>, drain: &Arc<Drain>) {
    let here = shared.doors[index].open.load(Relaxed);
    let other = shared.doors.iter().min_by_key(|door| door.open.load(Relaxed)).filter(|door| door.open.load(Relaxed) < here);
    match other {
        None => drop(tokio::spawn(connection(stream, peer, guard, Open::new(&shared.doors[index].open), Arc::clone(shared), Arc::clone(drain)))),
        Some(door) => {
            if let Ok(stream) = stream.into_std() {
                // A worker that has ended takes nothing more; then the gate is ending too, and the connection with it.
                let _ = door.send.send(Handed { stream, peer, guard, open: Open::new(&door.open) });
            }
        }
    }
}

/// Takes connections that other workers hand over.
async fn receive<S: Serve>(mut handed: UnboundedReceiver<Handed>, shared: Arc<Shared<S>>, drain: Arc<Drain>) {
    while let Some(Handed { stream, peer, guard, open }) = handed.recv().await {
        if let Ok(stream) = TcpStream::from_std(stream) {
            tokio::spawn(connection(stream, peer, guard, open, Arc::clone(&shared), Arc::clone(&drain)));
        }
    }
}

/// One connection from accept to close. The large futures of its stages are boxed one by one: what waits is the smallest that can.
async fn connection<S: Serve>(stream: TcpStream, peer: SocketAddr, guard: ConnectionGuard, open: Open, shared: Arc<Shared<S>>, drain: Arc<Drain>) {
    let live = shared.live.load_full();
    let opened = tokio::select! {
        biased;
        opened = Box::pin(begin(stream, peer, guard, &live, &shared)) => opened,
        () = drain.begun() => return, // nothing was asked yet
    };
    if let Some((opened, conn, guard)) = opened {
        let session = Session { serve: Arc::clone(&shared.serve), conn: Arc::new(conn), budget: Arc::clone(&shared.budget), clock: shared.clock.clone() };
        match opened {
            Opened::Plain(stream, false) => Box::pin(http::http1(stream, session, &live.protocols, &drain)).await,
            Opened::Plain(stream, true) => Box::pin(http::http2(stream, session, &live.protocols, &drain)).await,
            Opened::Tls(stream, false) => Box::pin(http::http1(stream, session, &live.protocols, &drain)).await,
            Opened::Tls(stream, true) => Box::pin(http::http2(stream, session, &live.protocols, &drain)).await,
        }
        drop(guard);
    }
    drop(open);
}

/// A stream that is ready for HTTP, and whether it speaks HTTP/2.
enum Opened {
    Plain(TcpStream, bool),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>, bool),
}

/// PROXY header, address limit, TLS handshake. `None`: refused, reported and closed.
async fn begin<S: Serve>(
    mut stream: TcpStream,
    socket: SocketAddr,
    mut guard: ConnectionGuard,
    live: &Live,
    shared: &Shared<S>,
) -> Option<(Opened, Conn, ConnectionGuard)> {
    let fault = |peer, fault, detail: &str| {
        shared.serve.fault(peer, fault, detail);
        None
    };
    let _ = stream.set_nodelay(true); // an answer leaves at once; without it, it only leaves later
    let mut peer = socket;
    let trusted = live.trusts(socket.ip());
    if live.proxy_protocol {
        if !trusted {
            return fault(socket, Fault::ProxyUntrusted, "");
        }
        match timeout(live.handshake_timeout, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(Some((source, _)))) => peer = SocketAddr::new(source.ip().to_canonical(), source.port()),
            Ok(Ok(None)) => {}
            Ok(Err(why)) if why.kind() == io::ErrorKind::InvalidData => return fault(socket, Fault::ProxyHeader, &why.to_string()),
            Ok(Err(_)) => return None,
            Err(_) => return fault(socket, Fault::HandshakeTimeout, "no PROXY header"),
        }
    }
    // A trusted proxy brings many clients under its own address: they are not one client.
    if !(trusted && peer == socket)
        && let Err(Full::Address) = guard.admit(peer.ip())
    {
        return fault(peer, Fault::AddressLimit, "");
    }
    let Some(acceptor) = &live.tls else {
        let http2 = match timeout(live.handshake_timeout, prior_knowledge(&stream)).await {
            Ok(found) => found.ok()?,
            Err(_) => return fault(peer, Fault::HeaderTimeout, ""),
        };
        return Some((Opened::Plain(stream, http2), Conn { peer, socket, tls: None }, guard));
    };
    // One look at the first byte: a browser or curl that was told http:// deserves better than an alert.
    let handshake = async {
        let mut first = [0];
        stream.peek(&mut first).await?;
        if first[0].is_ascii_uppercase() {
            http::answer_plain(&mut stream).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a port that speaks TLS"));
        }
        acceptor.accept(stream).await
    };
    match timeout(live.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let tls = Tls {
                server_name: session.server_name().map(str::to_ascii_lowercase),
                client_chain: session.peer_certificates().map(|chain| chain.iter().map(|cert| cert.clone().into_owned()).collect()).unwrap_or_default(),
            };
            let http2 = session.alpn_protocol() == Some(b"h2");
            Some((Opened::Tls(Box::new(stream), http2), Conn { peer, socket, tls: Some(tls) }, guard))
        }
        Ok(Err(why)) if why.kind() == io::ErrorKind::InvalidData => fault(peer, Fault::HandshakeFailed, &why.to_string()),
        // A peer that connects and leaves is a load balancer's health check more often than not.
        Ok(Err(_)) => None,
        Err(_) => fault(peer, Fault::HandshakeTimeout, ""),
    }
}

/// Whether a plain connection opens with HTTP/2's preface. Nothing is taken from the socket.
async fn prior_knowledge(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI *";
    let mut ahead = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut ahead).await?;
        if seen == PREFACE.len() || seen == 0 || !PREFACE.starts_with(&ahead[..seen]) {
            return Ok(ahead == *PREFACE);
        }
        // Two or three bytes in the first segment: rare enough to look again a little later.
        sleep(Duration::from_millis(5)).await;
    }
}
