//! Request framing: what two parsers could read differently. RFC 9110 and 9112.
//!
//! The route verifies nothing, so that only the parsing stands between a form and the receiver. Every body starts with `=` and
//! every smuggled request asks for `/smuggled`: if the receiver ever sees that, or a body that the form's own framing does not
//! give, the gate and the sender's side disagreed.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::support::{
    gate::{Gate, Setup},
    receiver::Receiver,
    wire::{Reply, Wire},
};

async fn open_gate() -> (Receiver, Gate) {
    let receiver = Receiver::start().await;
    let policy = format!("[routes.open]\npath = \"/open\"\nmethods = [\"POST\"]\nverify = \"none\"\ndeliver = \"{}\"\n", receiver.url("/in"));
    let limits = "header_timeout = \"1s\"\nbody_timeout = \"1s\"\nidle_timeout = \"1s\"\nheader_bytes = \"16KiB\"\n";
    let gate = Setup::new(policy).plain().limits(limits).start().await;
    (receiver, gate)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    /// RFC 9112 demands refusal, or leaves it to us and we refuse: nothing is forwarded.
    Refused,
    /// Taken or refused, but read in one way only.
    Either,
    /// Taken: this many requests are forwarded.
    Taken(usize),
}

/// A second request that must never be read out of the first one's body.
const SMUGGLED: &str = "POST /smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=x";

fn with(headers: &str, body: &str) -> String {
    format!("POST /open HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}")
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn forms() -> Vec<(String, Vec<u8>, Want)> {
    use Want::{Either, Refused, Taken};
    let mut forms: Vec<(String, Vec<u8>, Want)> = Vec::new();
    let mut add = |name: &str, bytes: String, want: Want| forms.push((name.to_owned(), bytes.into_bytes(), want));
    let chunk_smuggle = format!("0\r\n\r\n{SMUGGLED}");

    // -- sound ones --
    add("plain", with("Content-Length: 2\r\n", "=a"), Taken(1));
    add("no body", with("Content-Length: 0\r\n", ""), Taken(1));
    add("chunked", with("Transfer-Encoding: chunked\r\n", "2\r\n=a\r\n0\r\n\r\n"), Taken(1));
    add("chunked, letter case", with("transfer-ENCODING: Chunked\r\n", "2\r\n=a\r\n0\r\n\r\n"), Taken(1));
    add("chunks", with("Transfer-Encoding: chunked\r\n", "1\r\n=\r\n1\r\na\r\n0\r\n\r\n"), Taken(1));
    add("leading zeros in a chunk size", with("Transfer-Encoding: chunked\r\n", "0002\r\n=a\r\n0\r\n\r\n"), Taken(1));
    add("upper-case hexadecimal", with("Transfer-Encoding: chunked\r\n", "A\r\n=123456789\r\n0\r\n\r\n"), Taken(1));
    add("two in a pipeline", format!("{}{}", with("Content-Length: 2\r\n", "=a"), with("Content-Length: 2\r\n", "=b")), Taken(2));
    add("an empty line first", format!("\r\n{}", with("Content-Length: 2\r\n", "=a")), Either);
    add("blanks around the length", with("Content-Length: \t 2 \t\r\n", "=a"), Taken(1));

    // -- two lengths --
    for (name, headers) in [
        ("two lengths that differ", "Content-Length: 2\r\nContent-Length: 3\r\n"),
        ("two lengths that differ in one field", "Content-Length: 2, 3\r\n"),
        ("lengths that differ in letter case", "content-length: 3\r\nCONTENT-LENGTH: 2\r\n"),
        ("a length and an empty one", "Content-Length: 2\r\nContent-Length:\r\n"),
    ] {
        add(name, with(headers, "=a"), Refused);
    }
    add("one length twice", with("Content-Length: 2\r\nContent-Length: 2\r\n", "=a"), Either);
    add("one length twice in one field", with("Content-Length: 2, 2\r\n", "=a"), Either);

    // -- lengths that are no numbers --
    for value in [
        "+2",
        "-2",
        "-0",
        "2.0",
        "0x2",
        "2 2",
        "2,",
        ",2",
        "2;",
        "\"2\"",
        "2a",
        "a",
        "",
        "1e1",
        "\u{0662}",
        "18446744073709551616",
        "18446744073709551618",
        "99999999999999999999999999",
        "0b10",
        "2\u{b}",
        "2_0",
        "%32",
    ] {
        add(&format!("length {value:?}"), with(&format!("Content-Length: {value}\r\n"), "=a"), Refused);
    }
    add("length 02", with("Content-Length: 02\r\n", "=a"), Either);

    // -- a length and a coding --
    add("length, then chunked", with(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", chunk_smuggle.len()), &chunk_smuggle), Either);
    add("chunked, then length", with(&format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", chunk_smuggle.len()), &chunk_smuggle), Either);
    add("chunked and a short length", with("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "2\r\n=a\r\n0\r\n\r\n"), Either);

    // -- codings that hide or half-hide `chunked` --
    for value in [
        "chunked, identity",
        "identity, chunked",
        "gzip",
        "identity",
        "chunked, chunked",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "\"chunked\"",
        "chunk",
        "cow",
        "chunked, cow",
        "",
        ",",
        "chunked\u{b}",
        "\u{b}chunked",
        "ch\u{443}nked",
        "chunked\u{0}",
        "x-chunked",
        "chunked/1",
        "deflate, gzip",
        "chunked, gzip",
    ] {
        let headers = format!("Transfer-Encoding: {value}\r\nContent-Length: {}\r\n", chunk_smuggle.len());
        add(&format!("coding {value:?}"), with(&headers, &chunk_smuggle), Refused);
    }
    for value in ["gzip, chunked", "chunked,", ",chunked", "chunked "] {
        add(&format!("coding {value:?}, alone"), with(&format!("Transfer-Encoding: {value}\r\n"), "2\r\n=a\r\n0\r\n\r\n"), Either);
    }
    add("two coding fields", with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunk_smuggle), Either);
    add("two coding fields, the last is no chunked", with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &chunk_smuggle), Refused);
    add("two coding fields, the first is no chunked", with("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "2\r\n=a\r\n0\r\n\r\n"), Either);

    // -- field names that some parsers repair --
    for (name, header) in [
        ("a blank before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a blank before the name", " Transfer-Encoding: chunked\r\n"),
        ("a folded value", "Transfer-Encoding:\r\n chunked\r\n"),
        ("a folded length", "Content-Length:\r\n 5\r\n"),
        ("a NUL in the name", "Transfer\u{0}-Encoding: chunked\r\n"),
        ("a vertical tab before the name", "\u{b}Transfer-Encoding: chunked\r\n"),
        ("brackets in the name", "Transfer[Encoding]: chunked\r\n"),
        ("no name", ": chunked\r\n"),
        ("no colon", "Transfer-Encoding chunked\r\n"),
        ("a carriage return in the name", "X: y\rTransfer-Encoding: chunked\r\n"),
        ("a carriage return in a value", "X: a\rb\r\n"),
        ("a NUL in a value", "X: a\u{0}b\r\n"),
        ("a quote in the name", "\"Transfer-Encoding\": chunked\r\n"),
        ("letters beyond ASCII in the name", "Tr\u{e4}nsfer: x\r\n"),
    ] {
        add(name, with(&format!("{header}Content-Length: {}\r\n", chunk_smuggle.len()), &chunk_smuggle), Refused);
    }
    add(
        "an underscore twin",
        with(&format!("Transfer_Encoding: chunked\r\nContent-Length: {}\r\n", chunk_smuggle.len()), &format!("={chunk_smuggle}")[..chunk_smuggle.len()]),
        Either,
    );

    // -- line ends --
    add("bare line feeds", "POST /open HTTP/1.1\nHost: localhost\nContent-Length: 2\n\n=a".to_owned(), Either);
    add("a bare line feed between fields", "POST /open HTTP/1.1\r\nHost: localhost\nContent-Length: 2\r\n\r\n=a".to_owned(), Either);
    add("bare carriage returns", "POST /open HTTP/1.1\rHost: localhost\rContent-Length: 2\r\r=a".to_owned(), Refused);
    add("two carriage returns", "POST /open HTTP/1.1\r\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=a".to_owned(), Refused);

    // -- chunks --
    let chunked = |body: &str| with("Transfer-Encoding: chunked\r\n", body);
    for (name, body) in [
        ("a size with a sign", "+2\r\n=a\r\n0\r\n\r\n"),
        ("a negative size", "-2\r\n=a\r\n0\r\n\r\n"),
        ("a size with 0x", "0x2\r\n=a\r\n0\r\n\r\n"),
        ("a size that is no number", "z\r\n=a\r\n0\r\n\r\n"),
        ("an empty size", "\r\n=a\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", "10000000000000002\r\n=a\r\n0\r\n\r\n"),
        ("a size of many digits", "ffffffffffffffffffffffffffffffffff\r\n=a\r\n0\r\n\r\n"),
        ("a blank before the size", " 2\r\n=a\r\n0\r\n\r\n"),
        ("a size with an underscore", "0_2\r\n=a\r\n0\r\n\r\n"),
        ("data that is longer than its size", "2\r\n=abc\r\n0\r\n\r\n"),
        ("data without its line end", "2\r\n=a0\r\n\r\n"),
        ("a size with a decimal point", "2.0\r\n=a\r\n0\r\n\r\n"),
        ("a carriage return in an extension", "2;a\rb\r\n=a\r\n0\r\n\r\n"),
    ] {
        add(&format!("chunk: {name}"), chunked(body), Refused);
    }
    add("chunk: a blank after the size", chunked("2 \r\n=a\r\n0\r\n\r\n"), Either);
    add("chunk: an extension", chunked("2;name=value\r\n=a\r\n0\r\n\r\n"), Either);
    add("chunk: a quoted extension", chunked("2;name=\"a;b\"\r\n=a\r\n0\r\n\r\n"), Either);
    add("chunk: a line feed in an extension", chunked("2;a\nb\r\n=a\r\n0\r\n\r\n"), Either);
    add("chunk: bare line feeds", chunked("2\n=a\n0\n\n"), Either);
    add("chunk: a very long extension", chunked(&format!("2;{}\r\n=a\r\n0\r\n\r\n", "x".repeat(70_000))), Either);
    add("chunk: a trailer", chunked("2\r\n=a\r\n0\r\nX-Trailer: 1\r\n\r\n"), Either);
    add("chunk: a trailer with a length", chunked("2\r\n=a\r\n0\r\nContent-Length: 99\r\n\r\n"), Either);
    add("chunk: a trailer with a coding", chunked("2\r\n=a\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), Either);
    add("chunk: cut in the data", chunked("5\r\n=a"), Refused);
    add("chunk: cut before the end", chunked("2\r\n=a\r\n"), Refused);
    add("a body cut short", with("Content-Length: 5\r\n", "=a"), Refused);

    // -- request line --
    for (name, line) in [
        ("no version", "POST /open"),
        ("HTTP/0.9", "POST /open HTTP/0.9"),
        ("HTTP/1.2", "POST /open HTTP/1.2"),
        ("HTTP/2.0", "POST /open HTTP/2.0"),
        ("HTTP/1.1 in lower case", "POST /open http/1.1"),
        ("a version with a blank", "POST /open HTTP/ 1.1"),
        ("a version of more digits", "POST /open HTTP/1.10"),
        ("three words", "POST /open x HTTP/1.1"),
        ("no target", "POST HTTP/1.1"),
        ("a target without a slash", "POST open HTTP/1.1"),
        ("a NUL in the target", "POST /open\u{0} HTTP/1.1"),
        ("a fragment", "POST /open#x HTTP/1.1"),
        ("an asterisk", "POST * HTTP/1.1"),
        ("a method with a colon", "PO:ST /open HTTP/1.1"),
        ("no method", " /open HTTP/1.1"),
        ("CONNECT", "CONNECT localhost:80 HTTP/1.1"),
        ("another host in the target", "POST http://other.example/open HTTP/1.1"),
        ("a user in the target", "POST http://user@localhost/open HTTP/1.1"),
        ("backslashes", "POST \\open HTTP/1.1"),
        ("a tab between the words", "POST\t/open\tHTTP/1.1"),
    ] {
        let want = if name == "HTTP/1.2" { Either } else { Refused };
        add(&format!("line: {name}"), format!("{line}\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=a"), want);
    }
    add("line: HTTP/1.0", "POST /open HTTP/1.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=a".to_owned(), Either);
    add(
        "line: HTTP/1.0 and chunked",
        format!("POST /open HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n{chunk_smuggle}", chunk_smuggle.len()),
        Refused,
    );
    add("line: the target in full", "POST http://localhost/open HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=a".to_owned(), Either);

    // -- Host --
    for (name, hosts) in [
        ("none", ""),
        ("two", "Host: localhost\r\nHost: other.example\r\n"),
        ("the same twice", "Host: localhost\r\nHost: localhost\r\n"),
        ("a list", "Host: localhost, other.example\r\n"),
        ("a path", "Host: localhost/x\r\n"),
        ("a user", "Host: user@localhost\r\n"),
        ("a blank", "Host: local host\r\n"),
        ("a port that is no number", "Host: localhost:http\r\n"),
        ("an open bracket", "Host: [::1\r\n"),
    ] {
        add(&format!("host: {name}"), format!("POST /open HTTP/1.1\r\n{hosts}Content-Length: 2\r\n\r\n=a"), Refused);
    }

    // -- size --
    add("a field line that is too long", with(&format!("X: {}\r\nContent-Length: 2\r\n", "x".repeat(20_000)), "=a"), Refused);
    add("a target that is too long", format!("POST /open?{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n=a", "x".repeat(20_000)), Refused);
    add("too many fields", with(&format!("{}Content-Length: 2\r\n", "X: y\r\n".repeat(2_000)), "=a"), Refused);
    add("an upgrade", with("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n", "=a"), Either);
    add(
        "an upgrade to h2c",
        with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 2\r\n", "=a"),
        Either,
    );
    add("a field that Connection names", with("Connection: content-length\r\nContent-Length: 2\r\n", "=a"), Either);
    forms
}

/// Sends the bytes, ends our side, reads what comes.
async fn replies(gate: &Gate, bytes: &[u8]) -> Vec<Reply> {
    let mut wire = Wire::connect(gate.address()).await;
    wire.send(bytes).await;
    wire.finish().await;
    wire.replies().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wire_form_is_read_one_way_or_refused() {
    let (receiver, gate) = open_gate().await;
    let forms = forms();
    assert!(forms.len() >= 110, "{} forms", forms.len());
    let mut failures = Vec::new();
    for (name, bytes, want) in &forms {
        let before = receiver.count();
        let replies = replies(&gate, bytes).await;
        let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
        let seen = receiver.seen().split_off(before);
        let mut fail = |why: &str| {
            failures
                .push(format!("{name}: {why}; answers {statuses:?}, forwarded {:?}", seen.iter().map(|s| (&s.target, tools_text(&s.body))).collect::<Vec<_>>()))
        };
        if statuses.iter().any(|status| *status >= 500) {
            fail("a 5xx answer");
        }
        if seen.iter().any(|seen| seen.target != "/in" || !(seen.body.is_empty() || seen.body.starts_with(b"="))) {
            fail("something was smuggled");
        }
        match want {
            Want::Refused if !seen.is_empty() => fail("forwarded"),
            Want::Refused if statuses.iter().any(|status| *status < 400) => fail("not refused"),
            Want::Taken(count) if seen.len() != *count || statuses != vec![200; *count] => fail("not taken"),
            Want::Either if seen.len() > 1 => fail("one request became several"),
            _ => {}
        }
    }
    assert!(failures.is_empty(), "{} of {} forms:\n{}", failures.len(), forms.len(), failures.join("\n"));
}

fn tools_text(bytes: &[u8]) -> String {
    crate::support::tools::text(&bytes[..bytes.len().min(40)])
}

/// A small generator of repeatable noise (xorshift64*), so that a failure can be run again.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % below
    }
}

fn mutated(noise: &mut Noise, forms: &[(String, Vec<u8>, Want)]) -> Vec<u8> {
    const PIECES: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"\xff",
        b"\x80",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"%2e%2e/",
        b"\r\n\r\n",
    ];
    let mut bytes = forms[noise.next(forms.len())].1.clone();
    bytes.truncate(4096);
    for _ in 0..=noise.next(4) {
        let at = noise.next(bytes.len().max(1));
        match noise.next(5) {
            0 if !bytes.is_empty() => bytes[at] = u8::try_from(noise.next(256)).expect("a byte"),
            1 if !bytes.is_empty() => {
                bytes.remove(at);
            }
            2 => bytes.truncate(at),
            3 if !bytes.is_empty() => {
                let end = (at + 1 + noise.next(40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let piece = PIECES[noise.next(PIECES.len())];
                let at = at.min(bytes.len());
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_wire_forms_bring_no_5xx_and_smuggle_nothing() {
    let (receiver, gate) = open_gate().await;
    let gate = Arc::new(gate);
    let forms = forms();
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let mut running = JoinSet::new();
    for _ in 0..1500 {
        let bytes = mutated(&mut noise, &forms);
        let gate = gate.clone();
        running.spawn(async move {
            let replies = replies(&gate, &bytes).await;
            assert!(replies.iter().all(|reply| reply.status < 500), "{:?} for {:?}", replies, tools_text(&bytes));
        });
        while running.len() >= 16 {
            running.join_next().await.expect("some are running").expect("no form brings a 5xx");
        }
    }
    while let Some(done) = running.join_next().await {
        done.expect("no form brings a 5xx");
    }
    // A mutation may well turn the smuggled request into one of its own; then it asks for a path that has no route.
    assert!(receiver.seen().iter().all(|seen| seen.target == "/in"), "{:?}", receiver.seen());
    assert_eq!(replies(&gate, with("Content-Length: 2\r\n", "=a").as_bytes()).await[0].status, 200, "the gate still serves");
}
