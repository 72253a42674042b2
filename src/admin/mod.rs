//! The admin listener: health, metrics, the inspector and its page, the effective policy, reload.
//!
//! `/healthz`, `/readyz` and `/metrics` are open; everything else needs the token, as `Authorization: Bearer` or, in a browser, by the
//! cookie that the login form sets. It runs on the control runtime, never on the workers that carry webhooks. It never shows a secret.

mod access;
mod api;
mod health;
mod page;
mod pair;
mod places;
#[cfg(test)]
mod tests;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRef, State},
    http::{HeaderMap, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use data_encoding::BASE64URL_NOPAD;
use hyper::service::{Service, service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

pub(crate) use health::Readiness;

use self::places::{Limits, Paced, Places, Taken};
use crate::{
    capture::live,
    clock::Clock,
    deliver::inspector::Store,
    observe::{audit::Decisions, events, metrics::Metrics},
    pair::Pairings,
    secret::Secret,
    section::Section,
};

/// For connections to end when the gate stops.
const LAST: Duration = Duration::from_secs(2);
/// Largest body of an admin request, bytes: a token in a form.
const BODY: usize = 16 << 10;
/// The file of a token that the gate made itself, in the state directory.
pub(crate) const TOKEN_FILE: &str = "admin.token";

// -- settings --

/// `[admin]`, read.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    /// `None`: one is made in the state directory.
    pub(crate) token: Option<Secret>,
    /// Names under which a browser may ask, lower case; `localhost` and addresses always may.
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// What is kept of refused events.
    pub(crate) capture: live::Settings,
}

/// Reads `[admin]`; `root` is the whole policy. `None` where it is switched off (`admin = false`), or wrong.
pub(crate) fn read(root: &Section<'_>) -> Option<Settings> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9900));
    let plain = Settings { listen: default, token: None, allowed_hosts: Vec::new(), tls: None, capture: live::Settings::default() };
    let Some(item) = root.item("admin") else { return Some(plain) };
    if item.as_bool() == Some(false) {
        return None;
    }
    let admin = item.section()?;
    let listen = match admin.item("listen") {
        None => Some(default),
        Some(item) => item.string().and_then(|text| {
            let address = text.strip_prefix("localhost:").map_or_else(|| text.parse().ok(), |port| Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()));
            if address.is_none() {
                item.problem(format!("`{text}` is not an address to listen on"), "write it like \"127.0.0.1:9900\"; `admin = false` switches it off");
            }
            address
        }),
    };
    let token = admin.item("token").map(|item| {
        let token = item.secret(1);
        if token.as_ref().is_some_and(|token| token.expose().len() < 16) {
            item.warn("the admin token has fewer than 16 bytes", "make a longer one: openssl rand -hex 32");
        }
        token
    });
    let mut allowed_hosts = Vec::new();
    for (index, host) in admin.strings("allowed_hosts").into_iter().enumerate() {
        if host.is_empty() || host.contains([':', '/', '*', ' ']) {
            admin.problem("allowed_hosts", format!("`{host}` (number {}) is not a host's name", index + 1), "write the name alone, without scheme and port");
        }
        allowed_hosts.push(host.to_ascii_lowercase());
    }
    let tls = admin.opt_section("tls").map(|section| {
        let made = server_config(&section);
        section.finish();
        made
    });
    let insecure = admin.bool_or("insecure", false);
    let capture = live::read(&admin);
    if let Some(listen) = listen
        && !listen.ip().to_canonical().is_loopback()
        && tls.is_none()
        && !insecure
    {
        admin.problem(
            "listen",
            format!("the admin listener at {listen} would carry its token in the clear"),
            "add `tls = { cert, key }`, listen on 127.0.0.1, or set `insecure = true` where something in front does TLS",
        );
    }
    admin.finish();
    // Everything was read above, so that one run reports it all.
    let token = match token {
        Some(read) => Some(read?),
        None => None,
    };
    let tls = match tls {
        Some(made) => Some(made?),
        None => None,
    };
    Some(Settings { listen: listen?, token, allowed_hosts, tls, capture })
}

fn server_config(section: &Section<'_>) -> Option<Arc<ServerConfig>> {
    let cert = section.string("cert").and_then(|_| section.file("cert")); // both are read before either `?`
    let key = section.string("key").and_then(|_| section.file("key"));
    let ((cert_path, cert), (key_path, key)) = (cert?, key?);
    let key = Zeroizing::new(key);
    let Ok(chain) = CertificateDer::pem_slice_iter(&cert).collect::<Result<Vec<_>, _>>() else {
        section.problem("cert", format!("{} is not PEM", cert_path.display()), "give the certificate first and its intermediates after it");
        return None;
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(&key) else {
        section.problem("key", format!("{} holds no private key", key_path.display()), "give an unencrypted PEM key: PKCS#8, PKCS#1 or SEC1");
        return None;
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().ok()?;
    match builder.with_no_client_auth().with_single_cert(chain, key) {
        Ok(mut config) => {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(Arc::new(config))
        }
        Err(why) => {
            section.problem("cert", format!("{} cannot be served: {why}", cert_path.display()), "certificate and key have to belong together");
            None
        }
    }
}

/// The token in force, and the file it was made in where that happened just now: print it once, then.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) secret: Secret,
    pub(crate) made: Option<PathBuf>,
}

impl Token {
    /// The policy's token, else the one in `state_dir`, else a new one of 256 random bits, kept there for the owner alone.
    pub(crate) fn load(settings: &Settings, state_dir: &Path) -> io::Result<Self> {
        if let Some(secret) = &settings.token {
            return Ok(Self { secret: secret.clone(), made: None });
        }
        let path = state_dir.join(TOKEN_FILE);
        match std::fs::read(&path) {
            Ok(mut bytes) => {
                bytes.truncate(bytes.trim_ascii_end().len());
                if bytes.len() < 16 {
                    let why = format!("{} holds no token; remove it and a new one is made", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Ok(Self { secret: Secret::new("admin", bytes, None), made: None })
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                let text = Zeroizing::new(BASE64URL_NOPAD.encode(&rand::random::<[u8; 32]>()));
                std::fs::create_dir_all(state_dir)?;
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(text.as_bytes())?;
                file.write_all(b"\n")?;
                file.sync_all()?;
                Ok(Self { secret: Secret::new("admin", text.as_bytes().to_vec(), None), made: Some(path) })
            }
            Err(why) => Err(why),
        }
    }

    /// The token as text, for the one time it is printed.
    pub(crate) fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(String::from_utf8_lossy(self.secret.expose()).into_owned())
    }
}

// -- the server --

/// What a reload said: a JSON object for the caller, or every problem of the policy.
pub(crate) type Reloaded = Result<Value, Vec<String>>;
/// Tells of a refused event.
pub(crate) type Explain = Arc<dyn Fn(&live::Kept) -> Result<Value, String> + Send + Sync>;
pub(crate) type Reload = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Reloaded> + Send>> + Send + Sync>;

/// What `hooklatch pair` can do with a route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairRoute {
    pub(crate) takes_secret: bool,
    /// A person has to give it back to the provider.
    pub(crate) shows_secret: bool,
}

/// The same by the route's name; `None`: there is no such route.
pub(crate) type Pairable = Arc<dyn Fn(&str) -> Option<PairRoute> + Send + Sync>;

/// What the admin listener shows and can set off.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) inspector: Arc<Store>,
    pub(crate) decisions: Decisions,
    pub(crate) refused: Arc<live::Refused>,
    /// One of them as it may be shown.
    pub(crate) shown: Arc<dyn Fn(&live::Kept) -> Value + Send + Sync>,
    /// Why it was refused, by the policy in force; the error says why that cannot be told. Takes a while: not on the runtime.
    pub(crate) explain: Explain,
    /// Loads the policy anew.
    pub(crate) reload: Reload,
    /// The effective policy, without secrets.
    pub(crate) policy: Arc<dyn Fn() -> Value + Send + Sync>,
    pub(crate) pairings: Arc<Pairings>,
    pub(crate) pairable: Pairable,
    pub(crate) token: Secret,
    pub(crate) clock: Clock,
}

/// What a handler can take: the state, and what may change while the listener runs.
#[derive(Clone)]
struct Shared {
    state: AdminState,
    rules: Arc<ArcSwap<Rules>>,
    /// True from when the listener is to end.
    stopping: watch::Receiver<bool>,
    streams: Arc<Semaphore>,
    limits: Limits,
}

impl FromRef<Shared> for AdminState {
    fn from_ref(shared: &Shared) -> Self {
        shared.state.clone()
    }
}

/// What a reload may change.
#[derive(Debug)]
struct Rules {
    allowed_hosts: Vec<String>,
    token: Secret,
    tls: Option<Arc<ServerConfig>>,
}

impl Rules {
    fn new(settings: &Settings, token: Secret) -> Self {
        Self { allowed_hosts: settings.allowed_hosts.clone(), token, tls: settings.tls.clone() }
    }
}

/// What is known of the connection a request came on.
#[derive(Clone, Copy, Debug)]
struct Here {
    tls: bool,
}

/// The running listener; dropping it ends it at once.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    tls: bool,
    rules: Arc<ArcSwap<Rules>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    #[cfg(test)]
    places: Arc<Places>,
}

impl Server {
    /// Binds and serves on the current runtime.
    pub(crate) async fn start(settings: &Settings, state: AdminState) -> io::Result<Self> {
        Self::start_within(settings, state, Limits::default()).await
    }

    async fn start_within(settings: &Settings, state: AdminState, limits: Limits) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let rules = Arc::new(ArcSwap::from_pointee(Rules::new(settings, state.token.clone())));
        let (stop, stopping) = watch::channel(false);
        let clock = state.clock.clone();
        let shared = Shared { state, rules: rules.clone(), stopping: stopping.clone(), streams: Arc::new(Semaphore::new(api::STREAMS)), limits };
        let places = Places::new(limits.places, clock.clone());
        let door = Door { router: router(shared), rules: rules.clone(), places: places.clone(), limits };
        let task = tokio::spawn(serve(listener, door, stopping, clock));
        Ok(Self {
            address,
            tls: settings.tls.is_some(),
            rules,
            stop,
            task,
            #[cfg(test)]
            places,
        })
    }

    /// Where it listens: with port 0 in the policy, the port it was given.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The page's address, as a person types it.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let address = match self.address.ip() {
            ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.address.port()),
            _ => self.address,
        };
        format!("{scheme}://{address}/")
    }

    /// Takes over what a reload may change: token, allowed hosts, certificate. `listen`, and whether there is TLS at all, need a restart.
    pub(crate) fn configure(&self, settings: &Settings, token: Secret) {
        self.rules.store(Arc::new(Rules::new(settings, token)));
    }

    /// Takes no new connection and ends the open ones, at the latest after two seconds.
    pub(crate) async fn stop(mut self) {
        let _ = self.stop.send(true); // nobody listens where the task has ended already
        let _ = tokio::time::timeout(LAST * 2, &mut self.task).await; // what is left then ends with the runtime
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(shared: Shared) -> Router {
    let guarded = Router::new()
        .route("/api/v1/inspector/events", get(api::events))
        .route("/api/v1/inspector/events/{id}", get(api::event))
        .route("/api/v1/decisions", get(api::decisions))
        .route("/api/v1/refused", get(api::refused))
        .route("/api/v1/refused/{id}", get(api::refused_event))
        .route("/api/v1/explanations/{id}", get(api::explanation))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/policy", get(api::policy))
        .route("/api/v1/reload", post(api::reload))
        .route("/api/v1/live", get(api::live))
        .route("/api/v1/pair/{route}", get(pair::status).post(pair::arm).delete(pair::cancel))
        .route_layer(middleware::from_fn_with_state(shared.clone(), access::token));
    let named = Router::new()
        .route("/", get(page::index))
        .route("/login", post(page::login))
        .route("/logout", post(page::logout))
        .route("/assets/{name}", get(page::asset))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(shared.clone(), access::host_and_origin));
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .merge(named)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::map_response(access::headers))
        .with_state(shared)
}

/// `GET /metrics`: OpenMetrics for whoever asks for it, else the older Prometheus text.
async fn metrics(State(state): State<AdminState>, headers: HeaderMap) -> Response {
    let open = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("application/openmetrics-text"));
    if open {
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], state.metrics.encode()).into_response()
    } else {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.encode_plain()).into_response()
    }
}

/// What a new connection is given.
#[derive(Clone)]
struct Door {
    router: Router,
    rules: Arc<ArcSwap<Rules>>,
    places: Arc<Places>,
    limits: Limits,
}

async fn serve(listener: TcpListener, door: Door, mut stopping: watch::Receiver<bool>, clock: Clock) {
    let mut open = JoinSet::new();
    let listen = listener.local_addr().unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (door, stopping) = (door.clone(), stopping.clone());
                let taken = door.places.take();
                open.spawn(async move {
                    tokio::select! {
                        () = connection(stream, &door, &taken, stopping) => {}
                        () = taken.lost() => {}
                    }
                });
            }
            Err(why) => {
                events::accept_failed(listen, &why, clock.mono());
                // Without file descriptors accept fails at once, again and again.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST, async { while open.join_next().await.is_some() {} }).await; // what is left is cut off
}

/// Waits for the listener's end, by order or because its owner is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await; // an error: the owner is gone
}

async fn connection(stream: TcpStream, door: &Door, taken: &Taken, stopping: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // slower without, but no worse
    let stream = Paced::new(stream, door.limits.taking);
    let tls = door.rules.load().tls.clone();
    match tls {
        None => http(stream, door, taken, false, stopping).await,
        Some(config) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(door.limits.handshake, TlsAcceptor::from(config).accept(stream)).await {
                http(stream, door, taken, true, stopping).await;
            }
        }
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, door: &Door, taken: &Taken, tls: bool, mut stopping: watch::Receiver<bool>) {
    let place = taken.place();
    let router = TowerToHyperService::new(door.router.clone().layer(Extension(Here { tls })).layer(Extension(place.clone())));
    let service = service_fn(|request| {
        let (answer, place) = (router.call(request), place.clone());
        async move {
            let answer = answer.await;
            place.answered();
            answer
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(door.limits.head).max_buf_size(64 << 10);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // An error here is the client's hang-up or nonsense: nothing to act on.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
