//! The ten mistakes that fresh Rust proxies make, a test each that fails when the mistake is made. Where a mistake has several
//! faces, other modules have more of them; their names stand in the comment.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::support::{
    client::{Client, Post, Protocol},
    frames::{DATA, END_HEADERS, Frames, HEADERS, RST_STREAM, frame, post},
    gate::{Gate, Setup},
    hold::Hold,
    now,
    receiver::{Act, Receiver},
    sign, tools, unix_now, until,
    wire::Wire,
};

/// 1. No limit in time on handshake, headers, body, idle connections or the receiver's answer.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_01_something_has_no_limit_in_time() {
    let receiver = Receiver::acting(|seen| if seen.header("x-hang").is_empty() { Act::Answer(200, "ok") } else { Act::Hang }).await;
    let limits = "handshake_timeout = \"1s\"\nheader_timeout = \"1s\"\nbody_timeout = \"1s\"\nidle_timeout = \"1s\"";
    let destination = format!("[destinations.out]\nurl = \"{}\"\ntimeout = \"1s\"\n", receiver.url("/"));
    let route = "[routes.github]\npath = \"/github\"\nverify = { provider = \"github\", secret = \"env:GITHUB_SECRET\" }\ndeliver = \"out\"\n";
    let tls = Setup::new(format!("{destination}{route}")).limits(limits).start().await;
    let plain = Setup::new(format!("{destination}{route}")).limits(limits).plain().start().await;
    let (name, signature) = sign::github(b"{}");
    let head = format!("POST /github HTTP/1.1\r\nHost: localhost\r\n{name}: {signature}\r\n");

    // A handshake that never starts, one that stops in the middle.
    for hello in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut wire = Wire::connect(tls.address()).await;
        wire.send(hello).await;
        wire.rest().await;
    }
    // Headers that never come, that stop, that drip.
    for start in ["", "POST /github HTTP/1.1\r\nHost: loc", &head] {
        let mut wire = Wire::connect(plain.address()).await;
        wire.send(start.as_bytes()).await;
        let replies = wire.replies().await;
        assert!(replies.iter().all(|reply| reply.status == 408), "{start:?}: {replies:?}");
    }
    let mut wire = Wire::connect(plain.address()).await;
    let begin = now();
    let drip = async {
        for line in 0.. {
            wire.send(format!("{}X-{line}: y\r\n", if line == 0 { head.as_str() } else { "" }).as_bytes()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if begin.elapsed() > Duration::from_secs(5) {
                break;
            }
        }
    };
    drip.await;
    let dripped = wire.replies().await;
    assert!(dripped.iter().all(|reply| reply.status == 408), "headers that drip: {dripped:?}");
    // A body that never comes whole.
    let mut wire = Wire::connect(plain.address()).await;
    wire.send(format!("{head}Content-Length: 2\r\n\r\n{{").as_bytes()).await;
    let reply = wire.reply().await.expect("an answer");
    assert_eq!(reply.status, 408);
    assert!(tools::text(&reply.body).contains("body_timeout"), "{reply:?}");
    // A connection that idles after an answer.
    let mut wire = Wire::connect(plain.address()).await;
    wire.send(format!("{head}Content-Length: 2\r\n\r\n{{}}").as_bytes()).await;
    assert_eq!(wire.reply().await.map(|reply| reply.status), Some(200));
    assert!(wire.rest().await.is_empty(), "an idle connection ends");
    // An HTTP/2 connection that idles, and a stream whose body never ends.
    let frames = Frames::connect(&tls).await;
    let begin = now();
    frames.read_all(crate::support::PATIENCE).await;
    assert!(begin.elapsed() < crate::support::PATIENCE, "an idle HTTP/2 connection ends");
    let mut frames = Frames::connect(&tls).await;
    frames.send(&frame(HEADERS, END_HEADERS, 1, &post("/github", &[(name, &signature)]))).await;
    let got = frames.read_all(Duration::from_secs(10)).await;
    assert!(got.iter().any(|(kind, stream, _)| *stream == 1 && matches!(*kind, HEADERS | RST_STREAM)), "{got:?}");
    // A receiver that never answers.
    let answer = Post::github("{\"n\":1}").header("x-hang", "1").send(&tls).await;
    assert_eq!(answer.verdict(), (504, "upstream_timeout".to_owned()));
}

/// 2. A claim that stays when the task is cancelled; a hang-up that cancels what the receiver works on. (Also in `replay`.)
#[tokio::test(flavor = "multi_thread")]
async fn mistake_02_a_claim_stays_after_its_sender_is_gone() {
    let hold = Hold::shut();
    let door = hold.clone();
    let receiver = Receiver::acting(move |seen| if seen.nth < 2 { Act::after(&door, Act::Answer(500, "no")) } else { Act::Answer(200, "ok") }).await;
    let gate = Setup::github(&receiver, "").start().await;
    // One resets its HTTP/2 stream, one closes its HTTP/1.1 connection, both while the receiver works.
    let (name, signature) = sign::github(b"{\"n\":1}");
    let mut frames = Frames::connect(&gate).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &post("/github", &[(name, &signature)]));
    bytes.extend(frame(DATA, 1, 1, b"{\"n\":1}"));
    frames.send(&bytes).await;
    receiver.arrived(1).await;
    frames.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
    let mut client = Client::connect(&gate, Protocol::Http1).await;
    let sending = tokio::spawn(async move { client.try_send(&Post::github("{\"n\":2}")).await });
    receiver.arrived(2).await;
    sending.abort();
    let _ = sending.await;
    // A gate that cancels with its sender needs a moment to do so.
    tokio::time::sleep(Duration::from_millis(500)).await;
    hold.open();
    for n in 1..=2 {
        let retry = until("the claim to end as failed", || async {
            Some(Post::github(format!("{{\"n\":{n}}}")).send(&gate).await).filter(|answer| answer.reason() != "in_flight")
        })
        .await;
        assert_eq!((retry.status.as_u16(), retry.header("hooklatch-duplicate")), (200, ""), "{n}: the retry was taken for a copy: {retry:?}");
    }
    let seen = receiver.seen();
    assert_eq!(seen.len(), 4);
    let id = |n: usize| seen[n].header("hooklatch-event-id").to_owned();
    let ids: [std::collections::BTreeSet<String>; 2] = [[id(0), id(1)].into(), [id(2), id(3)].into()];
    assert_eq!(ids[0], ids[1], "the retries carry the ids of the first attempts");
}

/// A sender that goes before its body is whole leaves nothing behind either.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_02_a_body_cut_short_claims_nothing() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    let (name, signature) = sign::github(b"{\"n\":1}");
    for _ in 0..3 {
        let mut wire = Wire::connect(gate.address()).await;
        wire.send(format!("POST /github HTTP/1.1\r\nHost: localhost\r\n{name}: {signature}\r\nContent-Length: 7\r\n\r\n{{\"n\"").as_bytes()).await;
    }
    let answer = Post::github("{\"n\":1}").send(&gate).await;
    assert_eq!((answer.status.as_u16(), answer.header("hooklatch-duplicate")), (200, ""));
    assert_eq!(receiver.count(), 1);
}

/// 3. An answer before the fsync that it promises, or after one that failed. `kill -9` cannot show it: a failing fsync does.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_03_an_answer_vouches_for_what_was_not_synced() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").state("persist_within = \"0s\"").start().await;
    assert_eq!(Post::github("{\"n\":1}").send(&gate).await.status, 200);
    assert_eq!(gate.admin("/readyz", "").await.status, 200);
    let mut strace = tools::program("strace");
    strace.args([
        "-f",
        "-q",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,fdatasync,sync_file_range",
        "-e",
        "inject=fsync,fdatasync:error=EIO",
        "-p",
        &gate.pid().to_string(),
    ]);
    let mut strace = strace.spawn().expect("strace starts");
    until("strace to be attached", || async {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gate.pid())).expect("the gate runs");
        (!status.contains("TracerPid:\t0\n")).then_some(())
    })
    .await;
    let answer = Post::github("{\"n\":2}").send(&gate).await;
    let after = until("/readyz to say so", || async { Some(gate.admin("/readyz", "").await).filter(|reply| reply.status == 503) }).await;
    let next = Post::github("{\"n\":3}").send(&gate).await;
    let _ = std::process::Command::new("kill").arg(strace.id().to_string()).status();
    let _ = strace.wait();
    assert_ne!(answer.status, 200, "an answer that waits for the fsync does not vouch for a failed one");
    assert_eq!(after.status, 503);
    assert_eq!(next.verdict(), (503, "store_failed".to_owned()), "nothing more is promised after a failed fsync");
}

/// 4. A replay key from an unsigned id; a claim before the signature is verified.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_04_the_replay_key_is_unsigned_or_claimed_too_early() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    // Forged copies first: they must not take the place of the genuine event.
    for _ in 0..5 {
        let forged = Post::new("/github", "{\"n\":1}").header("x-hub-signature-256", &sign::github(b"other").1).header("x-github-delivery", "one");
        assert_eq!(forged.send(&gate).await.status, 401);
    }
    let genuine = Post::github("{\"n\":1}").header("x-github-delivery", "one").send(&gate).await;
    assert_eq!((genuine.status.as_u16(), genuine.header("hooklatch-duplicate")), (200, ""));
    for n in 0..10 {
        let copy = Post::github("{\"n\":1}").header("x-github-delivery", &format!("another-{n}")).send(&gate).await;
        assert_eq!(copy.header("hooklatch-duplicate"), "true", "a changed delivery id makes no new event");
    }
    assert_eq!(receiver.count(), 1);
    // The same id over another body is another event.
    assert_eq!(Post::github("{\"n\":2}").header("x-github-delivery", "one").send(&gate).await.header("hooklatch-duplicate"), "");
    assert_eq!(receiver.count(), 2);
}

/// 5. Signature headers read twice, or in two ways.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_05_signature_headers_are_read_in_two_ways() {
    let receiver = Receiver::start().await;
    let url = receiver.url("/");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let policy = format!(
        r#"
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
[routes.stripe]
path = "/stripe"
verify = {{ provider = "stripe", secret = "literal:{secret}" }}
deliver = "{url}"
[routes.standard]
path = "/standard"
verify = {{ provider = "standardwebhooks", secret = "literal:{secret}" }}
deliver = "{url}"
"#
    );
    let gate = Setup::new(policy).start().await;
    let body = "{\"n\":1}";
    let good = sign::github(body.as_bytes()).1;
    let bad = sign::github(b"other").1;
    let time = unix_now();
    let old = time - 3600;
    let mac = |time: u64| {
        let headers = sign::python("stripe", secret, time, "", body.as_bytes());
        headers[0].1.split_once("v1=").expect("stripe's form").1.to_owned()
    };
    let (fresh, stale) = (mac(time), mac(old));
    let stripe = |value: String| Post::new("/stripe", body).header("stripe-signature", &value);
    let standard = |id: &str, time: u64, signed_id: &str, signed_time: u64| {
        let headers = sign::python("standardwebhooks", secret, signed_time, signed_id, body.as_bytes());
        let signature = &headers.iter().find(|(name, _)| name == "webhook-signature").expect("signed").1;
        Post::new("/standard", body).header("webhook-id", id).header("webhook-timestamp", &time.to_string()).header("webhook-signature", signature)
    };
    for (what, post) in [
        ("two signature headers, bad first", Post::new("/github", body).header("x-hub-signature-256", &bad).header("x-hub-signature-256", &good)),
        ("two signature headers, good first", Post::new("/github", body).header("x-hub-signature-256", &good).header("x-hub-signature-256", &bad)),
        ("t twice, the signed one is old", stripe(format!("t={time},t={old},v1={stale}"))),
        ("t twice, the signed one is old and first", stripe(format!("t={old},t={time},v1={stale}"))),
        ("an old t", stripe(format!("t={old},v1={stale}"))),
        ("a fresh t over an old signature", stripe(format!("t={time},v1={stale}"))),
        ("a t with a sign", stripe(format!("t=+{time},v1={fresh}"))),
        ("a t with a blank", stripe(format!("t= {time},v1={fresh}"))),
        ("no t", stripe(format!("v1={fresh}"))),
        ("only the old scheme", stripe(format!("t={time},v0={fresh}"))),
        ("two headers, freshness in one, the MAC in the other", stripe(format!("t={time}")).header("stripe-signature", &format!("t={old},v1={stale}"))),
        ("a time that another header signs", standard("msg_1", time, "msg_1", old)),
        ("a dot moved from the id into the time", standard("msg", time, &format!("msg.{time}"), time)),
        ("an id with a dot that another split signs", standard(&format!("msg.{time}"), time, "msg", time)),
        ("an empty id", standard("", time, "", time)),
        ("the secret as the signature", Post::new("/github", body).header("x-hub-signature-256", &format!("sha256={}", sign::SECRET))),
    ] {
        let answer = post.send(&gate).await;
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
    }
    assert_eq!(receiver.count(), 0);
    assert_eq!(stripe(format!("t={time},v1={fresh}")).send(&gate).await.status, 200);
    assert_eq!(standard("msg_1", time, "msg_1", time).send(&gate).await.status, 200);
}

/// 6. Addresses: mapped IPv4, left-most X-Forwarded-For, a second header beside the proxy's, underscore twins, keys that grow.
/// The tables stand in `client_address`; here is what joins them: keyed state stays bounded.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_06_per_address_state_grows_for_ever() {
    let receiver = Receiver::start().await;
    let setup = Setup::github(&receiver, "rate_limit = [{ per = \"ip\", rate = \"100/s\" }]\nverify_failures = { per = \"ip\", rate = \"100/m\" }");
    let gate = setup.plain().server("client_ip = \"x-forwarded-for\"\ntrusted_proxies = [\"127.0.0.0/8\"]").start().await;
    let gate = Arc::new(gate);
    let flood = |from: u32, count: u32| {
        let mut senders = JoinSet::new();
        for lane in 0..8 {
            let gate = gate.clone();
            senders.spawn(async move {
                let mut client = Client::connect(&gate, Protocol::Http1).await;
                for n in (from + lane..from + count).step_by(8) {
                    // Every address its own /64.
                    let address = format!("2001:db8:{:x}:{:x}::1", n >> 16, n & 0xffff);
                    let answer = client.send(&Post::new("/github", "").header("x-forwarded-for", &address)).await;
                    assert_eq!(answer.status, 401);
                }
            });
        }
        senders
    };
    flood(0, 2_000).join_all().await;
    let before = gate.memory();
    flood(2_000, 20_000).join_all().await;
    let grown = gate.memory().saturating_sub(before);
    assert!(grown < 20 << 10, "20,000 addresses cost {grown} KiB");
    assert_eq!(receiver.count(), 0);
}

/// 7. Buffering: chunked and HTTP/2 bodies that do not count, whole answers held for slow readers.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_07_bodies_are_buffered_uncounted() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "limits = { body = \"1MiB\" }").plain().limits("buffered_bytes = \"1MiB\"\nbody = \"1MiB\"").start().await;
    let filler = "x".repeat(600 << 10);
    let head = |more: &str| format!("POST /github HTTP/1.1\r\nHost: localhost\r\nX-Hub-Signature-256: sha256={}\r\n{more}\r\n", "0".repeat(64));
    // 600 KiB of an unfinished chunked body, held.
    let mut first = Wire::connect(gate.address()).await;
    first.send(format!("{}{:x}\r\n{filler}\r\n", head("Transfer-Encoding: chunked\r\n"), filler.len()).as_bytes()).await;
    until("the first body to be counted", || async { (gate.metric("hooklatch_buffered_bytes").await >= 500_000.0).then_some(()) }).await;
    for more in [format!("Content-Length: {}\r\n", 700 << 10), "Transfer-Encoding: chunked\r\n".to_owned()] {
        let mut second = Wire::connect(gate.address()).await;
        second.send(head(&more).as_bytes()).await;
        if more.starts_with('T') {
            second.send(format!("{:x}\r\n{filler}\r\n", filler.len()).as_bytes()).await;
        } else {
            second.send(filler.as_bytes()).await;
        }
        let reply = second.reply().await.expect("an answer");
        assert_eq!(reply.status, 503, "{more:?}: {reply:?}");
        assert!(reply.header("retry-after").is_some() && tools::text(&reply.body).contains("overloaded"), "{reply:?}");
    }
    drop(first);
    until("the bytes to be given back", || async { (gate.metric("hooklatch_buffered_bytes").await == 0.0).then_some(()) }).await;
    assert_eq!(Post::github("{}").send(&gate).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistake_07_http2_bodies_are_counted_too() {
    let receiver = Receiver::start().await;
    let gate = Arc::new(Setup::github(&receiver, "limits = { body = \"1MiB\" }").limits("buffered_bytes = \"1MiB\"\nbody = \"1MiB\"").start().await);
    let mut frames = Frames::connect(&gate).await;
    let signature = format!("sha256={}", "0".repeat(64));
    let mut held = Vec::new();
    // As much as the connection's first window lets through (65,535 bytes); none of the streams ends.
    for n in 0..4 {
        held.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &post("/github", &[("x-hub-signature-256", &signature)])));
        held.extend(frame(DATA, 0, 2 * n + 1, &[b'x'; 16_000]));
    }
    tokio::spawn(async move {
        frames.send(&held).await;
        frames.read_all(crate::support::PATIENCE).await
    });
    until("the bodies to be counted", || async { (gate.metric("hooklatch_buffered_bytes").await > 32_000.0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistake_07_answers_for_slow_readers_are_bounded() {
    let big = Arc::new({
        let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20).into_bytes();
        bytes.resize(bytes.len() + (64 << 20), b'x');
        bytes
    });
    let receiver = Receiver::acting(move |_| Act::RawThenClose(big.to_vec())).await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    let before = gate.memory();
    let mut slow = Vec::new();
    for n in 0..8 {
        let body = format!("{{\"n\":{n}}}");
        let (name, signature) = sign::github(body.as_bytes());
        let mut wire = Wire::connect(gate.address()).await;
        wire.send(format!("POST /github HTTP/1.1\r\nHost: localhost\r\n{name}: {signature}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        slow.push(wire);
    }
    receiver.arrived(8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = gate.memory().saturating_sub(before);
    assert!(grown < 100 << 10, "8 answers of 64 MiB for readers that do not read cost {grown} KiB");
}

/// 8. A POST on a stale kept connection fails or is sent twice. (Floods of 1xx and endless bodies: `delivery`.)
#[tokio::test(flavor = "multi_thread")]
async fn mistake_08_a_stale_connection_fails_a_post_or_sends_it_twice() {
    // Every connection answers once, then reads the next request and dies without a word.
    let receiver = Receiver::acting(|seen| if seen.header("x-die").is_empty() { Act::Answer(200, "ok") } else { Act::Close }).await;
    let gate = Setup::github(&receiver, "").server("workers = 1").start().await;
    assert_eq!(Post::github("{\"n\":0}").send(&gate).await.status, 200);
    // This one is read in full and then dropped, on the kept connection: sent once more on a fresh one, and no third time.
    let answer = Post::github("{\"n\":1}").header("x-die", "1").send(&gate).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    let attempts = receiver.seen().iter().filter(|seen| seen.has("x-die")).count();
    assert!(attempts <= 2, "sent {attempts} times");
    for n in 2..20 {
        assert_eq!(Post::github(format!("{{\"n\":{n}}}")).send(&gate).await.status, 200);
    }
    assert_eq!(receiver.seen().iter().filter(|seen| !seen.has("x-die")).count(), 19, "the others arrived once each");
}

/// 9. Recursion and panics: deep JSON and TOML, odd bytes in header values, an accept loop that spins without descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn mistake_09_odd_input_panics_or_recurses() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "validate = { content_types = [\"application/json\"], max_depth = 64 }").plain().start().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
        assert_eq!(Post::github(deep).send(&gate).await.verdict(), (400, "not_json".to_owned()));
    }
    let (name, signature) = sign::github(b"{}");
    for byte in [0x80, 0xc3, 0xff_u8] {
        for field in [
            "X-GitHub-Event",
            "X-GitHub-Delivery",
            "User-Agent",
            "Content-Type",
            "X-Hub-Signature-256",
            "X-Forwarded-For",
            "Forwarded",
            "Host",
            "Accept",
            "Idempotency-Key",
        ] {
            let mut wire = Wire::connect(gate.address()).await;
            let mut bytes =
                format!("POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n{name}: {signature}\r\n{field}: a").into_bytes();
            bytes.extend([byte, b'b']);
            bytes.extend(b"\r\n\r\n{}");
            wire.send(&bytes).await;
            let reply = wire.reply().await;
            assert!(reply.as_ref().is_some_and(|reply| reply.status < 500), "{field} with {byte:#x}: {reply:?}\n{}", gate.log());
        }
    }
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn mistake_09_a_deep_policy_overflows_the_stack() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in [
        ("arrays", format!("x = {}", "[".repeat(100_000))),
        ("tables", format!("x = {}", "{a=".repeat(100_000))),
        ("keys", format!("{} = 1", vec!["a"; 100_000].join("."))),
        ("headings", format!("[{}]", vec!["a"; 100_000].join("."))),
        (
            "condition",
            format!("[routes.a]\npath = \"/a\"\nverify = \"none\"\ndeliver = [{{ when = \"{}1\", to = \"http://localhost/\" }}]", "1+".repeat(50_000)),
        ),
        (
            "brackets in a condition",
            format!(
                "[routes.a]\npath = \"/a\"\nverify = \"none\"\ndeliver = [{{ when = \"{}1{}\", to = \"http://localhost/\" }}]",
                "(".repeat(5_000),
                ")".repeat(5_000)
            ),
        ),
    ] {
        let path = dir.path().join(name).with_extension("toml");
        std::fs::write(&path, text).expect("the folder is ours");
        let out = tools::background(tools::hooklatch(["check".as_ref(), "--config".as_ref(), path.as_os_str()]), Vec::new()).await;
        assert!(matches!(out.status.code(), Some(1 | 2)), "{name}: {}\n{}", out.status, tools::text(&out.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistake_09_the_accept_loop_spins_without_descriptors() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    assert_eq!(Post::github("{\"n\":0}").send(&gate).await.status, 200);
    let limit = |n: usize| {
        let status = tools::program("prlimit").args([format!("--nofile={n}:4096"), format!("--pid={}", gate.pid())]).status();
        assert!(status.expect("prlimit starts").success());
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", gate.pid())).expect("the gate runs").count();
    limit(open + 4);
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(Wire::connect(gate.address()).await);
    }
    let (cpu, lines) = (gate.cpu(), gate.log().lines().count());
    // A spin is seen over a time in which nothing else happens.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (spent, said) = (gate.cpu() - cpu, gate.log().lines().count() - lines);
    assert!(spent < Duration::from_millis(600), "{spent:?} of processor time in two idle seconds");
    assert!(said < 100, "{said} lines of log");
    drop(held);
    limit(1024);
    until("the gate to serve again", || async {
        let mut client = Client::try_connect(&gate, Protocol::Http1, "localhost", None).await.ok()?;
        client.try_send(&Post::github("{\"n\":1}")).await.ok().filter(|answer| answer.status == 200)
    })
    .await;
}

/// 10. Leaks: what was refused, and what was configured, in logs, errors and labels. (The sweep over everything: `secrets`.)
#[tokio::test(flavor = "multi_thread")]
async fn mistake_10_request_data_becomes_a_metric_label() {
    let receiver = Receiver::start().await;
    let gate: Gate = Setup::github(&receiver, "").start().await;
    for n in 0..50 {
        let post = Post::github(format!("{{\"n\":{n}}}")).header("x-github-event", &format!("label-{n}")).header("x-github-delivery", &format!("label-{n}"));
        post.send(&gate).await;
        Post::new(&format!("/label-{n}"), "{}").host(&format!("label-{n}.example")).send(&gate).await;
        Post::new("/github", "{}").method("PATCH").header("user-agent", &format!("label-{n}")).send(&gate).await;
    }
    let metrics = gate.metrics().await;
    assert!(!metrics.contains("label-"), "{metrics}");
}
