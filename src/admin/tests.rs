//! The listener over real sockets.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    event::{Event, EventId},
    observe::audit::{Audit, Decision, Line},
    problem::Source,
    reject::Reason,
    section::{Inputs, Reader},
};

const TOKEN: &str = "a token for these tests";

struct Gate {
    server: Server,
    audit: Audit,
    store: Arc<Store>,
    refused: Arc<live::Refused>,
    readiness: Arc<Readiness>,
    clock: Clock,
    reloads: Arc<AtomicU64>,
}

async fn gate() -> Gate {
    gate_with(None).await
}

async fn gate_with(tls: Option<Arc<ServerConfig>>) -> Gate {
    gate_within(tls, Limits::default()).await
}

async fn gate_within(tls: Option<Arc<ServerConfig>>, limits: Limits) -> Gate {
    let clock = Clock::hand(1_700_000_000_000);
    let metrics = Metrics::with_clock("0", clock.clone());
    let audit = Audit::start(None, metrics.clone(), clock.clone()).expect("a thread");
    let (store, readiness, reloads) = (Arc::new(Store::default()), Arc::new(Readiness::default()), Arc::<AtomicU64>::default());
    readiness.serving();
    let refused = Arc::<live::Refused>::default();
    refused.configure(live::Settings { refused: 5, max_body: 100 });
    let count = reloads.clone();
    let reload: Reload = Arc::new(move || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { if n == 0 { Ok(json!({ "generation": 2 })) } else { Err(vec!["routes.a: no".to_owned()]) } })
    });
    let state = AdminState {
        metrics,
        readiness: readiness.clone(),
        inspector: store.clone(),
        decisions: audit.decisions(),
        refused: refused.clone(),
        shown: Arc::new(|kept| kept.detail(None)),
        explain: Arc::new(|kept| Ok(json!({ "verdict": "reject", "event_id": kept.id }))),
        reload,
        policy: Arc::new(|| json!({ "routes": {} })),
        pairings: Arc::new(crate::pair::Pairings::new(std::path::Path::new("/nonexistent"))),
        pairable: Arc::new(|_| None),
        token: Secret::new("admin", TOKEN.as_bytes().to_vec(), None),
        clock: clock.clone(),
    };
    let settings = Settings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        token: None,
        allowed_hosts: vec!["gate.internal".into()],
        tls,
        capture: live::Settings::default(),
    };
    let server = Server::start_within(&settings, state, limits).await.expect("a free port");
    Gate { server, audit, store, refused, readiness, clock, reloads }
}

impl Gate {
    /// One exchange on a connection of its own; the answer's text, head and body.
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.server.address()).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("the request");
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an answer in time").expect("an answer");
        String::from_utf8(answer).expect("text")
    }

    async fn get(&self, path: &str, more: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n")).await
    }

    async fn post(&self, path: &str, more: &str, body: &str) -> String {
        self.ask(&format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len())).await
    }
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn event(body: &'static [u8]) -> Event {
    let mut headers = HeaderMap::new();
    headers.insert("x-github-event", "push".parse().expect("a value"));
    headers.insert("authorization", "Bearer s3cret".parse().expect("a value"));
    Event { query: Some("token=s3cret".into()), headers, ..Event::sample(body) }
}

#[tokio::test]
async fn health_and_metrics_are_open_and_the_rest_is_not() {
    let gate = gate().await;
    for (path, want) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/assets/app.js", 200), ("/assets/../mod.rs", 404), ("/nothing", 404)] {
        assert_eq!(status(&gate.get(path, "").await), want, "{path}");
    }
    for path in [
        "/api/v1/inspector/events",
        "/api/v1/inspector/events/x",
        "/api/v1/refused",
        "/api/v1/refused/x",
        "/api/v1/explanations/x",
        "/api/v1/decisions",
        "/api/v1/status",
        "/api/v1/policy",
        "/api/v1/live",
    ] {
        assert_eq!(status(&gate.get(path, "").await), 401, "{path}");
        assert_eq!(status(&gate.get(path, "Authorization: Bearer wrong\r\n").await), 401, "{path}");
    }
    assert_eq!(status(&gate.post("/api/v1/reload", "", "").await), 401);
    assert_eq!(gate.reloads.load(Ordering::SeqCst), 0);
    let page = gate.get("/", "").await;
    assert!(page.contains("name=\"token\"") && !page.contains("tablist"), "the login form: {page}");
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let gate = gate().await;
    for path in ["/healthz", "/metrics", "/", "/assets/style.css", "/api/v1/status", "/nothing"] {
        let answer = gate.get(path, "").await.to_ascii_lowercase();
        for header in ["content-security-policy: default-src 'none';", "x-content-type-options: nosniff", "x-frame-options: deny", "cache-control: no-"] {
            assert!(answer.contains(header), "{header} is missing at {path}: {answer}");
        }
    }
    for page in [include_str!("page/index.html"), include_str!("page/login.html")] {
        for inline in [" style=", "<style", "onclick=", "<script>", "http://", "https://"] {
            assert!(!page.contains(inline), "{inline} goes against the page's own policy");
        }
    }
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let gate = gate().await;
    let host = |host: &str, more: &str| format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}{more}\r\n", bearer());
    for (name, want) in [("gate.internal", 200), ("127.0.0.1:9900", 200), ("evil.example", 403)] {
        assert_eq!(status(&gate.ask(&host(name, "")).await), want, "{name}");
    }
    assert_eq!(status(&gate.ask(&host("localhost", "Origin: http://evil.example\r\n")).await), 403);
    let rebound = gate.ask("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(status(&rebound) == 403 && rebound.contains("allowed_hosts"), "{rebound}");
    let probe = gate.ask("GET /readyz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&probe), 200, "a probe may use any name");
    let forged = gate.post("/api/v1/reload", &format!("{}Sec-Fetch-Site: cross-site\r\n", bearer()), "").await;
    assert_eq!((status(&forged), gate.reloads.load(Ordering::SeqCst)), (403, 0));
}

#[tokio::test]
async fn a_login_gives_a_cookie_that_ends() {
    let gate = gate().await;
    let wrong = gate.post("/login", "", "token=wrong").await;
    assert!(status(&wrong) == 303 && wrong.contains("location: /?wrong") && !wrong.contains("set-cookie"), "{wrong}");
    let answer = gate.post("/login", "Origin: http://localhost\r\n", &format!("token={}", TOKEN.replace(' ', "+"))).await;
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    let carry = format!("Cookie: {}\r\n", cookie.split(';').next().expect("the pair"));
    assert!(gate.get("/", &carry).await.contains("role=\"tablist\""));
    assert_eq!(status(&gate.get("/api/v1/status", &carry).await), 200);
    gate.clock.advance(access::SESSION);
    assert_eq!(status(&gate.get("/api/v1/status", &carry).await), 401);
    assert!(gate.post("/logout", "", "").await.contains("Max-Age=0"));
}

#[tokio::test]
async fn readiness_tells_why_not() {
    let gate = gate().await;
    gate.readiness.drain();
    let answer = gate.get("/readyz", "").await;
    assert_eq!(status(&answer), 503);
    let report: Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!((report["ready"].as_bool(), report["not"][0]["check"].as_str()), (Some(false), Some("drain")));
    assert_eq!(status(&gate.get("/healthz", "").await), 200);
}

#[tokio::test]
async fn the_inspector_lists_and_shows_and_masks() {
    let gate = gate().await;
    let (first, second) = (event(b"{\"a\":1}"), event(b"\xff"));
    gate.store.receive(&first, 1);
    gate.store.receive(&second, 1);
    let list: Value = serde_json::from_str(body(&gate.get("/api/v1/inspector/events?after=1", &bearer()).await)).expect("JSON");
    assert_eq!((list["last"].as_u64(), list["events"].as_array().map(Vec::len)), (Some(2), Some(1)));
    assert_eq!(list["events"][0]["id"], json!(second.id.to_string()));
    let answer = gate.get(&format!("/api/v1/inspector/events/{}", first.id), &bearer()).await;
    let one: Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!((one["body"].as_str(), one["query"].as_str(), one["truncated"].as_bool()), (Some("{\"a\":1}"), Some("token"), Some(false)));
    assert!(answer.contains("[\"x-github-event\",\"push\"]") && !answer.contains("s3cret"), "{answer}");
    assert_eq!(status(&gate.get("/api/v1/inspector/events/3", &bearer()).await), 404);
}

#[tokio::test]
async fn decisions_policy_and_reload() {
    let gate = gate().await;
    gate.audit.push(&Line::new(EventId::new(), 0, Decision::Refused(Reason::SignatureMismatch)));
    assert!(gate.audit.flush(Duration::from_secs(30)));
    let list: Value = serde_json::from_str(body(&gate.get("/api/v1/decisions", &bearer()).await)).expect("JSON");
    assert_eq!((list["last"].as_u64(), list["decisions"][0]["line"]["reason"].as_str()), (Some(1), Some("signature_mismatch")));
    assert!(gate.get("/api/v1/policy", &bearer()).await.contains("{\"routes\":{}}"));
    let good = gate.post("/api/v1/reload", &bearer(), "").await;
    assert_eq!((status(&good), body(&good)), (200, "{\"generation\":2}"));
    let bad = gate.post("/api/v1/reload", &bearer(), "").await;
    assert!(status(&bad) == 422 && bad.contains("routes.a: no"), "{bad}");
    assert_eq!(status(&gate.get("/api/v1/reload", &bearer()).await), 405);
}

async fn read_until(stream: &mut TcpStream, text: &mut String, wanted: &str) {
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let n = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.expect("in time").expect("bytes");
        assert_ne!(n, 0, "the stream ended before {wanted}: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[tokio::test]
async fn the_live_stream_tells_of_news_and_ends_with_the_listener() {
    let gate = gate().await;
    let mut stream = TcpStream::connect(gate.server.address()).await.expect("a connection");
    let request = format!("GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer());
    stream.write_all(request.as_bytes()).await.expect("the request");
    let mut text = String::new();
    read_until(&mut stream, &mut text, "{\"decisions\":0,\"events\":0,\"refused\":0}").await;
    gate.store.receive(&event(b"{}"), 1);
    read_until(&mut stream, &mut text, "{\"decisions\":0,\"events\":1,\"refused\":0}").await;
    gate.server.stop().await;
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("the stream ends").expect("its end");
}

/// Connections of each kind that a stranger can leave half way, and one too many of them.
#[tokio::test]
async fn stuck_clients_keep_nobody_from_readyz() {
    let gate = gate().await;
    let mut stream = TcpStream::connect(gate.server.address()).await.expect("a connection");
    stream.write_all(format!("GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer()).as_bytes()).await.expect("the request");
    let mut text = String::new();
    read_until(&mut stream, &mut text, "\"events\":0,\"refused\":0}").await;
    let mut stuck = Vec::new();
    for n in 0..Limits::default().places + 40 {
        let mut one = TcpStream::connect(gate.server.address()).await.expect("a connection");
        let half = ["", "GET /readyz HTTP/1.1\r\nHost: local", "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\ntoken="][n % 3];
        one.write_all(half.as_bytes()).await.expect("half a request");
        stuck.push(one);
    }
    for path in ["/readyz", "/healthz", "/metrics"] {
        assert_eq!(status(&gate.get(path, "").await), 200, "{path}");
    }
    assert!(gate.server.places.len() <= Limits::default().places);
    // Who showed the token keeps its place.
    gate.store.receive(&event(b"{}"), 1);
    read_until(&mut stream, &mut text, "\"events\":1,\"refused\":0}").await;
}

#[tokio::test]
async fn every_wait_for_a_client_ends() {
    let short = Duration::from_millis(50);
    let gate = gate_within(None, Limits { head: short, body: short, taking: short, ..Limits::default() }).await;
    let emptied = async || {
        while gate.server.places.len() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for (sent, says) in [
        ("", ""),
        ("GET /readyz HTTP/1.1\r\nHost: local", ""),
        ("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 OK"),
        ("POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\ntoken=", "408 Request Timeout"),
        ("POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", "401 Unauthorized"),
    ] {
        let answer = gate.ask(sent).await;
        assert!(answer.contains(says) && (answer.is_empty() == says.is_empty()), "{sent:?}: {answer}");
    }
    // Asks on and on, and takes no answer.
    let mut stream = TcpStream::connect(gate.server.address()).await.expect("a connection");
    let many = "GET /assets/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let asking = async { while stream.write_all(many.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it is cut off");
    tokio::time::timeout(Duration::from_secs(20), emptied()).await.expect("nobody is left");
}

#[tokio::test]
async fn metrics_come_in_the_form_that_is_asked_for() {
    let gate = gate().await;
    let plain = gate.get("/metrics", "").await;
    assert!(plain.contains("text/plain; version=0.0.4") && plain.contains("# TYPE hooklatch_config_reloads_total counter"), "{plain}");
    let open = gate.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert!(open.contains("application/openmetrics-text; version=1.0.0") && open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn with_tls_plain_requests_get_no_answer() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().expect("versions");
    let config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).expect("a pair");
    let gate = gate_with(Some(Arc::new(config))).await;
    assert!(gate.server.url().starts_with("https://127.0.0.1:"));
    let plain = gate.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!plain.contains("200"), "{plain}");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(gate.server.address()).await.expect("a connection");
    let mut stream = connector.connect("localhost".try_into().expect("a name"), stream).await.expect("TLS");
    let login = format!(
        "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: https://localhost\r\nContent-Length: {}\r\n\r\ntoken={TOKEN}",
        TOKEN.len() + 6
    );
    stream.write_all(login.as_bytes()).await.expect("the request");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await; // the end may come without close_notify
    assert!(String::from_utf8_lossy(&answer).contains("; Secure"), "{}", String::from_utf8_lossy(&answer));
}

// -- settings and token --

fn check(text: &str, files: &[(&str, &[u8])], problems: &[&str]) -> Option<Settings> {
    let inputs = Inputs::memory(&[("TOKEN", "0123456789abcdef"), ("SHORT", "short")], files);
    let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, inputs);
    let table = reader.parse();
    let root = reader.root(&table);
    let settings = read(&root);
    root.finish();
    let told: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
    assert_eq!(told, problems, "{text}");
    settings
}

#[test]
fn settings_are_read() {
    let listen = |settings: Option<Settings>| settings.map(|s| s.listen.to_string());
    assert_eq!(listen(check("", &[], &[])).as_deref(), Some("127.0.0.1:9900"));
    assert_eq!(listen(check("admin = false", &[], &[])), None);
    assert_eq!(listen(check("[admin]\nlisten = \"localhost:0\"", &[], &[])).as_deref(), Some("127.0.0.1:0"));
    assert_eq!(listen(check("[admin]\nlisten = \"0.0.0.0:9900\"\ninsecure = true", &[], &[])).as_deref(), Some("0.0.0.0:9900"));
    let full = check("[admin]\ntoken = \"env:TOKEN\"\nallowed_hosts = [\"Gate.Internal\"]", &[], &[]).expect("settings");
    assert_eq!((full.allowed_hosts, full.token.map(|t| t.expose().len())), (vec!["gate.internal".to_owned()], Some(16)));
    check(
        "[admin]\nlisten = \"0.0.0.0:9900\"",
        &[],
        &[
            "admin.listen: the admin listener at 0.0.0.0:9900 would carry its token in the clear (add `tls = { cert, key }`, listen on 127.0.0.1, or set `insecure = true` where something in front does TLS)",
        ],
    );
    check(
        "[admin]\nlisten = \"here\"",
        &[],
        &["admin.listen: `here` is not an address to listen on (write it like \"127.0.0.1:9900\"; `admin = false` switches it off)"],
    );
    check("[admin]\ntoken = \"env:SHORT\"", &[], &["admin.token: the admin token has fewer than 16 bytes (make a longer one: openssl rand -hex 32)"]);
    check(
        "[admin]\nallowed_hosts = [\"https://a\"]",
        &[],
        &["admin.allowed_hosts: `https://a` (number 1) is not a host's name (write the name alone, without scheme and port)"],
    );
    check("[admin]\nlissten = 1", &[], &["admin.lissten: unknown key `lissten` (did you mean `listen`?)"]);
}

#[test]
fn the_admin_certificate_is_read() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let other = rcgen::KeyPair::generate().expect("a key");
    let (cert, key, other) = (made.cert.pem(), made.signing_key.serialize_pem(), other.serialize_pem());
    let files: &[(&str, &[u8])] = &[("c.pem", cert.as_bytes()), ("k.pem", key.as_bytes()), ("o.pem", other.as_bytes())];
    let policy = |key: &str| format!("[admin]\nlisten = \"192.0.2.1:9900\"\ntls = {{ cert = \"c.pem\", key = \"{key}\" }}");
    assert!(check(&policy("k.pem"), files, &[]).is_some_and(|settings| settings.tls.is_some()));
    check(&policy("c.pem"), files, &["admin.tls.key: c.pem holds no private key (give an unencrypted PEM key: PKCS#8, PKCS#1 or SEC1)"]);
    let mismatch = check(
        &policy("o.pem"),
        files,
        &["admin.tls.cert: c.pem cannot be served: keys may not be consistent: KeyMismatch (certificate and key have to belong together)"],
    );
    assert!(mismatch.is_none());
}

#[test]
fn a_token_is_made_once_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = check("", &[], &[]).expect("settings");
    let state_dir = folder.path().join("state");
    let first = Token::load(&settings, &state_dir).expect("a token");
    let path = first.made.clone().expect("it was made just now");
    assert_eq!(std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
    assert_eq!(first.reveal().len(), 43);
    let second = Token::load(&settings, &state_dir).expect("a token");
    assert_eq!((second.secret.expose(), second.made), (first.secret.expose(), None));
    std::fs::write(&path, "\n").expect("the file");
    assert!(Token::load(&settings, &state_dir).is_err());
    assert!(!format!("{first:?}").contains(first.reveal().as_str()));
}

#[tokio::test]
async fn refused_events_are_listed_shown_and_explained() {
    let gate = gate().await;
    let event = event(b"{}");
    let why = crate::reject::Reject::new(Reason::SignatureMismatch, "no configured secret gives this signature");
    let request = crate::verify::cases::Request {
        method: http::Method::POST,
        base: "https://h".into(),
        target: "/github?token=s3cret".into(),
        headers: event.headers.clone(),
        body: event.body.clone(),
    };
    let client = event.client.ip;
    gate.refused.keep(live::Refusal {
        id: event.id.to_string(),
        route: &event.route,
        client,
        received_ms: event.received_ms,
        why: &why,
        observed: false,
        request,
        whole: true,
        knows_url: true,
    });
    let list: Value = serde_json::from_str(body(&gate.get("/api/v1/refused", &bearer()).await)).expect("JSON");
    assert_eq!((list["last"].as_u64(), list["events"][0]["reason"].as_str()), (Some(1), Some("signature_mismatch")));
    let one = gate.get(&format!("/api/v1/refused/{}", event.id), &bearer()).await;
    assert!(one.contains("/github?token") && !one.contains("s3cret"), "{one}");
    let told: Value = serde_json::from_str(body(&gate.get(&format!("/api/v1/explanations/{}", event.id), &bearer()).await)).expect("JSON");
    assert_eq!((told["verdict"].as_str(), told["event_id"].as_str()), (Some("reject"), Some(&*event.id.to_string())));
    let nothing = gate.get("/api/v1/explanations/x", &bearer()).await;
    assert!(status(&nothing) == 404 && nothing.contains("capture"), "{nothing}");
    // What the inspector and the audit line know is told of events that were not refused, or not kept.
    gate.store.receive(&event, 1);
    let mut taken = event.clone();
    taken.id = EventId::new();
    gate.store.receive(&taken, 1);
    let told: Value = serde_json::from_str(body(&gate.get(&format!("/api/v1/explanations/{}", taken.id), &bearer()).await)).expect("JSON");
    assert_eq!((told["verdict"].as_str(), told["proves"].as_str()), (Some("accept"), Some("content")));
    let id = EventId::new();
    gate.audit.push(&Line::new(id, 0, Decision::Refused(Reason::TimestampStale)));
    assert!(gate.audit.flush(Duration::from_secs(30)));
    let told: Value = serde_json::from_str(body(&gate.get(&format!("/api/v1/explanations/{id}"), &bearer()).await)).expect("JSON");
    assert_eq!((told["verdict"].as_str(), told["reason"].as_str()), (Some("reject"), Some("timestamp_stale")));
}
