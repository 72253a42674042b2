//! Load generator for webhook receivers behind TLS 1.3.
//! gen MODE --addr A [--path /hook] [--size N] [--conns N] [--secs F] [--warm F] [--tamper PCT]
//!     [--refuse STATUS: counts as a refusal beside 4xx] [--rate R] [--secret S] [--pid P] [--count N] [--levels 1000,5000] [--no-close-header] [--ids fixed]
//! MODE: keepalive  closed loop on kept-alive connections
//!       newconn    new TCP+TLS connection per request, no resumption
//!       resume     the same, with TLS 1.3 PSK resumption
//!       rate       open loop at R requests/s; latency counts from the *due* time
//!       idle       opens connections to each level, one request each, holds them, reports memory
//! Every request carries a fresh x-github-delivery and a fresh counter at the end of its signed body, so replay protection lets it through.
//! Prints one JSON object. --pid: root of the process tree whose CPU and memory are reported.
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::{TlsConnector, client::TlsStream};
type Tls = TlsStream<tokio::net::TcpStream>;

// The generator shares a core with the backend: it skips certificate checks to stay light.
#[derive(Debug)]
struct NoVerify(Vec<rustls::SignatureScheme>);
impl ServerCertVerifier for NoVerify {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.clone()
    }
}

fn tree(root: i32) -> Vec<i32> {
    let mut all = vec![];
    for e in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(p) = e.file_name().to_string_lossy().parse::<i32>() {
            if let Ok(s) = std::fs::read_to_string(format!("/proc/{p}/stat")) {
                let f: Vec<&str> = s[s.rfind(')').unwrap() + 2..].split(' ').collect();
                all.push((p, f[1].parse::<i32>().unwrap()));
            }
        }
    }
    let mut out = vec![root];
    let mut i = 0;
    while i < out.len() {
        let r = out[i];
        out.extend(all.iter().filter(|(_, pp)| *pp == r).map(|(p, _)| *p));
        i += 1;
    }
    out
}
/// (on-CPU ns of live threads + waited-for children, ns by the stat clock)
fn cpu(root: Option<i32>) -> (u64, u64) {
    let Some(root) = root else { return (0, 0) };
    let (mut fine, mut ticks, mut kids) = (0u64, 0u64, 0u64);
    for p in tree(root) {
        if let Ok(s) = std::fs::read_to_string(format!("/proc/{p}/stat")) {
            let f: Vec<&str> = s[s.rfind(')').unwrap() + 2..].split(' ').collect();
            let n = |i: usize| f[i].parse::<u64>().unwrap_or(0);
            ticks += n(11) + n(12);
            kids += n(13) + n(14);
        }
        for t in std::fs::read_dir(format!("/proc/{p}/task")).into_iter().flatten().flatten() {
            if let Ok(s) = std::fs::read_to_string(t.path().join("schedstat")) {
                fine += s.split(' ').next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
            }
        }
    }
    (fine + kids * 10_000_000, (ticks + kids) * 10_000_000)
}
fn mem(root: Option<i32>) -> (u64, u64) {
    let Some(root) = root else { return (0, 0) };
    let (mut rss, mut pss) = (0, 0);
    for p in tree(root) {
        if let Ok(s) = std::fs::read_to_string(format!("/proc/{p}/smaps_rollup")) {
            for l in s.lines() {
                let v = || l.split_whitespace().nth(1).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
                if l.starts_with("Rss:") {
                    rss += v()
                }
                if l.starts_with("Pss:") {
                    pss += v()
                }
            }
        }
    }
    (rss, pss)
}

type Mac = hmac::Hmac<sha2::Sha256>;
/// One prepared request. Its body ends in a counter, so that every request is a new event also for a
/// replay guard that goes by the signed content; `signed` is the HMAC over all before the counter.
struct Req {
    buf: Vec<u8>,
    id_at: usize,
    tag_at: usize,
    counter_at: usize,
    signed: Mac,
}
const COUNTER: usize = 16;
const ENDING: &[u8] = b"\"}";
fn hex(tag: &[u8]) -> String {
    tag.iter().map(|b| format!("{b:02x}")).collect()
}
fn request(path: &str, size: usize, secret: &str, tampered: bool, close: bool) -> Req {
    use hmac::Mac as _;
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(br#"{"ref":"refs/heads/main","commits":["#);
    let close_list = br#"],"n":""#;
    let fill = size.saturating_sub(close_list.len() + COUNTER + ENDING.len());
    let mut i = 0u64;
    while body.len() < fill {
        let item = format!(
            r#"{{"id":"{:016x}","message":"fix: item {i}","author":{{"name":"Dev {i}","email":"dev{i}@example.test"}}}},"#,
            i.wrapping_mul(0x9E3779B97F4A7C15)
        );
        if item.len() <= fill - body.len() {
            body.extend_from_slice(item.as_bytes());
        } else {
            body.resize(fill, b' ');
        }
        i += 1;
    }
    // The last item's comma would not be JSON, and a filter that reads the body says so.
    if let Some(comma) = body.iter().rposition(|byte| *byte == b',').filter(|at| body[..*at].ends_with(b"}")) {
        body[comma] = b' ';
    }
    body.extend_from_slice(close_list);
    let mut signed = Mac::new_from_slice(secret.as_bytes()).unwrap();
    signed.update(&body);
    let counter = body.len();
    body.extend_from_slice(&[b'0'; COUNTER]);
    body.extend_from_slice(ENDING);
    let tag = hex(&signed.clone().chain_update(&body[counter..]).finalize().into_bytes());
    let n = body.len();
    if tampered {
        body[n / 2] ^= 1;
    }
    let mut h = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Hook-ID: 292430182\r\nX-Bench-Len: {n}\r\nContent-Length: {n}\r\n"
    );
    if tampered {
        h.push_str("X-Bench-Tampered: 1\r\n");
    }
    if close {
        h.push_str("Connection: close\r\n");
    }
    h.push_str("X-Hub-Signature-256: sha256=");
    let tag_at = h.len();
    h.push_str(&tag);
    h.push_str("\r\nX-GitHub-Delivery: ");
    let id_at = h.len();
    h.push_str("00000000-0000-4000-8000-000000000000\r\n\r\n");
    let mut buf = h.into_bytes();
    let counter_at = buf.len() + counter;
    buf.extend_from_slice(&body);
    Req { buf, id_at, tag_at, counter_at, signed }
}

#[derive(Default)]
struct Tot {
    n: u64,
    ok: u64,
    rej: u64,
    other: u64,
    wrong: u64,
    errors: u64,
    handshakes: u64,
    resumed: u64,
    lat: Vec<u32>,
    last_status: u16,
    first_err: Option<String>,
}
struct Ctx {
    tot: RefCell<Tot>,
    next_id: RefCell<u64>,
    addr: SocketAddr,
    conn: Arc<rustls::ClientConfig>,
    measuring: std::cell::Cell<bool>,
    stop: std::cell::Cell<bool>,
    fixed_ids: bool,
    refuse: u16,
}

impl Ctx {
    fn stamp(&self, r: &mut Req) {
        if self.fixed_ids {
            return;
        }
        let mut i = self.next_id.borrow_mut();
        *i = i.wrapping_add(1);
        let s = format!("{:08x}-{:04x}-4000-8000-{:012x}", (*i >> 32) as u32, (*i >> 48) as u16, *i & 0xffff_ffff_ffff);
        r.buf[r.id_at..r.id_at + 36].copy_from_slice(s.as_bytes());
        use hmac::Mac as _;
        r.buf[r.counter_at..r.counter_at + COUNTER].copy_from_slice(format!("{:016x}", *i).as_bytes());
        let tag = r.signed.clone().chain_update(&r.buf[r.counter_at..]).finalize().into_bytes();
        for (at, b) in tag.iter().enumerate() {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            r.buf[r.tag_at + 2 * at] = DIGITS[(b >> 4) as usize];
            r.buf[r.tag_at + 2 * at + 1] = DIGITS[(b & 15) as usize];
        }
    }
    async fn connect(&self, tls: &TlsConnector) -> std::io::Result<Tls> {
        let s = TcpSocket::new_v4()?.connect(self.addr).await?;
        s.set_nodelay(true)?;
        let t = tls.connect(ServerName::try_from("localhost").unwrap(), s).await?;
        if self.measuring.get() {
            let mut tot = self.tot.borrow_mut();
            tot.handshakes += 1;
            if t.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                tot.resumed += 1;
            }
        }
        Ok(t)
    }
    /// Sends one request; (status, connection may be used again).
    async fn once(&self, t: &mut Tls, r: &[u8], buf: &mut Vec<u8>) -> std::io::Result<(u16, bool)> {
        let eof = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        t.write_all(r).await?;
        t.flush().await?;
        let mut len = 0;
        loop {
            if buf.len() - len < 4096 {
                buf.resize(buf.len() + 16384, 0);
            }
            let n = t.read(&mut buf[len..]).await?;
            if n == 0 {
                return Err(eof());
            }
            len += n;
            let Some(h) = buf[..len].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&buf[..h]).unwrap_or("").to_ascii_lowercase();
            let st: u16 = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
            let val = |n: &str| head.lines().find_map(|l| l.strip_prefix(n)).map(str::trim);
            let mut keep = val("connection:") != Some("close");
            if let Some(cl) = val("content-length:").and_then(|v| v.parse::<usize>().ok()) {
                while len < h + 4 + cl {
                    if buf.len() == len {
                        buf.resize(len + 16384, 0);
                    }
                    let n = t.read(&mut buf[len..]).await?;
                    if n == 0 {
                        return Err(eof());
                    }
                    len += n;
                }
            } else if val("transfer-encoding:") == Some("chunked") {
                while !buf[..len].ends_with(b"0\r\n\r\n") {
                    if buf.len() == len {
                        buf.resize(len + 16384, 0);
                    }
                    let n = t.read(&mut buf[len..]).await?;
                    if n == 0 {
                        return Err(eof());
                    }
                    len += n;
                }
            } else if st != 204 {
                keep = false;
            }
            return Ok((st, keep));
        }
    }
    fn note(&self, r: std::io::Result<u16>, tampered: bool, since: Instant) {
        if !self.measuring.get() {
            return;
        }
        let us = since.elapsed().as_micros().min(u32::MAX as u128) as u32;
        let mut t = self.tot.borrow_mut();
        t.n += 1;
        match r {
            Ok(s) => {
                t.last_status = s;
                let s = if s == self.refuse { 401 } else { s };
                match s {
                    200..=299 => t.ok += 1,
                    400..=499 => t.rej += 1,
                    _ => t.other += 1,
                }
                if tampered != (400..=499).contains(&s) || !(200..500).contains(&s) {
                    t.wrong += 1;
                }
                t.lat.push(us);
            }
            Err(e) => {
                t.errors += 1;
                t.first_err.get_or_insert(e.to_string());
            }
        }
    }
}

/// Paces an open loop: one due time every 1/rate s, from a timerfd (tokio's timer is too coarse).
async fn pacer(rate: f64, q: Rc<RefCell<VecDeque<Instant>>>, n: Rc<tokio::sync::Notify>, cx: Rc<Ctx>) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let step = Duration::from_secs_f64(1.0 / rate);
    #[allow(deprecated)]
    let fd = unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
        let ts = libc::timespec { tv_sec: step.as_secs() as _, tv_nsec: step.subsec_nanos() as _ };
        libc::timerfd_settime(fd, 0, &libc::itimerspec { it_interval: ts, it_value: ts }, std::ptr::null_mut());
        tokio::io::unix::AsyncFd::new(OwnedFd::from_raw_fd(fd)).unwrap()
    };
    let t0 = Instant::now();
    let mut i = 0u32;
    while !cx.stop.get() {
        let mut g = fd.readable().await.unwrap();
        let mut k = 0u64;
        if unsafe { libc::read(fd.get_ref().as_raw_fd(), &mut k as *mut u64 as *mut _, 8) } == 8 {
            for _ in 0..k {
                i += 1;
                q.borrow_mut().push_back(t0 + step * i);
                n.notify_one();
            }
        }
        g.clear_ready();
    }
}

fn main() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(tokio::task::LocalSet::new().run_until(real()));
}
async fn real() {
    let a: Vec<String> = std::env::args().collect();
    let mode = a.get(1).cloned().unwrap_or_default();
    let opt = |n: &str| a.iter().position(|x| x == n).and_then(|i| a.get(i + 1)).cloned();
    let num = |n: &str, d: f64| opt(n).map_or(d, |v| v.parse::<f64>().unwrap());
    let (size, conns, tamper) = (num("--size", 1024.0) as usize, num("--conns", 32.0) as usize, num("--tamper", 0.0) as u64);
    let (secs, warm, rate) = (num("--secs", 3.0), num("--warm", 0.5), num("--rate", 500.0));
    let count = opt("--count").map(|v| v.parse::<u64>().unwrap());
    let pid: Option<i32> = opt("--pid").map(|v| v.parse().unwrap());
    let path = opt("--path").unwrap_or("/hook".into());
    let secret = opt("--secret").unwrap_or("bench-secret".into());
    let newconn = mode == "newconn" || mode == "resume";
    let mut p = rustls::crypto::aws_lc_rs::default_provider();
    p.cipher_suites.retain(|c| c.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    // X25519 first; P-256 only for a peer that has no X25519 (it pays a HelloRetryRequest)
    p.kx_groups.retain(|g| [rustls::NamedGroup::X25519, rustls::NamedGroup::secp256r1].contains(&g.name()));
    p.kx_groups.sort_by_key(|g| g.name() != rustls::NamedGroup::X25519);
    let schemes = p.signature_verification_algorithms.supported_schemes();
    let mut cc = rustls::ClientConfig::builder_with_provider(Arc::new(p))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerify(schemes)))
        .with_no_client_auth();
    cc.resumption = rustls::client::Resumption::disabled();
    cc.alpn_protocols = vec![b"http/1.1".to_vec()];
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let cx = Rc::new(Ctx {
        tot: Default::default(),
        next_id: RefCell::new(seed),
        addr: opt("--addr").unwrap().parse().unwrap(),
        conn: Arc::new(cc),
        measuring: false.into(),
        stop: false.into(),
        fixed_ids: opt("--ids").as_deref() == Some("fixed"),
        refuse: num("--refuse", 401.0) as u16,
    });

    if mode == "idle" {
        let mut held = vec![];
        let mut out = vec![];
        let mut r = request(&path, size, &secret, false, false);
        let mut buf = vec![0; 16384];
        let (rss, pss) = mem(pid);
        out.push(format!("{{\"conns\":0,\"rss_kb\":{rss},\"pss_kb\":{pss}}}"));
        let mut errs = 0;
        for lvl in opt("--levels").unwrap_or("1000,5000".into()).split(',').map(|v| v.parse::<usize>().unwrap()) {
            while held.len() < lvl && errs < 100 {
                match cx.connect(&cx.conn.clone().into()).await {
                    Ok(mut t) => {
                        cx.stamp(&mut r);
                        match cx.once(&mut t, &r.buf, &mut buf).await {
                            Ok(_) => held.push(t),
                            Err(_) => errs += 1,
                        }
                    }
                    Err(_) => errs += 1,
                }
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            // how many are still open? a peer that closed them would look cheap
            let mut open = 0;
            for t in held.iter_mut() {
                if tokio::time::timeout(Duration::ZERO, t.read(&mut buf)).await.is_err() {
                    open += 1
                }
            }
            let (rss, pss) = mem(pid);
            out.push(format!("{{\"conns\":{},\"open\":{open},\"errors\":{errs},\"rss_kb\":{rss},\"pss_kb\":{pss}}}", held.len()));
        }
        println!("{{\"mode\":\"idle\",\"levels\":[{}]}}", out.join(","));
        return;
    }

    let q: Rc<RefCell<VecDeque<Instant>>> = Default::default();
    let nf = Rc::new(tokio::sync::Notify::new());
    if mode == "rate" {
        tokio::task::spawn_local(pacer(rate, q.clone(), nf.clone(), cx.clone()));
    }
    let issued = Rc::new(std::cell::Cell::new(0u64));
    let mut hs = vec![];
    for w in 0..conns {
        let (cx, q, nf, mode, path, secret, issued) = (cx.clone(), q.clone(), nf.clone(), mode.clone(), path.clone(), secret.clone(), issued.clone());
        hs.push(tokio::task::spawn_local(async move {
            let mut good = request(&path, size, &secret, false, newconn);
            let mut bad = request(&path, size, &secret, true, newconn);
            let mut buf = vec![0; 16384];
            let mut con: Option<Tls> = None;
            // each worker keeps its own tickets: rustls holds only 8 a server name
            let mut own = (*cx.conn).clone();
            if mode == "resume" {
                own.resumption = rustls::client::Resumption::in_memory_sessions(32);
            }
            let tls = TlsConnector::from(Arc::new(own));
            let mut turn = (w as u64).wrapping_mul(37) % 100;
            while !cx.stop.get() {
                if let Some(c) = count {
                    if issued.get() >= c {
                        break;
                    }
                    issued.set(issued.get() + 1);
                }
                let since = if mode == "rate" {
                    if con.is_none() {
                        con = cx.connect(&tls).await.ok();
                    }
                    loop {
                        if let Some(d) = q.borrow_mut().pop_front() {
                            break d;
                        }
                        nf.notified().await;
                        if cx.stop.get() {
                            return;
                        }
                    }
                } else {
                    Instant::now()
                };
                turn = (turn + 37) % 100;
                let t = turn < tamper;
                let r = if t { &mut bad } else { &mut good };
                cx.stamp(r);
                let res = async {
                    let mut c = match con.take() {
                        Some(c) => c,
                        None => cx.connect(&tls).await?,
                    };
                    let (st, keep) = cx.once(&mut c, &r.buf, &mut buf).await?;
                    if newconn {
                        let _ = c.shutdown().await;
                    } else if keep {
                        con = Some(c);
                    }
                    Ok(st)
                }
                .await;
                let failed = res.is_err();
                cx.note(res, t, since);
                if failed {
                    con = None;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }));
    }
    if count.is_none() {
        tokio::time::sleep(Duration::from_secs_f64(warm)).await;
    }
    cx.measuring.set(true);
    let me = std::process::id() as i32;
    let (c0, m0, t0) = (cpu(pid), cpu(Some(me)), Instant::now());
    if count.is_some() {
        for h in hs {
            let _ = h.await;
        }
    } else {
        tokio::time::sleep(Duration::from_secs_f64(secs)).await;
    }
    cx.measuring.set(false);
    let (c1, m1, wall) = (cpu(pid), cpu(Some(me)), t0.elapsed().as_secs_f64());
    let (rss, pss) = mem(pid);
    cx.stop.set(true);
    let mut t = cx.tot.take();
    t.lat.sort_unstable();
    let pc = |p: f64| if t.lat.is_empty() { 0 } else { t.lat[((t.lat.len() as f64 * p) as usize).min(t.lat.len() - 1)] };
    let (cf, ct) = ((c1.0 - c0.0) as f64 / 1e3, (c1.1 - c0.1) as f64 / 1e3);
    let n = t.n.max(1) as f64;
    println!(
        "{{\"mode\":\"{mode}\",\"n\":{},\"ok\":{},\"rejected\":{},\"other\":{},\"wrong\":{},\"errors\":{},\"handshakes\":{},\"resumed\":{},\"wall_s\":{wall:.3},\"rps\":{:.1},\"p50_us\":{},\"p90_us\":{},\"p99_us\":{},\"p999_us\":{},\"max_us\":{},\"cpu_us_per_req\":{:.2},\"cpu_tick_us_per_req\":{:.2},\"proxy_util\":{:.3},\"gen_util\":{:.3},\"rss_kb\":{rss},\"pss_kb\":{pss},\"last_status\":{},\"first_error\":{:?}}}",
        t.n,
        t.ok,
        t.rej,
        t.other,
        t.wrong,
        t.errors,
        t.handshakes,
        t.resumed,
        t.n as f64 / wall,
        pc(0.5),
        pc(0.9),
        pc(0.99),
        pc(0.999),
        pc(1.0),
        cf / n,
        ct / n,
        cf / 1e6 / wall,
        (m1.0 - m0.0) as f64 / 1e9 / wall,
        t.last_status,
        t.first_err.unwrap_or_default()
    );
    std::process::exit(0);
}
