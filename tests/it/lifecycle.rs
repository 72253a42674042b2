//! Start, reload, drain, one process a state directory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::support::{
    client::{Client, Post, Protocol},
    gate::{Gate, Setup, github_route},
    hold::Hold,
    now,
    receiver::{Act, Receiver},
    tls::Ca,
    tools, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_half_of_them_broken_fail_no_request() {
    let receiver = Receiver::start().await;
    let gate = Arc::new(Setup::github(&receiver, "").start().await);
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for (n, protocol) in [Protocol::Http1, Protocol::Http1, Protocol::Http2, Protocol::Http2].into_iter().enumerate() {
        let (gate, stop, sent) = (gate.clone(), stop.clone(), sent.clone());
        senders.spawn(async move {
            let mut client = Client::connect(&gate, protocol).await;
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Every tenth on a connection of its own.
                if i % 10 == 9 {
                    client = Client::connect(&gate, protocol).await;
                }
                let answer = client.send(&Post::github(format!("{{\"sender\":{n},\"n\":{i}}}"))).await;
                assert_eq!(answer.status, 200, "sender {n}, request {i}: {answer:?}");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for n in 0..50 {
        gate.rewrite(&github_route(&receiver, &format!("# reload {n}\nreplay = {{ remember = \"{}d\" }}", n + 2)));
        gate.reload("ok").await;
        let broken = ["verify = 1\n", "[routes.github.nothing]\n", "[[", "deliver = \"nowhere\"\n", "\u{0}"][n % 5];
        gate.rewrite(&github_route(&receiver, broken));
        gate.reload("refused").await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = senders.join_next().await {
        ended.expect("no sender saw a failure");
    }
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent >= 100, "only {sent} requests went through meanwhile");
    assert_eq!(receiver.count(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_effect_and_a_broken_one_keeps_the_old_policy() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let moved = github_route(&receiver, "").replace("\"/github\"", "\"/moved\"");
    gate.rewrite(&moved);
    gate.reload("ok").await;
    assert_eq!(Post::github("{\"n\":1}").send(&gate).await.status, 404);
    assert_eq!(Post::github("{\"n\":2}").to("/moved").send(&gate).await.status, 200);
    gate.rewrite("[routes.github]\npath = \"/third\"\nverfy = \"none\"\ndeliver = \"http://127.0.0.1:9/\"\n");
    gate.reload("refused").await;
    assert_eq!(Post::github("{\"n\":3}").to("/moved").send(&gate).await.status, 200);
    assert!(gate.log().contains("verfy"), "the log says what was wrong\n{}", gate.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_connections_to_receivers() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").server("workers = 1").start().await;
    for n in 0..5 {
        assert_eq!(Post::github(format!("{{\"n\":{n}}}")).send(&gate).await.status, 200);
        gate.rewrite(&github_route(&receiver, &format!("query = [\"a{n}\"]")));
        gate.reload("ok").await;
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_told_with_its_line_and_the_old_policy_serves() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").file("bad.wasm", "no component").start().await;
    gate.rewrite(&github_route(&receiver, "[filters.bad]\ncomponent = \"bad.wasm\""));
    gate.reload("refused").await;
    let policy = std::fs::read_to_string(gate.path("hooklatch.toml")).expect("the policy is there");
    let line = policy.lines().position(|line| line.starts_with("component")).expect("it is there") + 1;
    assert!(gate.log().contains(&format!("line {line}: filters.bad.component: filter `bad`")), "{}", gate.log());
    assert_eq!(Post::github("{}").send(&gate).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_file_is_loaded_without_a_signal() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    gate.rewrite(&github_route(&receiver, "").replace("\"/github\"", "\"/moved\""));
    until("the new policy", || async { (Post::github("{}").to("/moved").send(&gate).await.status == 200).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_file_is_read_again() {
    let receiver = Receiver::start().await;
    let policy = github_route(&receiver, "").replace("env:GITHUB_SECRET", "file:secret.txt");
    let gate = Setup::new(policy).file("secret.txt", "the first secret of all\n").start().await;
    let signed = |secret: &str, body: &str| {
        let (name, value) = crate::support::sign::github_with(secret, body.as_bytes());
        Post::new("/github", body.to_owned()).header(name, &value)
    };
    assert_eq!(signed("the first secret of all", "{\"n\":1}").send(&gate).await.status, 200);
    gate.write("secret.txt", "the second secret of all\n");
    let second = signed("the second secret of all", "{\"n\":2}");
    until("the new secret", || async { (second.send(&gate).await.status == 200).then_some(()) }).await;
    assert_eq!(signed("the first secret of all", "{\"n\":3}").send(&gate).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_served_to_new_connections() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let mut old = Client::connect(&gate, Protocol::Http1).await;
    let next = Ca::new("the next CA");
    let identity = next.server(&["localhost"]);
    gate.write("tls/cert.pem", &identity.cert);
    gate.write("tls/key.pem", &identity.key);
    let trusted = next.trust(&["http/1.1"], None);
    until("the new certificate", || async {
        let socket = tokio::net::TcpStream::connect(gate.address()).await.ok()?;
        let name = rustls::pki_types::ServerName::try_from("localhost").ok()?;
        tokio_rustls::TlsConnector::from(trusted.clone()).connect(name, socket).await.ok()
    })
    .await;
    assert_eq!(old.send(&Post::github("{}")).await.status, 200, "an open connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_need_a_restart_are_refused_as_such() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let policy = std::fs::read_to_string(gate.path("hooklatch.toml")).expect("the policy is there");
    gate.write("hooklatch.toml", policy.replace("listen = [\"127.0.0.1:0\"]", "listen = [\"127.0.0.1:1\"]\nworkers = 3"));
    gate.reload("refused").await;
    for key in ["server.listen", "server.workers"] {
        assert!(gate.log().contains(&format!("a change of `{key}` needs a restart")), "{}", gate.log());
    }
    assert_eq!(Post::github("{}").send(&gate).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_all_in_flight_then_exits_with_0() {
    let hold = Hold::shut();
    let door = hold.clone();
    let receiver = Receiver::acting(move |_| Act::after(&door, Act::Answer(200, "done"))).await;
    let mut gate = Setup::github(&receiver, "").start().await;
    let mut sending = JoinSet::new();
    for n in 0..20 {
        let protocol = if n % 2 == 0 { Protocol::Http1 } else { Protocol::Http2 };
        let mut client = Client::connect(&gate, protocol).await;
        sending.spawn(async move { client.send(&Post::github(format!("{{\"n\":{n}}}"))).await });
    }
    receiver.arrived(20).await;
    gate.signal("TERM");
    // Readiness goes first; the admin listener serves until the end.
    until("/readyz to refuse", || async { (gate.admin("/readyz", "").await.status == 503).then_some(()) }).await;
    hold.open();
    while let Some(answer) = sending.join_next().await {
        let answer = answer.expect("no panic");
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"done"[..]));
    }
    let status = gate.exit().await;
    assert_eq!(status.code(), Some(0), "{}", gate.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stuck_does_not_outlive_drain_timeout() {
    let receiver = Receiver::acting(|_| Act::Hang).await;
    let mut gate = Setup::github(&receiver, "").server("drain_timeout = \"1s\"").start().await;
    let mut client = Client::connect(&gate, Protocol::Http1).await;
    let sending = tokio::spawn(async move { client.try_send(&Post::github("{}")).await });
    receiver.arrived(1).await;
    gate.signal("TERM");
    gate.exit().await;
    let _ = sending.await;
    assert_cut(&gate);
}

/// The one request in flight is in the audit file, with all that was known of it.
fn assert_cut(gate: &Gate) {
    let lines = gate.audit();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!((line["outcome"].as_str(), line["route"].as_str(), line["verified"].as_str()), (Some("aborted"), Some("github"), Some("content")), "{line}");
    assert!(line["status"].is_null() && line["detail"].as_str().is_some_and(|detail| detail.contains("the gate stopped")), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_drain() {
    let receiver = Receiver::acting(|_| Act::Hang).await;
    let mut gate = Setup::github(&receiver, "").server("drain_timeout = \"1h\"").start().await;
    let mut client = Client::connect(&gate, Protocol::Http1).await;
    let sending = tokio::spawn(async move { client.try_send(&Post::github("{}")).await });
    receiver.arrived(1).await;
    gate.signal("TERM");
    until("/readyz to refuse", || async { (gate.admin("/readyz", "").await.status == 503).then_some(()) }).await;
    gate.signal("INT");
    gate.exit().await;
    assert!(gate.log().contains("told to stop again"), "{}", gate.log());
    let _ = sending.await;
    assert_cut(&gate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_naming_path_and_pid() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let start = now();
    let mut command = tools::hooklatch(["run", "--config", "hooklatch.toml"]);
    command.current_dir(gate.path("")).env("STATE_DIRECTORY", gate.path("var")).env("GITHUB_SECRET", "a secret of the tests");
    command.env("HOOKLATCH_ADMIN_TOKEN", crate::support::gate::ADMIN_TOKEN);
    let out = tools::background(command, Vec::new()).await;
    assert!(start.elapsed() < Duration::from_secs(2) + Duration::from_secs(3), "refused without waiting for the other");
    assert!(!out.status.success());
    let said = tools::text(&out.stderr) + &tools::text(&out.stdout);
    assert!(said.contains(&gate.pid().to_string()) && said.contains("var/state"), "{said}");
    assert_eq!(Post::github("{}").send(&gate).await.status, 200, "the first goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_and_the_rest_of_admin_needs_the_token() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(gate.admin(path, "").await.status, 200, "{path}");
    }
    for path in ["/api/v1/status", "/api/v1/policy", "/api/v1/decisions", "/api/v1/inspector/events"] {
        assert_eq!(gate.admin(path, "").await.status, 401, "{path}");
        assert_eq!(gate.admin(path, "Authorization: Bearer wrong\r\n").await.status, 401, "{path}");
        let token = format!("Authorization: Bearer {}\r\n", crate::support::gate::ADMIN_TOKEN);
        assert_eq!(gate.admin(path, &token).await.status, 200, "{path}");
    }
    let mut wire = crate::support::wire::Wire::connect(gate.admin_address()).await;
    wire.send(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    let status = wire.reply().await.map(|reply| reply.status);
    assert!(matches!(status, Some(400..=499)), "a foreign Host is refused (DNS rebinding): {status:?}");
}
