//! Senders and receivers that nobody here wrote: Debian's Alertmanager and `webhook`, curl, Python.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    client::Post,
    gate::{Gate, Setup},
    receiver::Receiver,
    sign, tools, until,
    wire::Wire,
};

/// A program that serves until the test ends.
struct Service(Child);

impl Service {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free now, for programs that cannot say which one they took.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}

async fn serving(port: u16) -> SocketAddr {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    until(&format!("something to listen on {address}"), || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
    address
}

/// Starts Alertmanager, which sends to the gate with this token, and fires one alert.
async fn alertmanager(gate: &Gate, token: &str) -> Service {
    let config = format!(
        r#"
route: {{ receiver: gate, group_wait: 1ms, group_interval: 100ms, repeat_interval: 1h }}
receivers:
  - name: gate
    webhook_configs:
      - url: {}
        send_resolved: false
        http_config:
          authorization: {{ type: Bearer, credentials: {token} }}
          tls_config: {{ ca_file: {} }}
"#,
        gate.url("/alerts"),
        gate.ca_file().display(),
    );
    std::fs::write(gate.path("alertmanager.yml"), config).expect("the folder is ours");
    let port = free_port();
    let service = Service::start(tools::program("prometheus-alertmanager").current_dir(gate.path("")).args([
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager",
        "--cluster.listen-address=",
        &format!("--web.listen-address=127.0.0.1:{port}"),
    ]));
    let address = serving(port).await;
    let alert = r#"[{"labels":{"alertname":"DiskFull","host":"db1"},"annotations":{"summary":"no space"}}]"#;
    let mut wire = Wire::connect(address).await;
    let request = "POST /api/v2/alerts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
    wire.send(format!("{request}Content-Length: {}\r\n\r\n{alert}", alert.len()).as_bytes()).await;
    assert_eq!(wire.reply().await.expect("Alertmanager answers").status, 200);
    service
}

const ALERT_TOKEN: &str = "alert-token-0123456789abcdef";

async fn alert_gate(receiver: &Receiver) -> Gate {
    let policy = format!(
        "[routes.alerts]\npath = \"/alerts\"\nverify = {{ provider = \"alertmanager\", secret = \"env:ALERT_TOKEN\" }}\ndeliver = \"{}\"\n",
        receiver.url("/from-alertmanager")
    );
    Setup::new(policy).env("ALERT_TOKEN", ALERT_TOKEN).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn alertmanager_sends_through_the_gate() {
    let receiver = Receiver::start().await;
    let gate = alert_gate(&receiver).await;
    let _service = alertmanager(&gate, ALERT_TOKEN).await;
    let seen = &receiver.arrived(1).await[0];
    let body: Value = serde_json::from_slice(&seen.body).expect("Alertmanager sends JSON");
    assert_eq!((&body["alerts"][0]["labels"]["alertname"], &body["receiver"]), (&"DiskFull".into(), &"gate".into()));
    assert_eq!(seen.target, "/from-alertmanager");
    assert_eq!(seen.header("hooklatch-provider"), "alertmanager");
    assert_eq!(seen.header("hooklatch-verified"), "sender", "a token vouches for the sender, not for the body");
}

#[tokio::test(flavor = "multi_thread")]
async fn alertmanager_with_a_wrong_token_does_not_pass() {
    let receiver = Receiver::start().await;
    let gate = alert_gate(&receiver).await;
    let _service = alertmanager(&gate, "alert-token-0123456789abcdeF").await;
    let audit = gate.audited(1).await;
    assert_eq!(audit[0]["reason"], "token_invalid", "{audit:?}");
    assert_eq!(receiver.count(), 0);
}

/// `webhook` checks the signature again: it runs its command only if the gate passed every byte on as it was.
#[tokio::test(flavor = "multi_thread")]
async fn debian_webhook_receives_behind_the_gate() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let hooks = serde_json::json!([{
        "id": "deploy",
        "execute-command": "/usr/bin/printenv",
        "pass-environment-to-command": [{ "source": "payload", "name": "after", "envname": "AFTER" }],
        "pass-arguments-to-command": [{ "source": "string", "name": "AFTER" }],
        "include-command-output-in-response": true,
        "trigger-rule-mismatch-http-response-code": 403,
        "trigger-rule": { "match": {
            "type": "payload-hmac-sha256", "secret": sign::SECRET, "parameter": { "source": "header", "name": "X-Hub-Signature-256" },
        } },
    }]);
    std::fs::write(dir.path().join("hooks.json"), hooks.to_string()).expect("the folder is ours");
    let port = free_port();
    let _service =
        Service::start(tools::program("webhook").current_dir(dir.path()).args(["-hooks", "hooks.json", "-ip", "127.0.0.1", "-port", &port.to_string()]));
    let address = serving(port).await;
    let policy = format!(
        "[routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\ndeliver = \"http://{address}/hooks/deploy\"\n"
    );
    let gate = Setup::new(policy).start().await;
    let body = std::fs::read(tools::root().join("tests/payloads/github/push.tag.json")).expect("the payload is there");
    let after = serde_json::from_slice::<Value>(&body).expect("JSON")["after"].as_str().expect("a push has `after`").to_owned();
    let answer = Post::github(body.clone()).send(&gate).await;
    assert_eq!((answer.status.as_u16(), tools::text(&answer.body).trim()), (200, &after[..]), "{answer:?}");

    let mut forged = body;
    forged.push(b' ');
    let answer = Post { body: forged.into(), ..Post::github("") }.send(&gate).await;
    assert_eq!(answer.verdict(), (401, "signature_mismatch".to_owned()));
}

/// The refusals that come before a large body ends.
async fn refusing_gate(tls: bool) -> (Receiver, Gate) {
    let receiver = Receiver::start().await;
    let url = receiver.url("/");
    let policy = format!(
        r#"
[routes.small]
path = "/small"
limits = {{ body = "1MiB" }}
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
[routes.signed]
path = "/signed"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
[routes.limited]
path = "/limited"
rate_limit = [{{ per = "ip", rate = "1/h" }}]
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
"#
    );
    let setup = Setup::new(policy).limits("body = \"20MiB\"");
    let gate = if tls { setup } else { setup.plain() }.start().await;
    std::fs::write(gate.path("body"), vec![b'x'; 10 << 20]).expect("the folder is ours");
    // Spends the limited route's only token.
    let answer = Post::github("{}").to("/limited").send(&gate).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (receiver, gate)
}

/// (path, with a signature, what has to be seen)
const REFUSED: [(&str, bool, &str); 3] =
    [("/small", true, "413 body_too_large"), ("/signed", false, "401 signature_missing"), ("/limited", true, "429 rate_limited")];

async fn curl_sees(tls: bool, more: &[&str]) {
    let (receiver, gate) = refusing_gate(tls).await;
    for (path, signed, wanted) in REFUSED {
        let mut curl = tools::program("curl");
        curl.args(["--silent", "--show-error", "--max-time", "30", "--output", "-", "--write-out", "\n%{http_code}", "--data-binary"]);
        curl.arg(format!("@{}", gate.path("body").display())).args(more).arg("--cacert").arg(gate.ca_file());
        if signed {
            curl.args(["--header", &format!("X-Hub-Signature-256: sha256={}", "0".repeat(64))]);
        }
        curl.arg(gate.url(path));
        let out = tools::background(curl, Vec::new()).await;
        let (body, status) = tools::text(&out.stdout).rsplit_once('\n').map(|(body, status)| (body.to_owned(), status.to_owned())).expect("a status");
        let reason = serde_json::from_str::<Value>(&body).unwrap_or_default()["reason"].as_str().unwrap_or_default().to_owned();
        assert_eq!(format!("{status} {reason}"), wanted, "curl {more:?} {path}: {} {body}", tools::text(&out.stderr));
    }
    assert_eq!(receiver.count(), 1, "nothing refused arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_refusals_of_10_mib_over_tls() {
    curl_sees(true, &["--http1.1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_refusals_of_10_mib_that_it_sends_at_once() {
    curl_sees(true, &["--http1.1", "--header", "Expect:"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_refusals_of_10_mib_in_chunks() {
    curl_sees(true, &["--http1.1", "--header", "Expect:", "--header", "Transfer-Encoding: chunked"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_refusals_of_10_mib_over_http2() {
    curl_sees(true, &["--http2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_refusals_of_10_mib_over_plain_http() {
    curl_sees(false, &["--http1.1", "--header", "Expect:"]).await;
}

/// `http.client` sends all before it reads; it is told of a broken pipe, and reads what was answered.
const HTTP_CLIENT: &str = r#"
import http.client, json, ssl, sys, urllib.parse
url, ca, body, signature = sys.argv[1:]
at = urllib.parse.urlsplit(url)
if at.scheme == "https":
    connection = http.client.HTTPSConnection(at.hostname, at.port, timeout=30, context=ssl.create_default_context(cafile=ca))
else:
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
headers = {"X-Hub-Signature-256": signature} if signature else {}
try:
    connection.request("POST", at.path, body=open(body, "rb").read(), headers=headers)
except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
    connection._HTTPConnection__state = http.client._CS_REQ_SENT
response = connection.getresponse()
print(response.status, json.loads(response.read())["reason"])
"#;

const REQUESTS: &str = r#"
import requests, sys
url, ca, body, signature = sys.argv[1:]
headers = {"X-Hub-Signature-256": signature} if signature else {}
response = requests.post(url, data=open(body, "rb"), headers=headers, verify=ca or True, timeout=30)
print(response.status_code, response.json()["reason"])
"#;

async fn python_sees(tls: bool, script: &str) {
    let (receiver, gate) = refusing_gate(tls).await;
    for (path, signed, wanted) in REFUSED {
        let mut python = tools::python(script);
        python.arg(gate.url(path)).arg(gate.ca_file()).arg(gate.path("body"));
        python.arg(if signed { format!("sha256={}", "0".repeat(64)) } else { String::new() });
        let out = tools::background(python, Vec::new()).await;
        assert_eq!(tools::text(&out.stdout).trim(), wanted, "{path}: {}", tools::text(&out.stderr));
    }
    assert_eq!(receiver.count(), 1, "nothing refused arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sees_refusals_of_10_mib_over_plain_http() {
    python_sees(false, HTTP_CLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sees_refusals_of_10_mib_over_tls() {
    python_sees(true, HTTP_CLIENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_requests_sees_refusals_of_10_mib_over_plain_http() {
    python_sees(false, REQUESTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_requests_sees_refusals_of_10_mib_over_tls() {
    python_sees(true, REQUESTS).await;
}
