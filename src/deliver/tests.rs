//! Deliveries over real sockets: receivers that answer, and receivers that misbehave.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Semaphore, mpsc},
};

use super::{Afterwork, Claim, Destination, Destinations, Failure, MOST, Phase, inspector, read, send};
use crate::{
    choose::Parcel,
    clock::Clock,
    event::{Chunks, Client, Event},
    observe::metrics::Metrics,
    outcome::{Answer, Ending},
    problem::Source,
    reject::{Reason, Reject},
    section::{Inputs, Reader},
    verify::Catalogue,
};

/// An event such as a GitHub route makes.
pub(crate) fn event(body: &str) -> Event {
    Event {
        route: "github-prod".into(),
        client: Client::new([192, 0, 2, 7].into()),
        host: Some("hooks.example.com:8443".to_owned()),
        ..Event::sample(body.to_owned())
    }
}

/// The destination of a `[destinations]` table.
fn open(policy: &str, files: &[(&str, &[u8])]) -> Arc<Destination> {
    let reader = Reader::new(Source { name: "p.toml".into(), text: policy.into() }, Inputs::memory(&[], files));
    let table = reader.parse();
    let settings = read("billing", reader.root(&table), &Catalogue::shipped());
    assert!(!reader.failed(), "{policy}: {:?}", reader.problems());
    let metrics = Metrics::with_clock("test", Clock::hand(0)).destination("billing");
    Destination::open(&settings.expect("no problems"), metrics, &Arc::default()).expect("opens")
}

fn open_url(url: &str) -> Arc<Destination> {
    open(&format!("url = \"{url}\""), &[])
}

/// A receiver at a port of its own: every connection is handed to `serve`, with its number from 0.
async fn receiver<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(serve(stream, number));
        }
    });
    address
}

/// Reads one HTTP/1.1 request with a Content-Length; `None` at the connection's end.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
            while bytes.len() < end + 4 + length {
                stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
            }
            return Some((head, bytes[end + 4..].to_vec()));
        }
        stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A receiver that answers every request with the same bytes, then keeps the connection.
async fn answering(bytes: &'static [u8]) -> SocketAddr {
    receiver(move |mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            if stream.write_all(bytes).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Records what hyper's own server makes of each request, over any stream.
async fn recording(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, seen: mpsc::UnboundedSender<(Request<()>, Bytes)>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let echo = body.len();
            let _ = seen.send((Request::from_parts(parts, ()), body));
            let answer = Response::builder().status(201).header("x-seen", "yes").header("server", "test").body(Full::new(Bytes::from(format!("{echo} bytes"))));
            Ok::<_, hyper::Error>(answer.expect("a good answer"))
        }
    });
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn recorder() -> (SocketAddr, mpsc::UnboundedReceiver<(Request<()>, Bytes)>) {
    let (seen, requests) = mpsc::unbounded_channel();
    let address = receiver(move |stream, _| recording(stream, seen.clone())).await;
    (address, requests)
}

async fn one(requests: &mut mpsc::UnboundedReceiver<(Request<()>, Bytes)>) -> (Request<()>, Bytes) {
    tokio::time::timeout(Duration::from_secs(10), requests.recv()).await.expect("in time").expect("a request")
}

#[tokio::test]
async fn the_event_arrives_rebuilt_and_the_answer_comes_back() {
    let (address, mut requests) = recorder().await;
    let destination = open_url(&format!("http://{address}/hooks?key=1"));
    let mut event = event("");
    event.body = Chunks::default();
    for piece in ["{\"a\":", "1", "}"] {
        event.body.push(Bytes::from_static(piece.as_bytes()));
    }
    event.rest = Some("tenant/7".to_owned());
    event.query = Some("x=%20y".to_owned());
    event.headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
    event.headers.insert("hooklatch-verified", HeaderValue::from_static("forged"));
    let answer = destination.send(&event, false, 1).await.expect("an answer");
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::CREATED, &b"7 bytes"[..]));
    assert_eq!(answer.headers["x-seen"], "yes");
    assert!(!answer.headers.contains_key("server") && !answer.headers.contains_key("content-length"));
    let (request, body) = one(&mut requests).await;
    assert_eq!(&body[..], b"{\"a\":1}");
    assert_eq!(request.uri(), "/hooks/tenant/7?key=1&x=%20y");
    assert_eq!(request.headers()["host"], address.to_string());
    assert_eq!(request.headers()["content-length"], "7");
    assert_eq!(request.headers()["hooklatch-verified"], "content");
    assert_eq!(request.headers()["hooklatch-event-id"], event.id.to_string());
    assert!(!request.headers().contains_key("transfer-encoding"));
}

#[tokio::test]
async fn path_and_host_are_kept_when_told_so() {
    let (address, mut requests) = recorder().await;
    let destination = open(&format!("url = \"http://user:pass@{address}\"\npath = \"keep\"\nhost = \"keep\"\nheaders = {{ X-Env = \"prod\" }}"), &[]);
    let mut event = event("");
    event.path = "/a//b%2F".to_owned();
    event.method = Method::PUT;
    destination.send(&event, false, 2).await.expect("an answer");
    let (request, _) = one(&mut requests).await;
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::PUT, "/a//b%2F"));
    for (name, value) in
        [("host", "hooks.example.com:8443"), ("authorization", "Basic dXNlcjpwYXNz"), ("x-env", "prod"), ("content-length", "0"), ("hooklatch-attempt", "2")]
    {
        assert_eq!(request.headers()[name], value, "{name}");
    }
}

/// What a receiver that answers with these bytes, and closes, means to the sender.
async fn check(bytes: &'static [u8], want: Result<(u16, &str), Reason>) {
    let address = receiver(move |mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.write_all(bytes).await;
    })
    .await;
    let destination = open(&format!("url = \"http://{address}/\"\ntimeout = \"5s\"\nmax_response = 64"), &[]);
    let got = destination.send(&event("{}"), false, 1).await;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    match (got, want) {
        (Ok(answer), Ok((status, body))) => assert_eq!((answer.status.as_u16(), &answer.body[..]), (status, body.as_bytes()), "{shown}"),
        (Err(failure), Err(reason)) => assert_eq!(failure.reason(), reason, "{shown}: {failure}"),
        (got, want) => panic!("{shown}: {got:?}, not {want:?}"),
    }
}

#[tokio::test]
async fn answers_are_judged() {
    check(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok((200, "ok"))).await;
    check(b"HTTP/1.1 204 No Content\r\n\r\n", Ok((204, ""))).await;
    check(b"HTTP/1.0 200 OK\r\n\r\nto the end", Ok((200, "to the end"))).await;
    check(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n3\r\n...\r\n0\r\nx-t: 1\r\n\r\n", Ok((200, "ok..."))).await;
    check(b"HTTP/1.1 422 No\r\ncontent-length: 3\r\n\r\nbad", Ok((422, "bad"))).await;
    check(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Ok((503, ""))).await;
    check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok((200, ""))).await;
    for redirect in [
        b"HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".as_slice(),
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
    ] {
        check(redirect, Err(Reason::UpstreamRedirect)).await;
    }
    for invalid in [
        b"SSH-2.0-OpenSSH_9.6\r\n".as_slice(),
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 65\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n0123456789012345678901234567890123456789012345678901234567890123456789",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200",
    ] {
        check(invalid, Err(Reason::UpstreamInvalid)).await;
    }
    check(b"", Err(Reason::UpstreamUnreachable)).await;
}

#[tokio::test]
async fn floods_before_the_answer_are_cut() {
    for flood in [b"HTTP/1.1 103 Early Hints\r\n\r\n".as_slice(), b"HTTP/1.1 100 Continue\r\nx: 0123456789\r\n\r\n", b"x-endless: header\r\n"] {
        let address = receiver(move |mut stream, _| async move {
            request(&mut stream).await;
            if flood.starts_with(b"x-") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            }
            while stream.write_all(flood).await.is_ok() {}
        })
        .await;
        let failure = open_url(&format!("http://{address}/")).send(&event("{}"), false, 1).await.expect_err("cut");
        assert_eq!(failure.reason(), Reason::UpstreamInvalid, "{failure}");
    }
}

/// The bound on what may come before an answer counts no body.
#[tokio::test]
async fn large_answers_right_behind_their_head_are_taken() {
    const SIZE: usize = 900_000;
    let address = receiver(|mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            let mut answer = format!("HTTP/1.1 200 OK\r\nx-pad: {}\r\ncontent-length: {SIZE}\r\n\r\n", "p".repeat(60_000)).into_bytes();
            answer.resize(answer.len() + SIZE, b'x');
            let (start, rest) = answer.split_at(100);
            let _ = stream.write_all(start).await;
            tokio::task::yield_now().await;
            let _ = stream.write_all(rest).await;
        }
    })
    .await;
    let destination = open_url(&format!("http://{address}/"));
    for _ in 0..5 {
        assert_eq!(destination.send(&event("{}"), false, 1).await.expect("an answer").body.len(), SIZE);
    }
    let address = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nx-pad: {}\r\n\r\n", "p".repeat(70_000)).as_bytes()).await;
    })
    .await;
    let failure = open_url(&format!("http://{address}/")).send(&event("{}"), false, 1).await.expect_err("too large a head");
    assert_eq!(failure.reason(), Reason::UpstreamInvalid, "{failure}");
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let address = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
    })
    .await;
    let failure = open_url(&format!("http://{address}/")).send(&event("{}"), false, 1).await.expect_err("cut");
    assert_eq!(failure.reason(), Reason::UpstreamInvalid);
    assert!(failure.to_string().contains("max_response"), "{failure}");
}

#[tokio::test]
async fn the_timeout_holds_from_connect_to_the_last_byte() {
    let silent = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let half = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await;
        std::future::pending::<()>().await;
    })
    .await;
    let drip = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for (address, phase) in [(silent, Phase::Waiting), (half, Phase::Waiting), (drip, Phase::Reading)] {
        let destination = open(&format!("url = \"http://{address}/\"\ntimeout = \"1s\""), &[]);
        let failure = destination.send(&event("{}"), false, 1).await.expect_err("too slow");
        assert_eq!(failure, Failure::TimedOut { after: Duration::from_secs(1), phase });
        assert_eq!(failure.reason(), Reason::UpstreamTimeout);
    }
    // A receiver that never takes the body either.
    let deaf = receiver(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let destination = open(&format!("url = \"http://{deaf}/\"\ntimeout = \"300ms\""), &[]);
    let failure = destination.send(&event(&"x".repeat(16 << 20)), false, 1).await.expect_err("too slow");
    assert_eq!(failure.reason(), Reason::UpstreamTimeout);
}

#[tokio::test]
async fn who_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let closed = listener.local_addr().expect("bound");
    drop(listener);
    for url in [format!("http://{closed}/"), "http://nowhere.invalid/".to_owned(), "unix:/nonexistent/app.sock".to_owned()] {
        let failure = open_url(&url).send(&event("{}"), false, 1).await.expect_err("nobody");
        assert!(matches!(failure, Failure::Unreachable { sent: false, .. }), "{url}: {failure}");
    }
    let reset = receiver(|mut stream, _| async move {
        request(&mut stream).await;
        let _ = stream.set_zero_linger();
    })
    .await;
    let failure = open_url(&format!("http://{reset}/")).send(&event("{}"), false, 1).await.expect_err("reset");
    assert!(matches!(failure, Failure::Unreachable { sent: true, .. }), "{failure}");
}

#[tokio::test]
async fn connections_are_kept_and_closed_when_unused() {
    let connections = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(Semaphore::new(0));
    let (counted, end) = (Arc::clone(&connections), Arc::clone(&ended));
    let address = receiver(move |mut stream, _| {
        counted.fetch_add(1, SeqCst);
        let end = Arc::clone(&end);
        async move {
            while request(&mut stream).await.is_some() {
                let _ = stream.write_all(OK).await;
            }
            end.add_permits(1);
        }
    })
    .await;
    let destination = open(&format!("url = \"http://{address}/\"\nidle_timeout = \"2s\""), &[]);
    for _ in 0..20 {
        destination.send(&event("{}"), false, 1).await.expect("an answer");
    }
    assert_eq!(connections.load(SeqCst), 1);
    let _ = tokio::time::timeout(Duration::from_secs(10), ended.acquire()).await.expect("closed when unused for too long");
    destination.send(&event("{}"), false, 1).await.expect("an answer on a new one");
    drop(destination);
    let _ = tokio::time::timeout(Duration::from_secs(10), ended.acquire_many(2)).await.expect("closed with its destination");
}

#[tokio::test]
async fn a_receiver_that_closes_idle_connections_at_once_loses_nothing() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let address = receiver(move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            request(&mut stream).await;
            count.fetch_add(1, SeqCst);
            let _ = stream.write_all(OK).await;
        }
    })
    .await;
    let destination = open_url(&format!("http://{address}/"));
    for _ in 0..150 {
        assert_eq!(destination.send(&event("{}"), false, 1).await.expect("an answer").status, 200);
    }
    assert_eq!(served.load(SeqCst), 150);
}

/// Answers the first request of a connection, reads the second and closes without a byte.
async fn closing_on_the_second(served: Arc<AtomicUsize>) -> SocketAddr {
    receiver(move |mut stream, _| {
        let served = Arc::clone(&served);
        async move {
            request(&mut stream).await;
            served.fetch_add(1, SeqCst);
            let _ = stream.write_all(OK).await;
            request(&mut stream).await;
            served.fetch_add(1, SeqCst);
        }
    })
    .await
}

#[tokio::test]
async fn a_stale_connection_is_repeated_once_unless_told_otherwise() {
    let served = Arc::new(AtomicUsize::new(0));
    let address = closing_on_the_second(Arc::clone(&served)).await;
    let destination = open_url(&format!("http://{address}/"));
    for _ in 0..10 {
        destination.send(&event("{}"), false, 1).await.expect("repeated");
    }
    assert_eq!(served.load(SeqCst), 19, "every request but the first came twice, on the old connection and a new one");
    let destination = open(&format!("url = \"http://{address}/\"\nrepeat = false"), &[]);
    destination.send(&event("{}"), false, 1).await.expect("a fresh connection");
    let failure = destination.send(&event("{}"), false, 1).await.expect_err("not repeated");
    assert!(matches!(failure, Failure::Unreachable { sent: true, .. }), "{failure}");
}

#[tokio::test]
async fn a_request_is_never_repeated_once_an_answer_began() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let address = receiver(move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            request(&mut stream).await;
            let _ = stream.write_all(OK).await;
            request(&mut stream).await;
            count.fetch_add(1, SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 O").await;
        }
    })
    .await;
    let destination = open_url(&format!("http://{address}/"));
    destination.send(&event("{}"), false, 1).await.expect("an answer");
    let failure = destination.send(&event("{}"), false, 1).await.expect_err("cut off");
    assert_eq!((failure.reason(), served.load(SeqCst)), (Reason::UpstreamInvalid, 1));
}

#[tokio::test]
async fn a_second_answer_is_nobodys() {
    let address = receiver(|mut stream, _| async move {
        while let Some((_, body)) = request(&mut stream).await {
            let body = String::from_utf8_lossy(&body).into_owned();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(format!("{answer}HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ncrossed").as_bytes()).await;
        }
    })
    .await;
    let destination = open_url(&format!("http://{address}/"));
    for n in 0..50 {
        let body = format!("request {n}");
        assert_eq!(destination.send(&event(&body), false, 1).await.expect("an answer").body, body);
    }
}

#[tokio::test]
async fn an_answer_before_the_request_is_over_is_taken() {
    let address = receiver(|mut stream, _| async move {
        let mut start = [0; 1024];
        let _ = stream.read(&mut start).await;
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await;
        std::future::pending::<()>().await;
    })
    .await;
    let destination = open(&format!("url = \"http://{address}/\"\ntimeout = \"5s\""), &[]);
    for _ in 0..3 {
        assert_eq!(destination.send(&event(&"x".repeat(16 << 20)), false, 1).await.expect("an answer").status, 413);
    }
}

#[tokio::test]
async fn unix_sockets_and_prior_knowledge_http2() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let (seen, mut requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(recording(stream, seen.clone()));
        }
    });
    let url = format!("unix:{}:/hooks", path.display());
    let destination = open_url(&url);
    assert_eq!(destination.send(&event("{}"), false, 1).await.expect("an answer").status, 201);
    let (request, _) = one(&mut requests).await;
    assert_eq!((request.version(), request.uri().path(), request.headers()["host"].as_bytes()), (http::Version::HTTP_11, "/hooks", &b"localhost"[..]));

    let destination = open(&format!("url = \"{url}\"\nhttp2 = true\nhost = \"keep\""), &[]);
    let event = event("{}");
    for attempt in 1..=3 {
        assert_eq!(destination.send(&event, false, attempt).await.expect("an answer").status, 201);
        let (request, body) = one(&mut requests).await;
        assert_eq!((request.version(), &body[..]), (http::Version::HTTP_2, &b"{}"[..]));
        assert_eq!(request.uri().authority().map(http::uri::Authority::as_str), Some("hooks.example.com:8443"));
        assert!(!request.headers().contains_key("host"));
    }
}

#[tokio::test]
async fn an_http2_connection_that_goes_away_loses_nothing() {
    let (seen, mut requests) = mpsc::unbounded_channel();
    let open_now: Arc<Mutex<Vec<tokio::task::AbortHandle>>> = Arc::default();
    let held = Arc::clone(&open_now);
    let address = receiver(move |stream, _| {
        let served = tokio::spawn(recording(stream, seen.clone()));
        held.lock().expect("whole").push(served.abort_handle());
        async {}
    })
    .await;
    let destination = open(&format!("url = \"http://{address}/\"\nhttp2 = true"), &[]);
    for round in 1..=10 {
        assert_eq!(destination.send(&event("{}"), false, 1).await.expect("an answer").status, 201);
        one(&mut requests).await;
        assert!(open_now.lock().expect("whole").len() <= round);
        // The process behind it ends.
        open_now.lock().expect("whole").iter().for_each(tokio::task::AbortHandle::abort);
    }
}

#[tokio::test]
async fn a_receiver_that_falls_takes_no_request_with_it() {
    // Three receivers, kept connections to all of them; one ends between two requests.
    let mut addresses = Vec::new();
    let mut running = Vec::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        addresses.push(listener.local_addr().expect("bound"));
        running.push(tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                served.spawn(async move {
                    while request(&mut stream).await.is_some() {
                        let _ = stream.write_all(OK).await;
                    }
                });
            }
        }));
    }
    let urls: Vec<String> = addresses.iter().map(|address| format!("\"http://{address}/\"")).collect();
    let destination = open(&format!("urls = [{}]", urls.join(", ")), &[]);
    for n in 0..90 {
        if n == 30 {
            running[1].abort();
        }
        assert_eq!(destination.send(&event("{}"), false, 1).await.expect("somebody answers").status, 200, "request {n}");
    }
}

struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

fn ca() -> Ca {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("signed").pem();
    Ca { issuer: rcgen::Issuer::new(params, key), pem }
}

impl Ca {
    fn leaf(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("signed"), key)
    }
}

#[tokio::test]
async fn tls_with_an_own_ca_and_a_client_certificate() {
    let (server_ca, client_ca) = (ca(), ca());
    let (leaf, key) = server_ca.leaf("127.0.0.1");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let client_root = <rustls_pki_types::CertificateDer<'static> as rustls_pki_types::pem::PemObject>::from_pem_slice(client_ca.pem.as_bytes());
    roots.add(client_root.expect("PEM")).expect("a root");
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().expect("a verifier");
    let config = |alpn: &[&[u8]]| {
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().expect("versions");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_client_cert_verifier(verifier.clone()).with_single_cert(vec![leaf.der().clone()], key).expect("a pair");
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    };
    let (client, client_key) = client_ca.leaf("gate.internal");
    let (client, client_key) = (client.pem(), client_key.serialize_pem());
    let files: [(&str, &[u8]); 3] = [("ca.pem", server_ca.pem.as_bytes()), ("me.pem", client.as_bytes()), ("me.key", client_key.as_bytes())];
    for (alpn, version) in [(&[b"h2".as_slice(), b"http/1.1"][..], http::Version::HTTP_2), (&[b"http/1.1".as_slice()][..], http::Version::HTTP_11)] {
        let acceptor = config(alpn);
        let (seen, mut requests) = mpsc::unbounded_channel();
        let address = receiver(move |stream, _| {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    recording(stream, seen).await;
                }
            }
        })
        .await;
        let url = format!("url = \"https://{address}/hooks\"");
        let destination = open(&format!("{url}\ntls = {{ ca = \"ca.pem\", cert = \"me.pem\", key = \"me.key\" }}"), &files);
        for _ in 0..2 {
            assert_eq!(destination.send(&event("{}"), false, 1).await.expect("an answer").status, 201);
            let (request, _) = one(&mut requests).await;
            assert_eq!((request.version(), request.uri().path()), (version, "/hooks"));
        }
        // Without the certificate, or with roots that do not know the receiver: nothing is sent.
        for tls in ["tls = { ca = \"ca.pem\" }", "tls = { ca = \"me.pem\", cert = \"me.pem\", key = \"me.key\" }"] {
            let failure = open(&format!("{url}\n{tls}"), &files).send(&event("{}"), false, 1).await.expect_err("not trusted");
            assert_eq!(failure.reason(), Reason::UpstreamUnreachable, "{failure}");
        }
        assert!(requests.try_recv().is_err());
    }
}

#[tokio::test]
async fn one_of_three_down_fails_no_request() {
    let (first, second) = (answering(OK).await, answering(OK).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dead = listener.local_addr().expect("bound");
    drop(listener);
    let destination = open(&format!("urls = [\"http://{dead}/\", \"http://{first}/\", \"http://{second}/\"]"), &[]);
    for _ in 0..100 {
        assert_eq!(destination.send(&event("{}"), false, 1).await.expect("somebody answers").status, 200);
    }
    let destination = open(&format!("urls = [\"http://{dead}/\", \"http://{dead}/other\"]"), &[]);
    let failure = destination.send(&event("{}"), false, 1).await.expect_err("nobody answers");
    assert_eq!(failure.reason(), Reason::UpstreamUnreachable);
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_one_request() {
    let (first, second) = (answering(OK).await, answering(OK).await);
    let silent = receiver(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let destination = open(&format!("urls = [\"http://{silent}/\", \"http://{first}/\", \"http://{second}/\"]\ntimeout = \"3s\""), &[]);
    let mut failures = Vec::new();
    for _ in 0..40 {
        failures.extend(destination.send(&event("{}"), false, 1).await.err());
    }
    assert_eq!(failures, [Failure::TimedOut { after: Duration::from_secs(3), phase: Phase::Waiting }]);
}

#[tokio::test]
async fn concurrency_is_a_limit() {
    let gate = Arc::new(Semaphore::new(0));
    let most = Arc::new(Mutex::new((0, 0)));
    let (open_gate, counts) = (Arc::clone(&gate), Arc::clone(&most));
    let address = receiver(move |mut stream, _| {
        let (gate, counts) = (Arc::clone(&open_gate), Arc::clone(&counts));
        async move {
            while request(&mut stream).await.is_some() {
                {
                    let mut counts = counts.lock().expect("whole");
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                }
                let permit = gate.acquire().await;
                counts.lock().expect("whole").0 -= 1;
                drop(permit);
                let _ = stream.write_all(OK).await;
            }
        }
    })
    .await;
    let destination = open(&format!("url = \"http://{address}/\"\nconcurrency = 2\ntimeout = \"10s\""), &[]);
    let sends: Vec<_> = (0..8)
        .map(|_| {
            let destination = Arc::clone(&destination);
            tokio::spawn(async move { destination.send(&event("{}"), false, 1).await })
        })
        .collect();
    gate.add_permits(1);
    for sent in sends {
        sent.await.expect("no panic").expect("an answer");
    }
    assert!(most.lock().expect("whole").1 <= 2);
    let busy = open("url = \"http://127.0.0.1:9/\"\nconcurrency = 1\ntimeout = \"50ms\"", &[]);
    let _held = busy.slots.as_ref().expect("a limit").acquire().await;
    assert_eq!(busy.send(&event("{}"), false, 1).await.expect_err("busy").reason(), Reason::Overloaded);
}

/// A claim that writes down what happens to it.
struct Written {
    log: mpsc::UnboundedSender<String>,
    done_before: &'static [&'static str],
    ended: bool,
}

impl Claim for Written {
    fn attempt(&self) -> u16 {
        if self.done_before.is_empty() { 1 } else { 2 }
    }

    fn branch_done(&self, name: &str) -> bool {
        self.done_before.contains(&name)
    }

    fn record_branch(&self, name: &str, ok: bool) {
        let _ = self.log.send(format!("{name} {ok}"));
    }

    async fn done(mut self, answer: &Answer) -> Result<(), Reject> {
        self.ended = true;
        let _ = self.log.send(format!("done {}", answer.status.as_u16()));
        Ok(())
    }

    async fn failed(mut self) {
        self.ended = true;
        let _ = self.log.send("failed".to_owned());
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.log.send("dropped".to_owned());
        }
    }
}

fn written(done_before: &'static [&'static str]) -> (Written, mpsc::UnboundedReceiver<String>) {
    let (log, lines) = mpsc::unbounded_channel();
    (Written { log, done_before, ended: false }, lines)
}

fn parcel(to: &str, required: bool) -> Parcel {
    Parcel { branch: 0, to: to.into(), required, strip_credentials: false }
}

fn acknowledge() -> Answer {
    Answer { status: StatusCode::ACCEPTED, headers: HeaderMap::new(), body: Bytes::new() }
}

/// `a` and `b` at these addresses.
fn destinations(addresses: &[(&str, SocketAddr)]) -> Destinations {
    let metrics = Metrics::with_clock("test", Clock::hand(0));
    let opened = addresses.iter().map(|(name, address)| {
        let text = format!("url = \"http://{address}/\"\ntimeout = \"5s\"");
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.clone() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let settings = read(name, reader.root(&table), &Catalogue::shipped()).expect("good");
        Destination::open(&settings, metrics.destination(name), &Arc::default()).expect("opens")
    });
    opened.collect()
}

/// All lines up to the claim's end.
async fn lines(log: &mut mpsc::UnboundedReceiver<String>) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = tokio::time::timeout(Duration::from_secs(10), log.recv()).await.expect("in time").expect("a claim ends");
        let last = line.starts_with("done") || line == "failed" || line == "dropped";
        lines.push(line);
        if last {
            lines.sort();
            return lines;
        }
    }
}

#[tokio::test]
async fn the_required_branch_answers_and_ends_the_claim() {
    let good = answering(OK).await;
    let bad = answering(b"HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbad").await;
    let moved = answering(b"HTTP/1.1 302 No\r\ncontent-length: 0\r\n\r\n").await;
    let afterwork = Afterwork::default();
    let run = |required: SocketAddr, other: SocketAddr, done_before: &'static [&'static str]| {
        let afterwork = afterwork.clone();
        async move {
            let destinations = destinations(&[("a", required), ("b", other)]);
            let (claim, mut log) = written(done_before);
            let got =
                send(vec![parcel("b", false), parcel("a", true)], &destinations, Arc::new(event("{}")), claim, acknowledge, &afterwork, &mut Vec::new()).await;
            let got = match got {
                Ok(outcome) => format!("{} {}", outcome.ending.code(), outcome.answer.status.as_u16()),
                Err(reject) => reject.reason.code().to_owned(),
            };
            (got, lines(&mut log).await)
        }
    };
    let (got, log) = run(good, bad, &[]).await;
    assert_eq!(got, "forwarded 200");
    assert!(log.contains(&"a true".to_owned()) && log.contains(&"done 200".to_owned()), "{log:?}");
    assert_eq!(run(bad, good, &[]).await, ("forwarded 500".to_owned(), vec!["a false".to_owned(), "b true".to_owned(), "failed".to_owned()]));
    assert_eq!(run(moved, bad, &[]).await, ("upstream_redirect".to_owned(), vec!["a false".to_owned(), "b false".to_owned(), "failed".to_owned()]));
    assert_eq!(run(bad, good, &["b"]).await, ("forwarded 500".to_owned(), vec!["a false".to_owned(), "failed".to_owned()]), "what is done is not done again");
    afterwork.finished().await;
}

#[tokio::test]
async fn without_a_required_branch_the_sender_is_acknowledged_at_once() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let slow = receiver(move |mut stream, _| {
        let gate = Arc::clone(&held);
        async move {
            request(&mut stream).await;
            let _permit = gate.acquire().await;
            let _ = stream.write_all(OK).await;
        }
    })
    .await;
    let afterwork = Afterwork::default();
    let (claim, mut log) = written(&[]);
    let outcome = send(vec![parcel("a", false)], &destinations(&[("a", slow)]), Arc::new(event("{}")), claim, acknowledge, &afterwork, &mut Vec::new()).await;
    let outcome = outcome.expect("acknowledged");
    assert_eq!((outcome.ending, outcome.answer.status), (Ending::Forwarded, StatusCode::ACCEPTED));
    assert_eq!(lines(&mut log).await, ["done 202"]);
    assert_eq!(afterwork.len(), 1);
    gate.add_permits(1);
    tokio::time::timeout(Duration::from_secs(10), afterwork.finished()).await.expect("ends with its deliveries");
}

#[tokio::test]
async fn waiting_for_a_place_counts_to_the_timeout() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("silent");
    let _silent = UnixListener::bind(&path).expect("a socket");
    let destination = open(&format!("url = \"unix:{}\"\ntimeout = \"600ms\"\nconcurrency = 1", path.display()), &[]);
    let slots = destination.slots.as_ref().expect("a limit");
    let held = slots.acquire().await.expect("one place");
    let freed = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        drop(held);
    };
    let event = event("{}");
    // Timers end in their order: that of a wait which begins anew with the place comes after the one here.
    tokio::select! {
        biased;
        (ended, ()) = async { tokio::join!(destination.send(&event, false, 1), freed) } => assert!(matches!(ended, Err(Failure::TimedOut { .. })), "{ended:?}"),
        () = tokio::time::sleep(Duration::from_millis(900)) => panic!("the wait for the place came on top"),
    }
}

/// A slow receiver that no sender waits for must not take all memory and descriptors.
#[tokio::test]
async fn deliveries_without_a_sender_are_bounded() {
    let good = answering(OK).await;
    let destinations = destinations(&[("a", good), ("b", good)]);
    let afterwork = Afterwork::default();
    (0..MOST).for_each(|_| afterwork.spawn(std::future::pending()));
    let mut branches = Vec::new();
    let (claim, mut log) = written(&[]);
    let parcels = vec![parcel("b", false), parcel("a", true)];
    let got = send(parcels, &destinations, Arc::new(event("{}")), claim, acknowledge, &afterwork, &mut branches).await;
    assert_eq!(got.expect("the required branch is another's work").answer.status, StatusCode::OK);
    assert_eq!(lines(&mut log).await, ["a true", "b false", "done 200"]);
    assert_eq!(branches.iter().map(|branch| (&*branch.to, branch.result)).collect::<Vec<_>>(), [("b", "busy"), ("a", "ok")]);
    let (claim, mut log) = written(&[]);
    let got = send(vec![parcel("b", false)], &destinations, Arc::new(event("{}")), claim, acknowledge, &afterwork, &mut Vec::new()).await;
    assert_eq!(got.expect_err("nobody would get it").reason, Reason::Overloaded);
    assert_eq!(lines(&mut log).await, ["b false", "failed"]);
}

/// That a sender's hang-up drops no delivery is tested in `listen` and in `tests/it/replay.rs`.
#[tokio::test]
async fn a_dropped_delivery_fails_the_claim() {
    let arrived = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&arrived);
    let silent = receiver(move |mut stream, _| {
        let tell = Arc::clone(&tell);
        async move {
            request(&mut stream).await;
            tell.add_permits(1);
            std::future::pending::<()>().await;
        }
    })
    .await;
    let (claim, mut log) = written(&[]);
    let (destinations, afterwork) = (destinations(&[("a", silent)]), Afterwork::default());
    let mut branches = Vec::new();
    tokio::select! {
        _ = send(vec![parcel("a", true)], &destinations, Arc::new(event("{}")), claim, acknowledge, &afterwork, &mut branches) => panic!("nobody answers"),
        _ = arrived.acquire() => {}
    }
    assert_eq!(lines(&mut log).await, ["dropped"]);
}

#[tokio::test]
async fn the_inspector_is_a_destination() {
    let reader = Reader::new(Source { name: "p.toml".into(), text: "url = \"builtin:inspector\"".into() }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    let settings = read("seen", reader.root(&table), &Catalogue::shipped()).expect("good");
    let store: Arc<inspector::Store> = Arc::default();
    let destination = Destination::open(&settings, Metrics::with_clock("test", Clock::hand(0)).destination("seen"), &store).expect("opens");
    assert_eq!(destination.send(&event("{}"), false, 1).await.expect("always").status, 200);
    assert_eq!(store.list(0).len(), 1);
}

/// Signed as the receiver wants it, over what is sent; the sender's own signature is gone, and an event that nobody proved is not sent.
#[tokio::test]
async fn events_are_signed_for_the_receiver() {
    let (seen_tx, mut seen) = mpsc::unbounded_channel();
    let address = receiver(move |stream, _| recording(stream, seen_tx.clone())).await;
    for http2 in [false, true] {
        let policy = format!(
            "url = \"http://{address}/hooks?x=1\"\nhttp2 = {http2}\nheaders = {{ X-Square-HmacSha256-Signature = \"own\" }}\n\
             sign = {{ provider = \"square\", secret = \"literal:a secret of some length\" }}"
        );
        let destination = open(&policy, &[]);
        let mut event = event("{\"a\":1}");
        event.headers.insert("x-hub-signature", HeaderValue::from_static("sha1=00"));
        event.headers.append("x-square-hmacsha256-signature", HeaderValue::from_static("AAAA"));
        event.query = Some("tenant=7".to_owned());
        let mut tags = Vec::new();
        for _ in 0..2 {
            assert!(destination.send(&event, false, 1).await.expect("is answered").status.is_success());
            let (request, body) = seen.recv().await.expect("arrived");
            assert_eq!((&body[..], request.headers().get("x-hub-signature")), (&b"{\"a\":1}"[..], None));
            let mut given = request.headers().get_all("x-square-hmacsha256-signature").iter();
            let tag = given.next().expect("is signed").to_str().expect("text").to_owned();
            assert_eq!(given.next(), None);
            let mut mac = <hmac::Hmac<sha2::Sha256> as hmac::KeyInit>::new_from_slice(b"a secret of some length").expect("any length");
            hmac::Mac::update(&mut mac, format!("http://{address}/hooks?x=1&tenant=7{{\"a\":1}}").as_bytes());
            assert_eq!(tag, data_encoding::BASE64.encode(&hmac::Mac::finalize(mac).into_bytes()));
            tags.push(tag);
        }
        event.verification = crate::event::Verification::None;
        let why = destination.send(&event, false, 1).await.expect_err("is not sent");
        assert_eq!((why.code(), why.reason()), ("unsigned", Reason::UpstreamInvalid));
        assert!(seen.try_recv().is_err());
        assert!(!format!("{why:?} {why}").contains("some length"));
    }
}
