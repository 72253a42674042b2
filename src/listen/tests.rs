//! Real sockets on port 0, small limits, and clients that nobody here wrote where there are some.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    event::CallBody,
    problem::Source,
    respond,
    section::{Inputs, Reader},
};

/// Longer than any limit under test: reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers by path; what else happens is told through the channel.
struct App {
    faults: mpsc::UnboundedSender<(Fault, String)>,
    refusals: mpsc::UnboundedSender<String>,
    /// `/wait` waits for this.
    gate: Notify,
    waiting: Notify,
    finished: AtomicUsize,
    /// What goes on without a request.
    afterwork: AtomicUsize,
}

fn text(status: u16, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a test's status");
    response
}

impl Serve for App {
    async fn call(self: Arc<Self>, call: Box<Call>) -> Response<Full<Bytes>> {
        let CallBody::Incoming(body) = call.body else { return text(500, "no body") };
        let peer = call.conn.peer.ip();
        match call.head.uri.path() {
            "/early" => text(413, "too large"),
            "/panic" => panic!("asked for"),
            "/wait" => {
                self.waiting.notify_one();
                self.gate.notified().await;
                self.finished.fetch_add(1, Ordering::SeqCst);
                text(200, "waited")
            }
            "/big" => text(200, vec![b'x'; 32 << 20]),
            "/who" => {
                let tls = call.conn.tls.as_ref();
                let name = tls.and_then(|tls| tls.server_name.clone()).unwrap_or_default();
                text(200, format!("{peer} {name} {} {:?}", tls.map_or(0, |tls| tls.client_chain.len()), call.head.version))
            }
            _ => match body.collect().await {
                Ok(body) => text(200, format!("{} bytes", body.to_bytes().len())),
                Err(_) => text(400, "cut"),
            },
        }
    }

    fn refuse(&self, call: Call, why: Reject) -> Response<Full<Bytes>> {
        let _ = self.refusals.send(why.to_string());
        respond::refusal(&why, call.id)
    }

    fn panicked(&self, _: EventId, _: &Conn) -> Response<Full<Bytes>> {
        text(500, "panicked")
    }

    fn afterwork(&self) -> usize {
        self.afterwork.load(Ordering::SeqCst)
    }

    fn fault(&self, _: SocketAddr, fault: Fault, detail: &str) {
        let _ = self.faults.send((fault, detail.to_owned()));
    }
}

struct Gate {
    running: Running,
    app: Arc<App>,
    faults: mpsc::UnboundedReceiver<(Fault, String)>,
    refusals: mpsc::UnboundedReceiver<String>,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

/// Settings from a policy's `[server]`, with its files.
fn settings(policy: &str, files: &[(&str, &[u8])]) -> Result<Settings, Vec<String>> {
    let reader = Reader::new(Source { name: "test.toml".into(), text: policy.into() }, Inputs::memory(&[], files));
    let table = reader.parse();
    let root = reader.root(&table);
    let settings = read(&root, Clock::system().now());
    root.finish();
    match settings {
        Some(settings) if !reader.failed() => Ok(settings),
        _ => Err(reader.problems().iter().map(ToString::to_string).collect()),
    }
}

fn start(policy: &str, files: &[(&str, &[u8])], context: Context<'_>) -> Gate {
    let policy = format!("listen = \"127.0.0.1:0\"\nworkers = 1\n{policy}");
    let settings = settings(&policy, files).expect("a sound policy");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = Listener::open(&settings, context, dir.path(), Clock::system()).expect("a free port");
    let (faults, faults_seen) = mpsc::unbounded_channel();
    let (refusals, refusals_seen) = mpsc::unbounded_channel();
    let app = Arc::new(App { faults, refusals, gate: Notify::new(), waiting: Notify::new(), finished: AtomicUsize::new(0), afterwork: AtomicUsize::new(0) });
    let running = listener.start(Arc::clone(&app)).expect("workers");
    let address = running.addresses()[0];
    Gate { running, app, faults: faults_seen, refusals: refusals_seen, address, dir }
}

fn plain(limits: &str) -> Gate {
    start(&format!("tls = false\n{limits}"), &[], Context::default())
}

impl Gate {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the gate listens")
    }

    async fn fault(&mut self) -> Fault {
        timeout(PATIENCE, self.faults.recv()).await.expect("a fault in time").expect("the gate runs").0
    }
}

/// Writes a request and reads until the end of the connection.
async fn exchange(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("the gate reads");
    to_end(stream).await
}

async fn to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the gate closes in time");
    // A gate that closes while bytes are under way may reset: what was read before counts.
    drop(read);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Writes a request and reads one answer with a known length.
async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("the gate reads");
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ").map(|n| n.parse::<usize>().expect("a length")));
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer in time").expect("an answer");
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
    }
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("")
}

const GET: &str = "GET /who HTTP/1.1\r\nHost: a\r\n\r\n";

// -- time limits --

#[tokio::test]
async fn slow_heads_are_cut() {
    let mut gate = plain("limits = { header_timeout = \"200ms\" }");
    let mut silent = gate.connect().await;
    assert_eq!(exchange(&mut silent, "GET / HT").await, "");
    assert_eq!(gate.fault().await, Fault::HeaderTimeout);
    // The head of a second request, too.
    let mut kept = gate.connect().await;
    assert_eq!(status(&ask(&mut kept, GET).await), "200");
    assert_eq!(exchange(&mut kept, "GET / HTTP/1.1\r\nHost:").await, "");
    assert_eq!(gate.fault().await, Fault::HeaderTimeout);
}

#[tokio::test]
async fn a_dripping_head_is_cut() {
    let mut gate = plain("limits = { header_timeout = \"200ms\" }");
    let stream = gate.connect().await;
    let (mut read, mut write) = stream.into_split();
    let drip = tokio::spawn(async move {
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(to_end(&mut read).await, "");
    assert_eq!(gate.fault().await, Fault::HeaderTimeout);
    drip.abort();
}

#[tokio::test]
async fn idle_connections_end_politely() {
    let gate = plain("limits = { idle_timeout = \"200ms\", header_timeout = \"10s\" }");
    let mut stream = gate.connect().await;
    for _ in 0..3 {
        assert_eq!(status(&ask(&mut stream, GET).await), "200");
    }
    assert_eq!(to_end(&mut stream).await, "");

    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(gate.connect().await)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(get("http://a/who")).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    timeout(PATIENCE, connection).await.expect("closed in time").expect("no panic").expect("closed politely, by GOAWAY");
    drop(gate);
}

#[tokio::test]
async fn handshakes_are_limited_in_time() {
    let mut gate = start("limits = { handshake_timeout = \"200ms\" }", &[], Context::default());
    let mut stream = gate.connect().await;
    assert_eq!(exchange(&mut stream, "\u{16}\u{3}\u{1}").await, "");
    assert_eq!(gate.fault().await, Fault::HandshakeTimeout);
    let mut stream = gate.connect().await;
    drop(exchange(&mut stream, "\u{16}nonsense that is no record").await);
    assert_eq!(gate.fault().await, Fault::HandshakeFailed);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_so() {
    let mut gate = start("", &[], Context::default());
    let answer = exchange(&mut gate.connect().await, GET).await;
    assert!(status(&answer) == "400" && answer.ends_with("This port speaks TLS: use https://\n"), "{answer}");
    assert_eq!(gate.fault().await, Fault::HandshakeFailed);
}

#[tokio::test]
async fn connections_that_end_are_given_back() {
    let gate = start("", &[], Context::default());
    let ca = std::fs::read_to_string(gate.running.control().ca_file().expect("self-signed")).expect("a CA");
    let config = Arc::new(client(&ca, None));
    let mut used = shake(&gate, &config, "localhost").await.expect("a handshake");
    assert_eq!(status(&ask(&mut used, GET).await), "200");
    let mut part = shake(&gate, &config, "localhost").await.expect("a handshake");
    part.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await.expect("the gate reads");
    let fresh = shake(&gate, &config, "localhost").await.expect("a handshake");
    let silent = gate.connect().await;
    drop((used, part, fresh, silent));
    let ended = timeout(PATIENCE, async {
        while gate.running.control().budget().connections() > 0 || gate.running.control().budget().requests() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    ended.await.expect("nothing is left");
}

#[tokio::test]
async fn answers_must_be_taken() {
    let mut gate = plain("limits = { idle_timeout = \"300ms\" }");
    let mut stream = gate.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gate reads");
    assert_eq!(gate.fault().await, Fault::AnswerNotTaken);

    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1000);
    let (mut sender, connection) = builder.handshake(TokioIo::new(gate.connect().await)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let unread = sender.send_request(get("http://a/big")).await.expect("a head");
    assert_eq!(gate.running.control().budget().requests(), 0, "an answer that is not taken holds no place among the requests");
    assert_eq!(gate.fault().await, Fault::AnswerNotTaken);
    drop((unread, connection.await));
}

// -- counts --

#[tokio::test]
async fn connections_are_counted() {
    let mut gate = plain("limits = { per_ip_connections = 2 }");
    let mut first = gate.connect().await;
    assert_eq!(status(&ask(&mut first, GET).await), "200");
    let mut second = gate.connect().await;
    assert_eq!(status(&ask(&mut second, GET).await), "200");
    assert_eq!(to_end(&mut gate.connect().await).await, "");
    assert_eq!(gate.fault().await, Fault::AddressLimit);
    assert_eq!(status(&ask(&mut first, GET).await), "200", "the others go on");

    let mut gate = plain("limits = { connections = 1 }");
    let mut first = gate.connect().await;
    assert_eq!(status(&ask(&mut first, GET).await), "200");
    assert_eq!(to_end(&mut gate.connect().await).await, "");
    assert_eq!(gate.fault().await, Fault::ConnectionLimit);
    drop(exchange(&mut first, "GET /who HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await);
    timeout(PATIENCE, async {
        while gate.running.control().budget().connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the place is given back");
    assert_eq!(status(&ask(&mut gate.connect().await, GET).await), "200");
}

#[tokio::test]
async fn requests_in_flight_are_counted() {
    let mut gate = plain("limits = { requests = 1 }");
    let mut first = gate.connect().await;
    first.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gate reads");
    gate.app.waiting.notified().await;
    let refused = ask(&mut gate.connect().await, GET).await;
    assert_eq!(status(&refused), "503");
    assert!(refused.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{refused}");
    assert!(gate.refusals.recv().await.expect("a refusal").starts_with("overloaded"));
    gate.app.gate.notify_one();
    assert!(ask(&mut first, "").await.contains("waited"));
    assert_eq!(status(&ask(&mut gate.connect().await, GET).await), "200");
}

#[test]
fn a_full_descriptor_table_does_not_spin() {
    // Another process, since the limit is the process's: the test binary itself, started again.
    const CHILD: &str = "HOOKLATCH_TEST_DESCRIPTORS";
    if std::env::var_os(CHILD).is_some() {
        return full_table();
    }
    let me = std::env::current_exe().expect("a test binary");
    let name = "listen::tests::a_full_descriptor_table_does_not_spin";
    let script = format!("ulimit -n 40 && exec '{}' --exact {name} --nocapture", me.display());
    let output = Command::new("sh").args(["-c", &script]).env(CHILD, "1").output().expect("a shell");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

fn full_table() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let gate = plain("");
        let mut first = gate.connect().await;
        assert_eq!(status(&ask(&mut first, GET).await), "200");
        let mut held = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            held.push(file);
        }
        held.pop();
        let mut waiting = gate.connect().await; // takes the last descriptor: accepting it fails
        let before = cpu_ticks();
        tokio::time::sleep(Duration::from_millis(1000)).await;
        let spent = cpu_ticks() - before;
        assert!(spent <= 20, "{spent} of 100 ticks spent on failing to accept");
        drop(held);
        assert_eq!(status(&ask(&mut waiting, GET).await), "200");
        assert_eq!(status(&ask(&mut first, GET).await), "200");
    });
}

/// This process's processor time in hundredths of a second, read without a new descriptor once the table is full... but for one.
fn cpu_ticks() -> u64 {
    let mut stat = String::new();
    let mut file = match std::fs::File::open("/proc/self/stat") {
        Ok(file) => file,
        Err(_) => return 0,
    };
    file.read_to_string(&mut stat).expect("readable");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_ascii_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

// -- HTTP --

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).expect("a request")
}

#[tokio::test]
async fn ambiguous_framing_is_refused_and_closed() {
    let mut gate = plain("");
    for (fields, want) in [
        ("", "bad_request: no Host"),
        ("Host: a\r\nHost: a\r\n", "bad_request: more than one Host"),
        ("Host: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n", "bad_request: both Content-Length and Transfer-Encoding"),
        ("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n", "bad_request: both Content-Length and Transfer-Encoding"),
        ("Host: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n", "bad_request: more than one Content-Length"),
        ("Host: a\r\nTransfer-Encoding: identity, chunked\r\n", "bad_request: a transfer coding other than chunked"),
        ("Host: a\nA: b\r\n", "bad_request: a line ends without a carriage return"),
    ] {
        let answer = exchange(&mut gate.connect().await, &format!("POST / HTTP/1.1\r\n{fields}\r\n0\r\n\r\n")).await;
        assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), ("400", 1), "{fields:?}: {answer}");
        assert_eq!(gate.refusals.recv().await.expect("a refusal"), want, "{fields:?}");
    }
    let answer = exchange(&mut gate.connect().await, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status(&answer), "400");
}

#[tokio::test]
async fn what_cannot_be_parsed_is_told() {
    let mut gate = plain("limits = { header_bytes = \"2KiB\" }");
    for (request, status_wanted, fault) in [
        ("nonsense\r\n\r\n".to_owned(), "400", Fault::BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n".to_owned(), "400", Fault::BadRequest),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), "400", Fault::BadRequest),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na".to_owned(), "400", Fault::BadRequest),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na".to_owned(), "400", Fault::BadRequest),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(3000)), "431", Fault::HeadersTooLarge),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(101)), "431", Fault::HeadersTooLarge),
    ] {
        let answer = exchange(&mut gate.connect().await, &request).await;
        assert_eq!(status(&answer), status_wanted, "{request:?}: {answer:?}");
        assert_eq!(gate.fault().await, fault, "{request:?}");
    }
}

#[tokio::test]
async fn an_early_answer_closes_only_an_unfinished_body() {
    let gate = plain("");
    let mut stream = gate.connect().await;
    let whole = ask(&mut stream, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(status(&whole) == "413" && !whole.to_ascii_lowercase().contains("connection: close"), "{whole}");
    let part = exchange(&mut stream, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\nabc").await;
    assert!(status(&part) == "413" && part.to_ascii_lowercase().contains("connection: close"), "{part}");
}

#[tokio::test]
async fn continue_is_sent_only_for_a_body_that_is_read() {
    let gate = plain("");
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    let refused = exchange(&mut gate.connect().await, &head("/early")).await;
    assert_eq!(status(&refused), "413");
    let mut stream = gate.connect().await;
    assert_eq!(ask(&mut stream, &head("/")).await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(ask(&mut stream, "abc").await.contains("3 bytes"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let gate = plain("");
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let last = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\na";
    let answers = exchange(&mut gate.connect().await, &format!("{chunked}{GET}{last}")).await;
    let found: Vec<&str> = ["2 bytes", "127.0.0.1", "1 bytes"].into_iter().filter(|text| answers.contains(text)).collect();
    assert_eq!((answers.matches("HTTP/1.1 200").count(), found.len()), (3, 3), "{answers}");
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_goes_on() {
    let gate = plain("");
    let mut stream = gate.connect().await;
    assert_eq!(status(&ask(&mut stream, "GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await), "500");
    assert_eq!(status(&ask(&mut stream, GET).await), "200");
    assert_eq!(gate.running.control().budget().requests(), 0);
}

#[tokio::test]
async fn a_hang_up_cancels_nothing() {
    let gate = plain("");
    // HTTP/1: reset, so that the connection's future ends before the answer.
    let stream = gate.connect().await;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    let mut stream = stream;
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gate reads");
    gate.app.waiting.notified().await;
    drop(stream);
    // HTTP/2: the connection closes.
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(gate.connect().await)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let answer = tokio::spawn(async move { sender.send_request(get("http://a/wait")).await });
    gate.app.waiting.notified().await;
    answer.abort();
    connection.abort();
    drop((connection.await, answer.await));
    let released = timeout(PATIENCE, async {
        while gate.app.finished.load(Ordering::SeqCst) < 2 || gate.running.control().budget().requests() > 0 {
            gate.app.gate.notify_waiters();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    released.await.expect("both deliveries finish");
}

#[tokio::test]
async fn a_half_closed_sender_is_answered() {
    let gate = plain("");
    let mut stream = gate.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await.expect("the gate reads");
    stream.shutdown().await.expect("a socket");
    assert!(to_end(&mut stream).await.contains("3 bytes"));
}

#[tokio::test]
async fn a_drain_answers_what_is_in_flight() {
    let gate = plain("drain_timeout = \"10s\"");
    let mut idle = gate.connect().await;
    assert_eq!(status(&ask(&mut idle, GET).await), "200");
    let mut busy = gate.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gate reads");
    gate.app.waiting.notified().await;
    let Gate { running, app, address, .. } = gate;
    let drained = tokio::spawn(running.drain(std::future::pending()));
    assert_eq!(to_end(&mut idle).await, "", "idle connections close at once");
    app.gate.notify_one();
    let answer = to_end(&mut busy).await;
    assert!(answer.contains("waited") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    timeout(PATIENCE, drained).await.expect("drained in time").expect("no panic");
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens");
}

#[tokio::test]
async fn a_drain_ends_in_time() {
    let gate = plain("drain_timeout = \"200ms\"");
    let mut stuck = gate.connect().await;
    stuck.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the gate reads");
    gate.app.waiting.notified().await;
    let left = timeout(PATIENCE, gate.running.drain(std::future::pending())).await.expect("drained in time");
    assert_eq!(left, 1, "says what it cut off");
}

#[tokio::test]
async fn a_drain_waits_for_deliveries_without_a_sender() {
    let gate = plain("drain_timeout = \"20s\"");
    gate.app.afterwork.store(1, Ordering::SeqCst);
    let Gate { running, app, .. } = gate;
    let mut drained = tokio::spawn(running.drain(std::future::pending()));
    assert!(timeout(Duration::from_millis(300), &mut drained).await.is_err(), "one is under way");
    app.afterwork.store(0, Ordering::SeqCst);
    assert_eq!(timeout(PATIENCE, drained).await.expect("drained in time").expect("no panic"), 0);
}

#[test]
fn python_and_curl_see_an_early_answer() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let body = dir.path().join("body");
    std::fs::write(&body, vec![b'x'; 10 << 20]).expect("written");
    for tls in [false, true] {
        let gate = if tls { start("", &[], Context::default()) } else { plain("") };
        let port = gate.address.port();
        let ca = gate.running.control().ca_file().unwrap_or_default();
        let (scheme, kind) = if tls { ("https", "HTTPSConnection") } else { ("http", "HTTPConnection") };
        let context = if tls { format!(", context=ssl.create_default_context(cafile='{}')", ca.display()) } else { String::new() };
        let script = format!(
            "import http.client, ssl\nfor _ in range(3):\n c = http.client.{kind}('localhost', {port}{context})\n c.request('POST', '/early', body=b'x' * (10 << 20))\n r = c.getresponse()\n print(r.status, r.read().decode())"
        );
        let mut python = Command::new("python3").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3");
        python.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("python reads");
        let seen = python.wait_with_output().expect("python ends");
        assert_eq!(String::from_utf8_lossy(&seen.stdout), "413 too large\n".repeat(3), "{}", String::from_utf8_lossy(&seen.stderr));
        let data = format!("@{}", body.display());
        for extra in [&["--http1.1"][..], &["--http1.1", "-H", "Expect:"], &["--http2"], &["--http1.1", "-H", "Expect:", "-H", "Transfer-Encoding: chunked"]] {
            let seen = Command::new("curl")
                .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
                .arg(&ca)
                .args(extra)
                .args(["--data-binary", &data, &format!("{scheme}://localhost:{port}/early")])
                .output()
                .expect("curl");
            assert_eq!(String::from_utf8_lossy(&seen.stdout), "413", "{extra:?}: {}", String::from_utf8_lossy(&seen.stderr));
        }
    }
}

// -- HTTP/2 floods --

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("a small frame").to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET http://a/wait`, so that nothing is answered before the flood: HPACK's static table, and `/wait` and `a` as literals.
const HEADERS: &[u8] = b"\x82\x86\x04\x05/wait\x41\x01a";
const DATA_FRAME: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const RESET_FRAME: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const CONTINUATION_FRAME: u8 = 9;

/// Sends `flood(n)` for n from 0 until the gate ends the connection, which it must do before ten thousand.
async fn flooded(opening: Vec<u8>, flood: impl Fn(u32) -> Vec<u8>) {
    let mut gate = plain("");
    let (mut read, mut write) = gate.connect().await.into_split();
    let reader = tokio::spawn(async move { to_end(&mut read).await });
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the gate reads");
    write.write_all(&[frame(SETTINGS_FRAME, 0, 0, b""), opening].concat()).await.expect("the gate reads");
    for n in 0..10_000 {
        if reader.is_finished() || write.write_all(&flood(n)).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.fault().await, Fault::Http2);
    reader.await.expect("the connection has ended");
}

#[tokio::test]
async fn rapid_resets_are_cut() {
    flooded(Vec::new(), |n| [frame(HEADERS_FRAME, 5, 2 * n + 1, HEADERS), frame(RESET_FRAME, 0, 2 * n + 1, &8u32.to_be_bytes())].concat()).await;
}

#[tokio::test]
async fn endless_headers_are_cut() {
    let piece = |n: u32| [&b"\0\x04"[..], format!("{n:04x}").as_bytes(), b"\x7f\x81\x07", &[b'v'; 1024]].concat();
    flooded(frame(HEADERS_FRAME, 0, 1, HEADERS), |n| frame(CONTINUATION_FRAME, 0, 1, &piece(n))).await;
}

#[tokio::test]
async fn empty_data_is_cut() {
    flooded(frame(HEADERS_FRAME, 4, 1, HEADERS), |_| frame(DATA_FRAME, 0, 1, b"")).await;
}

// -- PROXY protocol --

const LOOPBACK: &[IpNet] = &[IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8))];

fn behind_proxy(trusted: &[IpNet]) -> Gate {
    start(
        "tls = false\nproxy_protocol = true\nlimits = { handshake_timeout = \"300ms\", per_ip_connections = 1 }",
        &[],
        Context { trusted, ask_client_certs: false },
    )
}

#[tokio::test]
async fn proxy_headers_name_the_client() {
    let gate = behind_proxy(LOOPBACK);
    let mut first = gate.connect().await;
    let answer = ask(&mut first, &format!("PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n{GET}")).await;
    assert!(answer.contains("192.0.2.7 "), "{answer}");
    let mut second = gate.connect().await;
    second.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x08\xC6\x33\x64\x01\x12\x67\x01\xBB").await.expect("the gate reads");
    assert!(ask(&mut second, GET).await.contains("192.0.2.8 "));
    let mut local = gate.connect().await;
    assert!(ask(&mut local, &format!("PROXY UNKNOWN\r\n{GET}")).await.contains("127.0.0.1 "));
    // The limit counts clients, not the proxy.
    let mut third = gate.connect().await;
    assert_eq!(exchange(&mut third, &format!("PROXY TCP4 192.0.2.7 198.51.100.1 4712 443\r\n{GET}")).await, "");
}

#[tokio::test]
async fn proxy_headers_come_in_pieces() {
    let gate = behind_proxy(LOOPBACK);
    let mut stream = gate.connect().await;
    stream.set_nodelay(true).expect("a socket");
    for piece in ["PROXY TC", "P4 192.0.2.7 198.51.100.1 4711 44", "3\r", "\n"] {
        stream.write_all(piece.as_bytes()).await.expect("the gate reads");
        tokio::task::yield_now().await;
    }
    assert!(ask(&mut stream, GET).await.contains("192.0.2.7 "));
}

#[tokio::test]
async fn bad_proxy_headers_and_strangers_are_cut() {
    let mut gate = behind_proxy(LOOPBACK);
    for header in [GET, "PROXY TCP4 nonsense 1 2 3\r\n", "PROXY TCP4 192.0.2.7 198.51.100.1 1 443\n_____", &format!("PROXY {}\r\n", "x".repeat(200))] {
        assert_eq!(exchange(&mut gate.connect().await, header).await, "", "{header:?}");
        assert_eq!(gate.fault().await, Fault::ProxyHeader, "{header:?}");
    }
    assert_eq!(exchange(&mut gate.connect().await, "PROXY TCP4 192").await, "");
    assert_eq!(gate.fault().await, Fault::HandshakeTimeout);
    let mut gate = behind_proxy(&[]);
    assert_eq!(exchange(&mut gate.connect().await, &format!("PROXY UNKNOWN\r\n{GET}")).await, "");
    assert_eq!(gate.fault().await, Fault::ProxyUntrusted);
}

// -- TLS --

/// A CA and what it issued, as PEM.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    fn issue(&self, names: &[&str], days: i64) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        let now = time::OffsetDateTime::from_unix_timestamp(Clock::system().now().wall_ms / 1000).expect("a time");
        params.not_before = now - time::Duration::days(30);
        params.not_after = now + time::Duration::days(days);
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn client(&self, own: Option<(&str, &str)>) -> ClientConfig {
        client(&self.pem, own)
    }
}

fn client(ca: &str, own: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM")];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM")).expect("a client certificate")
        }
    }
}

async fn shake(gate: &Gate, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::clone(config)).connect(ServerName::try_from(name.to_owned()).expect("a name"), gate.connect().await).await
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_reloaded() {
    let ca = Authority::new();
    let (a, b, wild, next) = (ca.issue(&["a.example"], 90), ca.issue(&["b.example"], 90), ca.issue(&["*.c.example"], 90), ca.issue(&["b.example"], 60));
    let policy = "[tls]\ncert = \"a.pem\"\nkey = \"a.key\"\ncertificates = [{ cert = \"b.pem\", key = \"b.key\" }, { cert = \"c.pem\", key = \"c.key\" }]";
    let files = |b: &(String, String)| {
        [("a.pem", a.0.clone()), ("a.key", a.1.clone()), ("b.pem", b.0.clone()), ("b.key", b.1.clone()), ("c.pem", wild.0.clone()), ("c.key", wild.1.clone())]
    };
    let first = files(&b);
    let first: Vec<(&str, &[u8])> = first.iter().map(|(name, pem)| (*name, pem.as_bytes())).collect();
    let gate = start(policy, &first, Context::default());
    let leaf = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let config = Arc::new(ca.client(None));
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone().into_owned());
    for (name, pem) in [("a.example", &a.0), ("b.example", &b.0), ("B.example", &b.0), ("x.c.example", &wild.0)] {
        let stream = shake(&gate, &config, name).await.expect("a handshake");
        assert_eq!(shown(&stream), Some(leaf(pem)), "{name}");
    }
    assert!(shake(&gate, &config, "y.x.c.example").await.is_err(), "a wildcard stands for one label: the default certificate does not fit");
    assert_eq!(gate.running.control().expiries().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a.pem", "b.pem", "c.pem"]);

    let mut open = shake(&gate, &config, "a.example").await.expect("a handshake");
    let second = files(&next);
    let second: Vec<(&str, &[u8])> = second.iter().map(|(name, pem)| (*name, pem.as_bytes())).collect();
    let reloaded = settings(policy, &second).expect("a sound policy");
    gate.running.control().reload(&reloaded, Context::default()).expect("a reload");
    let stream = shake(&gate, &Arc::new(ca.client(None)), "b.example").await.expect("a handshake");
    assert_eq!(shown(&stream), Some(leaf(&next.0)));
    assert!(ask(&mut open, GET).await.contains("a.example"), "open connections go on");
}

#[tokio::test]
async fn sessions_resume_in_both_versions() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let gate = start("", &[], Context::default());
        let ca = std::fs::read_to_string(gate.running.control().ca_file().expect("self-signed")).expect("a CA");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("a version");
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut stream = shake(&gate, &config, "localhost").await.expect("a handshake");
            assert!(ask(&mut stream, GET).await.contains("localhost"), "reading the answer also reads the tickets");
            kinds.push(stream.get_ref().1.handshake_kind());
            // A reload with the same rules keeps the tickets good.
            gate.running.control().reload(&settings("", &[]).expect("sound"), Context::default()).expect("a reload");
        }
        assert_eq!(kinds[1], Some(rustls::HandshakeKind::Resumed), "{version:?}");
    }
}

#[tokio::test]
async fn alpn_chooses_the_protocol() {
    let gate = start("", &[], Context::default());
    let ca = std::fs::read_to_string(gate.running.control().ca_file().expect("self-signed")).expect("a CA");
    let mut config = client(&ca, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = shake(&gate, &Arc::new(config), "localhost").await.expect("a handshake");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let answer = sender.send_request(get("https://localhost/who")).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("localhost 0 HTTP/2.0"), "{body:?}");
    let big = Request::post("https://localhost/").body(Full::from(vec![0u8; 3 << 20])).expect("a request");
    let body = sender.send_request(big).await.expect("an answer").into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(&body[..], b"3145728 bytes");
    let early = Request::post("https://localhost/early").body(Full::from(vec![0u8; 3 << 20])).expect("a request");
    assert_eq!(sender.send_request(early).await.expect("an answer").status(), 413);
    assert_eq!(sender.send_request(get("https://localhost/who")).await.expect("an answer").status(), 200, "the connection goes on");
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_proven() {
    let (ca, other) = (Authority::new(), Authority::new());
    let (known, stranger) = (ca.issue(&["client"], 90), other.issue(&["client"], 90));
    let server = ca.issue(&["localhost"], 90);
    let files: &[(&str, &[u8])] = &[("s.pem", server.0.as_bytes()), ("s.key", server.1.as_bytes()), ("ca.pem", ca.pem.as_bytes())];
    let tls = "[tls]\ncert = \"s.pem\"\nkey = \"s.key\"";
    let asks = Context { ask_client_certs: true, ..Context::default() };
    for (policy, context, cert, want) in [
        (tls.to_owned(), Context::default(), Some(&known), Some("localhost 0 ")),
        (tls.to_owned(), asks, None, Some("localhost 0 ")),
        (tls.to_owned(), asks, Some(&stranger), Some("localhost 1 ")),
        (format!("{tls}\nclient_ca = \"ca.pem\""), Context::default(), None, Some("localhost 0 ")),
        (format!("{tls}\nclient_ca = \"ca.pem\""), Context::default(), Some(&known), Some("localhost 1 ")),
        (format!("{tls}\nclient_ca = \"ca.pem\""), Context::default(), Some(&stranger), None),
    ] {
        let gate = start(&policy, files, context);
        let config = Arc::new(ca.client(cert.map(|(cert, key)| (cert.as_str(), key.as_str()))));
        let mut stream = shake(&gate, &config, "localhost").await.expect("the client's side of the handshake");
        match want {
            Some(want) => assert!(ask(&mut stream, GET).await.contains(want), "{policy}"),
            None => {
                let _ = stream.write_all(GET.as_bytes()).await;
                assert_eq!(to_end(&mut stream).await, "", "{policy}");
            }
        }
    }
}

#[tokio::test]
async fn the_self_signed_certificate_is_kept() {
    let gate = start("", &[], Context::default());
    let tls = gate.dir.path().join("tls");
    let read = |name: &str| std::fs::read(tls.join(name)).expect("made");
    let mode = |name: &str| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(tls.join(name)).expect("made")) & 0o777;
    assert_eq!((mode("ca-key.pem"), mode("server-key.pem")), (0o600, 0o600));
    let (ca, leaf) = (read("ca.pem"), read("server.pem"));
    let now = Clock::system().now();
    SelfSigned::open(gate.dir.path(), now).expect("kept");
    assert_eq!((read("ca.pem"), read("server.pem")), (ca.clone(), leaf.clone()), "nothing changes");
    let later = Now { wall_ms: now.wall_ms + 380 * 86_400_000, ..now };
    let renewed = SelfSigned::open(gate.dir.path(), later).expect("renewed");
    assert!(!renewed.due(later));
    assert!(read("ca.pem") == ca && read("server.pem") != leaf, "a new leaf by the same CA");
    std::fs::write(tls.join("ca-key.pem"), "damaged").expect("written");
    std::fs::remove_file(tls.join("server.pem")).expect("removed");
    SelfSigned::open(gate.dir.path(), now).expect("made anew");
    assert_ne!(read("ca.pem"), ca, "a CA without its key is replaced");
}

// -- the policy --

fn problems(policy: &str, files: &[(&str, &[u8])], want: &[&str]) {
    assert_eq!(settings(policy, files).err().unwrap_or_default(), want, "{policy}");
}

#[test]
fn the_policy_is_read() {
    let read =
        settings("listen = [\"127.0.0.1:1\", \"[::1]:2\"]\ntls = false\nworkers = 3\n[limits]\nbody = \"1MiB\"\nidle_timeout = \"5s\"\nrequests = 7", &[])
            .expect("sound");
    assert_eq!((read.listen.len(), read.workers, read.tls.is_none()), (2, 3, true));
    assert_eq!(read.limits, Limits { body: 1 << 20, idle_timeout: Duration::from_secs(5), requests: 7, ..Limits::default() });
    let default = settings("", &[]).expect("sound");
    assert!(default.tls.is_some_and(|tls| tls.is_self_signed()), "TLS unless plain HTTP is asked for");
    problems("listen = \"8443\"", &[], &["listen: `8443` is not an address and a port (write it like \"0.0.0.0:8443\", \"127.0.0.1:8443\" or \"[::]:8443\")"]);
    problems("listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", &[], &["listen[1]: `127.0.0.1:1` stands twice (remove one)"]);
    problems(
        "limits = { idle_timeout = \"0s\" }",
        &[],
        &["limits.idle_timeout: `idle_timeout` is zero (a limit in time cannot be turned off: give a longer one)"],
    );
    problems("limits = { boddy = 1 }", &[], &["limits.boddy: unknown key `boddy` (did you mean `body`?)"]);
    problems("tls = true", &[], &["tls: `tls = true` does not say which certificate (name it in [server.tls], or leave `tls` out for a self-signed one)"]);
    problems("tls = { acme = {} }", &[], &["tls.acme: `acme` is not built yet: certificates by ACME (remove the key)"]);
}

#[test]
fn certificates_are_judged() {
    let ca = Authority::new();
    let (one, two, old) = (ca.issue(&["a"], 90), ca.issue(&["a"], 90), ca.issue(&["a"], -3));
    let policy = "tls = { cert = \"c.pem\", key = \"k.pem\" }";
    let with = |cert: &str, key: &str, want: &[&str]| problems(policy, &[("c.pem", cert.as_bytes()), ("k.pem", key.as_bytes())], want);
    with(&one.0, &one.1, &[]);
    let mismatch =
        "tls.key: k.pem is not the key of c.pem (name the key that the certificate was issued for; the server's own certificate comes first in its file)";
    with(&one.0, &two.1, &[mismatch]);
    with("x", &one.1, &["tls.cert: c.pem holds no certificate (give a PEM file with the certificate first and its intermediates after it)"]);
    with(&one.0, "x", &["tls.key: k.pem holds no private key (give an unencrypted PEM key: PKCS#8, PKCS#1 or SEC1)"]);
    problems(policy, &[("c.pem", b"")], &["tls.key: k.pem cannot be read: entity not found (paths are relative to the policy file)"]);
    problems("tls = {}", &[], &["tls.cert: [server.tls] names no certificate (set `cert` and `key`, or `self_signed = true` for development)"]);
    problems(
        "tls = { self_signed = true, client_ca = \"c.pem\" }",
        &[("c.pem", b"x")],
        &["tls.client_ca: c.pem is not a PEM file of CA certificates (give the CA that issued the clients' certificates)"],
    );
    // Expired: a warning, since a gate that does not start serves nobody.
    let reader =
        Reader::new(Source { name: "p".into(), text: policy.into() }, Inputs::memory(&[], &[("c.pem", old.0.as_bytes()), ("k.pem", old.1.as_bytes())]));
    let table = reader.parse();
    assert!(read(&reader.root(&table), Clock::system().now()).is_some());
    assert_eq!(reader.problems()[0].to_string(), "tls.cert: the certificate in c.pem expired 3 d ago (renew it: senders that check certificates refuse it)");
}
