//! Bare hyper 1.x TLS reverse proxy: the floor for our own stack.
//! floor --listen A --backend A --cert F --key F [--secret S] [--hmac provider|rustcrypto]
//!       [--rt current|percore|multi] [--threads N] [--tickets N|off] [--body chunks|concat]
//!       [--pool on|off] [--nodelay on|off]
//! Without --secret it does no checks and streams the body through; with it,
//! the HMAC is fed while the body streams in, the body is held, and only a
//! request that verifies is forwarded (401 otherwise).
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, client::conn::http1 as h1c, server::conn::http1 as h1s, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::net::{TcpListener, TcpStream};

use aws_lc_rs::hmac as phmac;
use rustls::crypto::aws_lc_rs as provider;

/// A held body: the frames as they arrived, never concatenated.
struct Chunks {
    q: VecDeque<Bytes>,
    left: u64,
}
impl Body for Chunks {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let b = self.q.pop_front();
        if let Some(b) = &b {
            self.left -= b.len() as u64;
        }
        Poll::Ready(b.map(|b| Ok(Frame::data(b))))
    }
    fn is_end_stream(&self) -> bool {
        self.q.is_empty()
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
type OutBody = Either<Incoming, Chunks>;
type Pool = Mutex<Vec<h1c::SendRequest<OutBody>>>;

enum Mac {
    P(phmac::Context),
    R(hmac::Hmac<sha2::Sha256>),
}
impl Mac {
    fn update(&mut self, b: &[u8]) {
        match self {
            Mac::P(c) => c.update(b),
            Mac::R(c) => hmac::Mac::update(c, b),
        }
    }
    fn verify(self, sig: &[u8]) -> bool {
        match self {
            Mac::P(c) => {
                let t = c.sign();
                let t = t.as_ref();
                t.len() == sig.len() && t.iter().zip(sig).fold(0, |a, (x, y)| a | (x ^ y)) == 0
            }
            Mac::R(c) => hmac::Mac::verify_slice(c, sig).is_ok(),
        }
    }
}
struct Cfg {
    listen: SocketAddr,
    backend: SocketAddr,
    key: Option<(phmac::Key, Vec<u8>)>,
    rustcrypto: bool,
    concat: bool,
    pool: bool,
    nodelay: bool,
    tls: Arc<rustls::ServerConfig>,
}

fn sig_of(r: &Request<Incoming>) -> Option<[u8; 32]> {
    let h = r.headers().get("x-hub-signature-256")?.as_bytes().strip_prefix(b"sha256=")?;
    let mut out = [0u8; 32];
    if h.len() != 64 {
        return None;
    }
    for (i, p) in h.chunks(2).enumerate() {
        out[i] = u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok()?;
    }
    Some(out)
}
fn status(c: u16, m: &'static str) -> Response<Full<Bytes>> {
    Response::builder().status(c).body(Full::new(Bytes::from_static(m.as_bytes()))).unwrap()
}

async fn forward(cfg: &Cfg, pool: &Pool, req: Request<OutBody>) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let mut tx = loop {
        let got = if cfg.pool { pool.lock().unwrap().pop() } else { None };
        match got {
            Some(mut t) => {
                if t.ready().await.is_ok() {
                    break t;
                }
            }
            None => {
                let s = TcpStream::connect(cfg.backend).await?;
                s.set_nodelay(cfg.nodelay)?;
                let (t, conn) = h1c::handshake(TokioIo::new(s)).await?;
                tokio::spawn(async move {
                    let _ = conn.await;
                });
                break t;
            }
        }
    };
    let (parts, body) = tx.send_request(req).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    if cfg.pool {
        pool.lock().unwrap().push(tx);
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}

async fn handle(cfg: &Cfg, pool: &Pool, req: Request<Incoming>) -> Response<Full<Bytes>> {
    let req = match &cfg.key {
        None => req.map(Either::Left),
        Some((pk, raw)) => {
            let Some(sig) = sig_of(&req) else { return status(401, "no signature") };
            let mut mac = if cfg.rustcrypto {
                Mac::R(<hmac::Hmac<sha2::Sha256> as hmac::Mac>::new_from_slice(raw).unwrap())
            } else {
                Mac::P(phmac::Context::with_key(pk))
            };
            let (parts, mut body) = req.into_parts();
            let mut c = Chunks { q: VecDeque::new(), left: 0 };
            while let Some(f) = body.frame().await {
                let Ok(f) = f else { return status(400, "bad body") };
                if let Ok(d) = f.into_data() {
                    mac.update(&d);
                    c.left += d.len() as u64;
                    c.q.push_back(d);
                }
            }
            if !mac.verify(&sig) {
                return status(401, "bad signature");
            }
            if cfg.concat && c.q.len() > 1 {
                let v: Vec<u8> = c.q.drain(..).fold(Vec::new(), |mut v, b| {
                    v.extend_from_slice(&b);
                    v
                });
                c.q.push_back(v.into());
            }
            Request::from_parts(parts, Either::Right(c))
        }
    };
    match forward(cfg, pool, req).await {
        Ok(r) => r,
        Err(_) => status(502, "bad gateway"),
    }
}

fn listener(a: SocketAddr) -> TcpListener {
    let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    s.set_reuse_address(true).unwrap();
    s.set_reuse_port(true).unwrap();
    s.bind(&a.into()).unwrap();
    s.listen(8192).unwrap();
    s.set_nonblocking(true).unwrap();
    TcpListener::from_std(s.into()).unwrap()
}
async fn run(cfg: Arc<Cfg>) {
    let l = listener(cfg.listen);
    let acc = tokio_rustls::TlsAcceptor::from(cfg.tls.clone());
    let pool: Arc<Pool> = Arc::default();
    loop {
        let Ok((s, _)) = l.accept().await else { continue };
        let (cfg, acc, pool) = (cfg.clone(), acc.clone(), pool.clone());
        tokio::spawn(async move {
            let _ = s.set_nodelay(cfg.nodelay);
            let Ok(tls) = acc.accept(s).await else { return };
            let svc = service_fn(|r| {
                let (cfg, pool) = (&cfg, &pool);
                async move { Ok::<_, Infallible>(handle(cfg, pool, r).await) }
            });
            let _ = h1s::Builder::new().serve_connection(TokioIo::new(tls), svc).await;
        });
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let opt = |n: &str| a.iter().position(|x| x == n).and_then(|i| a.get(i + 1)).cloned();
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let certs = CertificateDer::pem_file_iter(opt("--cert").unwrap()).unwrap().map(|c| c.unwrap()).collect();
    let key = PrivateKeyDer::from_pem_file(opt("--key").unwrap()).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    match opt("--tickets").as_deref() {
        Some("off") => {
            tls.send_tls13_tickets = 0;
            tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        }
        n => {
            tls.ticketer = provider::Ticketer::new().unwrap();
            tls.send_tls13_tickets = n.map_or(2, |n| n.parse().unwrap());
        }
    }
    let cfg = Arc::new(Cfg {
        listen: opt("--listen").unwrap().parse().unwrap(),
        backend: opt("--backend").unwrap().parse().unwrap(),
        key: opt("--secret").map(|s| (phmac::Key::new(phmac::HMAC_SHA256, s.as_bytes()), s.into_bytes())),
        rustcrypto: opt("--hmac").as_deref() == Some("rustcrypto"),
        concat: opt("--body").as_deref() == Some("concat"),
        pool: opt("--pool").as_deref() != Some("off"),
        nodelay: opt("--nodelay").as_deref() != Some("off"),
        tls: Arc::new(tls),
    });
    let n: usize = opt("--threads").map_or(1, |v| v.parse().unwrap());
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match opt("--rt").as_deref().unwrap_or("current") {
        "multi" => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(n)
            .enable_all()
            .build()
            .unwrap()
            .block_on(async move { tokio::spawn(run(cfg)).await.unwrap() }),
        "percore" => {
            let t: Vec<_> = (0..n)
                .map(|_| {
                    let cfg = cfg.clone();
                    std::thread::spawn(move || one().block_on(run(cfg)))
                })
                .collect();
            t.into_iter().for_each(|t| t.join().unwrap())
        }
        _ => one().block_on(run(cfg)),
    }
}
