//! HTTP/2 by hand-written frames: forms that must not pass, floods that must end. RFC 9113; CVE-2023-44487 (rapid reset),
//! VU#421644 (CONTINUATION), CVE-2019-9515 (SETTINGS), CVE-2019-9518 and RUSTSEC-2026-0258 (empty frames), CVE-2025-8671.

use crate::support::{
    client::{Client, Post, Protocol},
    frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, post},
    gate::{Gate, Setup},
    receiver::Receiver,
    sign,
};

async fn gate() -> (Receiver, Gate) {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").limits("idle_timeout = \"2s\"\nheader_timeout = \"2s\"\nbody_timeout = \"2s\"").start().await;
    (receiver, gate)
}

/// Most frames a flood may bring in before its connection is cut, and how much memory one may cost, in KiB: the allocator (mimalloc) takes
/// it in segments of megabytes for each thread.
const FRAMES: usize = 10_000;
const MEMORY: u64 = 24 << 10;

/// Sends a flood of up to ten times [`FRAMES`]; it is cut, or costs no memory.
async fn check_flood(name: &str, frames_each: usize, flood: impl Fn(usize) -> Vec<u8>) {
    let (receiver, gate) = gate().await;
    let good = |n: u32| Post::github(format!("{{\"good\":{n}}}"));
    assert_eq!(Client::connect(&gate, Protocol::Http2).await.send(&good(0)).await.status, 200);
    let before = gate.memory();
    let sent = Frames::connect(&gate).await.flood(10 * FRAMES / frames_each, flood).await * frames_each;
    let grown = gate.memory().saturating_sub(before);
    assert!(sent < FRAMES || grown < MEMORY, "{name}: {sent} frames taken, {grown} KiB grown");
    assert_eq!(Client::connect(&gate, Protocol::Http2).await.send(&good(1)).await.status, 200, "{name}: the gate still serves");
    assert_eq!(receiver.count(), 2, "{name}");
}

fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).expect("few streams")
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_rapid_resets() {
    let head = post("/github", &[("x-hub-signature-256", &format!("sha256={}", "0".repeat(64)))]);
    check_flood("rapid reset", 2, |n| {
        let mut bytes = frame(HEADERS, END_HEADERS, stream(n), &head);
        bytes.extend(frame(RST_STREAM, 0, stream(n), &8u32.to_be_bytes()));
        bytes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_resets_that_the_gate_is_made_to_send() {
    // A WINDOW_UPDATE of zero is the stream's error: the gate resets it while its work goes on (MadeYouReset).
    let head = post("/github", &[]);
    check_flood("made-you-reset", 2, |n| {
        let mut bytes = frame(HEADERS, END_HEADERS, stream(n), &head);
        bytes.extend(frame(WINDOW_UPDATE, 0, stream(n), &0u32.to_be_bytes()));
        bytes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_continuations() {
    let field = block(&[("x-filler", &"x".repeat(200))]);
    check_flood("CONTINUATION", 1, |n| if n == 0 { frame(HEADERS, 0, 1, &post("/github", &[])) } else { frame(CONTINUATION, 0, 1, &field) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_empty_continuations() {
    check_flood("empty CONTINUATION", 1, |n| if n == 0 { frame(HEADERS, 0, 1, &post("/github", &[])) } else { frame(CONTINUATION, 0, 1, &[]) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_settings() {
    check_flood("SETTINGS", 1, |_| frame(SETTINGS, 0, 0, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_pings() {
    check_flood("PING", 1, |_| frame(PING, 0, 0, &[0; 8])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_empty_data() {
    let signature = ("x-hub-signature-256", format!("sha256={}", "0".repeat(64)));
    let head = post("/github", &[(signature.0, &signature.1)]);
    check_flood("empty DATA", 1, |n| if n == 0 { frame(HEADERS, END_HEADERS, 1, &head) } else { frame(DATA, 0, 1, &[]) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_one_byte_data() {
    let signature = ("x-hub-signature-256", format!("sha256={}", "0".repeat(64)));
    let head = post("/github", &[(signature.0, &signature.1)]);
    check_flood("one-byte DATA", 1, |n| if n == 0 { frame(HEADERS, END_HEADERS, 1, &head) } else { frame(DATA, 0, 1, b"x") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_window_updates() {
    check_flood("WINDOW_UPDATE", 1, |_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_streams_that_never_end() {
    let head = post("/github", &[]);
    check_flood("open streams", 1, |n| frame(HEADERS, END_HEADERS, stream(n), &head)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_table_sizes() {
    // Each SETTINGS changes HEADER_TABLE_SIZE.
    check_flood("table sizes", 1, |n| frame(SETTINGS, 0, 0, &[0, 1, 0, 0, u8::try_from(n % 256).expect("a byte"), 0])).await;
}

/// A request whose headers are `fields`, with a signature that fits its body `{}`: only its form may refuse it.
async fn form(gate: &Gate, fields: &[(&str, &str)]) -> Vec<(u8, u32, Vec<u8>)> {
    let (name, value) = sign::github(b"{}");
    let mut all = fields.to_vec();
    all.push((name, &value));
    let mut frames = Frames::connect(gate).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&all));
    bytes.extend(frame(DATA, END_STREAM, 1, b"{}"));
    frames.send(&bytes).await;
    frames.read_until(|kind, _| matches!(kind, HEADERS | RST_STREAM | GOAWAY)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused() {
    let (receiver, gate) = gate().await;
    let sound = [(":method", "POST"), (":scheme", "https"), (":path", "/github"), (":authority", "localhost")];
    let frames = form(&gate, &sound).await;
    assert!(frames.iter().any(|(kind, stream, _)| (*kind, *stream) == (HEADERS, 1)), "the sound form is answered");
    assert_eq!(receiver.count(), 1, "the sound form passes");

    let swap = |n: usize, field: (&'static str, &'static str)| {
        let mut fields = sound.to_vec();
        fields[n] = field;
        fields
    };
    let drop = |n: usize| {
        let mut fields = sound.to_vec();
        fields.remove(n);
        fields
    };
    let add = |field: (&'static str, &'static str)| {
        let mut fields = sound.to_vec();
        fields.push(field);
        fields
    };
    let late = vec![sound[0], sound[1], sound[2], ("accept", "*/*"), sound[3]];
    for (what, fields) in [
        ("no method", drop(0)),
        ("no scheme", drop(1)),
        ("no path", drop(2)),
        ("an empty path", swap(2, (":path", ""))),
        ("a path without a slash", swap(2, (":path", "github"))),
        ("a blank in the path", swap(2, (":path", "/git hub"))),
        ("a NUL in the path", swap(2, (":path", "/github\0"))),
        ("a line end in the path", swap(2, (":path", "/github\r\nx: y"))),
        ("a user in the authority", swap(3, (":authority", "user@localhost"))),
        ("a blank in the authority", swap(3, (":authority", "local host"))),
        ("an unknown pseudo-header", add((":proto", "x"))),
        ("a response's pseudo-header", add((":status", "200"))),
        ("a pseudo-header twice", add((":path", "/other"))),
        ("a pseudo-header after a field", late),
        ("upper case in a name", add(("X-Upper", "y"))),
        ("a blank in a name", add(("x y", "z"))),
        ("an empty name", add(("", "z"))),
        ("Connection", add(("connection", "close"))),
        ("Transfer-Encoding", add(("transfer-encoding", "chunked"))),
        ("Keep-Alive", add(("keep-alive", "1"))),
        ("Proxy-Connection", add(("proxy-connection", "x"))),
        ("Upgrade", add(("upgrade", "websocket"))),
        ("TE that is no trailers", add(("te", "gzip"))),
        ("a line end in a value", add(("x", "a\r\ny: z"))),
        ("a NUL in a value", add(("x", "a\0b"))),
        ("a length that is too small", add(("content-length", "1"))),
        ("a length that is too large", add(("content-length", "3"))),
        ("a length that is no number", add(("content-length", "x"))),
        ("two lengths", {
            let mut fields = add(("content-length", "2"));
            fields.push(("content-length", "3"));
            fields
        }),
        ("a Host that differs", add(("host", "other.example"))),
        ("CONNECT", swap(0, (":method", "CONNECT"))),
    ] {
        let frames = form(&gate, &fields).await;
        assert_eq!(receiver.count(), 1, "{what} passed");
        let answered = frames.iter().any(|(kind, ..)| matches!(*kind, HEADERS | RST_STREAM | GOAWAY));
        assert!(answered, "{what}: refused without a word: {frames:?}");
    }
    assert_eq!(Post::github("{\"n\":1}").send(&gate).await.status, 200, "the gate still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_out_of_order_end_the_connection() {
    let (receiver, gate) = gate().await;
    let head = post("/github", &[]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("DATA on a stream that is idle", frame(DATA, END_STREAM, 1, b"x")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &head)),
        ("HEADERS on an even stream", frame(HEADERS, END_HEADERS, 2, &head)),
        ("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &head)),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ("SETTINGS of odd length", frame(SETTINGS, 0, 0, &[0, 1, 0])),
        ("a SETTINGS acknowledgement with a payload", frame(SETTINGS, 1, 0, &[0; 6])),
        ("a PING of odd length", frame(PING, 0, 0, &[0; 7])),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("a WINDOW_UPDATE of zero on the connection", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window beyond its limit", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 1 << 20])),
        ("a broken header block", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 40])),
        ("streams out of order", [frame(HEADERS, END_HEADERS, 5, &head), frame(HEADERS, END_HEADERS, 3, &head)].concat()),
        ("a frame between HEADERS and CONTINUATION", [frame(HEADERS, 0, 1, &head), frame(PING, 0, 0, &[0; 8])].concat()),
        ("PUSH_PROMISE from a client", frame(5, END_HEADERS, 1, &head)),
    ];
    for (what, bytes) in cases {
        let mut frames = Frames::connect(&gate).await;
        frames.send(&bytes).await;
        let got = frames.read_until(|kind, _| kind == GOAWAY).await;
        assert!(got.iter().any(|(kind, ..)| *kind == GOAWAY), "{what}: no GOAWAY in {got:?}");
    }
    assert_eq!(receiver.count(), 0);
    assert_eq!(Post::github("{}").send(&gate).await.status, 200, "the gate still serves");
}

/// 400 connections of random frames: whatever happens to them, the gate serves on.
#[tokio::test(flavor = "multi_thread")]
async fn random_frames_do_no_harm() {
    let (receiver, gate) = gate().await;
    let mut state = 88_172_645_463_325_252_u64;
    let mut noise = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let byte = |n: u64| u8::try_from(n).expect("a byte");
    for _ in 0..400 {
        let mut frames = Frames::connect(&gate).await;
        let mut bytes = Vec::new();
        for _ in 0..8 {
            let payload: Vec<u8> = (0..noise(64)).map(|_| byte(noise(256))).collect();
            let stream = u32::try_from(noise(8)).expect("small");
            bytes.extend(frame(byte(noise(12)), byte(noise(256)), stream, &payload));
        }
        frames.send(&bytes).await;
    }
    assert_eq!(receiver.count(), 0);
    assert_eq!(Post::github("{}").send(&gate).await.status, 200);
    assert_eq!(Client::connect(&gate, Protocol::Http2).await.send(&Post::github("{\"n\":1}")).await.status, 200);
}
