//! Who is asking: one believed source, counted from the right; everything else that claims an address is removed.

use crate::support::{
    gate::{Gate, Setup},
    receiver::{Receiver, Seen},
    sign,
    wire::Wire,
};

/// A gate that lets only 192.0.2.0/24 and 2001:db8:1::/48 pass, and believes `client_ip` of proxies on loopback and in 10.0.0.0/8.
async fn gate(client_ip: &str) -> (Receiver, Gate) {
    let receiver = Receiver::start().await;
    let server = format!("client_ip = \"{client_ip}\"\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let route = "allow_ips = [\"192.0.2.0/24\", \"2001:db8:1::/48\"]";
    let gate = Setup::github(&receiver, route).plain().server(&server).start().await;
    (receiver, gate)
}

/// Status of a genuine delivery with these header lines, and what the receiver saw of it.
async fn send(gate: &Gate, receiver: &Receiver, n: usize, headers: &str) -> (u16, Option<Seen>) {
    let body = format!("{{\"n\":{n}}}");
    let (name, value) = sign::github(body.as_bytes());
    let before = receiver.count();
    let mut wire = Wire::connect(gate.address()).await;
    let request = format!("POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{name}: {value}\r\n{headers}\r\n{body}", body.len());
    wire.send(request.as_bytes()).await;
    let reply = wire.reply().await.unwrap_or_else(|| panic!("no answer with {headers:?}"));
    (reply.status, receiver.seen().split_off(before).pop())
}

/// No line of `cases` may make the gate believe an allowed address.
async fn check_spoofs(client_ip: &str, cases: &[&str]) {
    let (receiver, gate) = gate(client_ip).await;
    for (n, headers) in cases.iter().enumerate() {
        let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
        let (status, seen) = send(&gate, &receiver, n, &headers).await;
        assert!(matches!(status, 400 | 403), "{client_ip} with {headers:?}: {status}, forwarded {seen:?}");
        assert!(seen.is_none());
    }
}

const NAMES: [&str; 19] = [
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
    "X-Forwarded",
    "Forwarded-For",
    "X-Originating-IP",
    "X-Remote-IP",
    "X-Remote-Addr",
    "X_Forwarded_For",
    "X-Forwarded_For",
    "Client-IP",
    "Via",
    "X-ProxyUser-Ip",
    "X-Azure-ClientIP",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_header_is_believed_where_the_socket_is() {
    let lines: Vec<String> = NAMES.iter().map(|name| format!("{name}: {}", if *name == "Forwarded" { "for=192.0.2.1" } else { "192.0.2.1" })).collect();
    check_spoofs("socket", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x_forwarded_for_is_counted_from_the_right() {
    let others: Vec<String> = NAMES
        .iter()
        .filter(|name| **name != "X-Forwarded-For")
        .map(|name| format!("{name}: {}", if *name == "Forwarded" { "for=192.0.2.1" } else { "192.0.2.1" }))
        .collect();
    check_spoofs("x-forwarded-for", &others.iter().map(String::as_str).collect::<Vec<_>>()).await;
    check_spoofs(
        "x-forwarded-for",
        &[
            "X-Forwarded-For: 192.0.2.1, 203.0.113.9",
            "X-Forwarded-For: 192.0.2.1, 203.0.113.9, 10.0.0.1",
            "X-Forwarded-For: 192.0.2.1,203.0.113.9,10.0.0.1,10.0.0.2",
            "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 203.0.113.9",
            "X-Forwarded-For: 192.0.2.1, 203.0.113.9\r\nX-Forwarded-For: 10.0.0.1",
            "X-Forwarded-For: 192.0.2.1, nonsense",
            "X-Forwarded-For: 192.0.2.1, nonsense, 10.0.0.1",
            "X-Forwarded-For: 192.0.2.1, ,",
            "X-Forwarded-For: 192.0.2.1,",
            "X-Forwarded-For: 192.0.2.1;",
            "X-Forwarded-For: 192.0.2.1 203.0.113.9",
            "X-Forwarded-For: \"192.0.2.1\"x",
            "X-Forwarded-For: for=192.0.2.1",
            "X-Forwarded-For: 192.0.2.1.1",
            "X-Forwarded-For: 192.0.2",
            "X-Forwarded-For: 0300.0.2.1",
            "X-Forwarded-For: 3221225985",
            "X-Forwarded-For: 192.0.2.1%eth0",
            "X-Forwarded-For: ::ffff:203.0.113.9",
            "X-Forwarded-For: unknown",
            "X-Forwarded-For: 192.0.2.1, 2001:db8:2::1",
            "X-Forwarded-For:",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_is_counted_from_the_right() {
    check_spoofs(
        "forwarded",
        &[
            "X-Forwarded-For: 192.0.2.1",
            "Forwarded: for=192.0.2.1, for=203.0.113.9",
            "Forwarded: for=192.0.2.1\r\nForwarded: for=203.0.113.9",
            "Forwarded: for=192.0.2.1;for=203.0.113.9",
            "Forwarded: for=203.0.113.9;by=192.0.2.1",
            "Forwarded: for=\"192.0.2.1",
            "Forwarded: for=unknown",
            "Forwarded: for=192.0.2.1, for=_hidden",
            "Forwarded: for=\"[2001:db8:2::1]:4711\"",
            "Forwarded: 192.0.2.1",
            "Forwarded: for = 192.0.2.1, for=203.0.113.9, for=10.0.0.1",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_believed_source_is_believed() {
    for (client_ip, n, headers, address) in [
        ("x-forwarded-for", 0, "X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7"),
        ("x-forwarded-for", 1, "X-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n", "192.0.2.7"),
        ("x-forwarded-for", 2, "X-Forwarded-For: 203.0.113.9, 192.0.2.7, 10.1.2.3\r\n", "192.0.2.7"),
        ("x-forwarded-for", 3, "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7"),
        ("x-forwarded-for", 4, "X-Forwarded-For: ::ffff:192.0.2.7\r\n", "192.0.2.7"),
        ("x-forwarded-for", 5, "X-Forwarded-For: 2001:db8:1::5\r\n", "2001:db8:1::5"),
        ("forwarded", 6, "Forwarded: for=192.0.2.7;proto=https\r\n", "192.0.2.7"),
        ("forwarded", 7, "Forwarded: for=203.0.113.9, For=\"192.0.2.7:4711\";by=10.0.0.1, for=10.0.0.2\r\n", "192.0.2.7"),
        ("forwarded", 8, "Forwarded: for=\"[2001:db8:1::5]\"\r\n", "2001:db8:1::5"),
    ] {
        let (receiver, gate) = gate(client_ip).await;
        let (status, seen) = send(&gate, &receiver, n, headers).await;
        assert_eq!(status, 200, "{client_ip} with {headers:?}\n{}", gate.log());
        let seen = seen.expect("forwarded");
        assert_eq!(seen.header("x-forwarded-for"), address, "the receiver gets the believed address and no other: {:?}", seen.headers);
        assert!(!seen.header("forwarded").contains("203.0.113.9"), "{:?}", seen.headers);
        assert_eq!(gate.audited(1).await[0]["client_ip"], address);
    }
}

/// What claims to be ours or the proxies' is removed, with its underscore twins, before the receiver sees the request.
#[tokio::test(flavor = "multi_thread")]
async fn claims_from_outside_do_not_reach_the_receiver() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    let lines = "Hooklatch-Verified: content-forged\r\nHooklatch-Event-Id: forged\r\nHooklatch_Verified: forged\r\nHooklatch-Route: forged\r\nHooklatch-Provider: forged\r\n\
        Hooklatch-Attempt: forged\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Host: forged\r\nX-Forwarded-Proto: forged\r\n\
        Connection: keep-alive, X-Hop\r\nX-Hop: forged\r\nKeep-Alive: forged\r\nProxy-Authorization: forged\r\nTE: trailers\r\nProxy-Connection: forged\r\n";
    let (status, seen) = send(&gate, &receiver, 0, lines).await;
    assert_eq!(status, 200);
    let seen = seen.expect("forwarded");
    for (name, value) in &seen.headers {
        assert!(!value.contains("forged") && !value.contains("1.2.3.4"), "{name}: {value}");
        assert!(!name.contains('_'), "{name}: an underscore twin");
    }
    assert_eq!(seen.header("hooklatch-verified"), "content");
    assert!(!seen.has("connection") || seen.header("connection").eq_ignore_ascii_case("keep-alive"), "{:?}", seen.headers);
}

/// IPv6 addresses of one /64 share a bucket; those of another do not.
#[tokio::test(flavor = "multi_thread")]
async fn limits_count_ipv6_per_64() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "rate_limit = [{ per = \"ip\", rate = \"1/h\" }]")
        .plain()
        .server("client_ip = \"x-forwarded-for\"\ntrusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    let mut statuses = Vec::new();
    for (n, address) in ["2001:db8:1:1::1", "2001:db8:1:1:ffff::2", "2001:db8:1:2::1", "::ffff:192.0.2.1", "192.0.2.1"].iter().enumerate() {
        statuses.push(send(&gate, &receiver, n, &format!("X-Forwarded-For: {address}\r\n")).await.0);
    }
    assert_eq!(statuses, [200, 429, 200, 200, 429]);
}

/// With the PROXY protocol only its proxies get as far as HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_carries_the_address() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "allow_ips = [\"192.0.2.0/24\"]")
        .plain()
        .server("client_ip = \"proxy-protocol\"\nproxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    let request = |n: usize| {
        let body = format!("{{\"n\":{n}}}");
        let (name, value) = sign::github(body.as_bytes());
        format!("POST /github HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: {}\r\n{name}: {value}\r\n\r\n{body}", body.len())
    };
    let v2 = |address: [u8; 4]| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        bytes.extend(address);
        bytes.extend([127, 0, 0, 1, 0x12, 0x34, 0x20, 0xfb]);
        bytes
    };
    for (n, (header, want)) in [
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 8443\r\n".to_vec(), Some(200)),
        (v2([192, 0, 2, 7]), Some(200)),
        (b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 8443\r\n".to_vec(), Some(403)),
        (v2([203, 0, 113, 9]), Some(403)),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4660 8443\r\n".to_vec(), Some(200)),
        (b"PROXY UNKNOWN\r\n".to_vec(), Some(403)),
        (b"PROXY TCP4 192.0.2.7\r\n".to_vec(), None),
        (b"PROXY TCP4 192.0.2.999 127.0.0.1 4660 8443\r\n".to_vec(), None),
        (Vec::new(), None),
        (vec![b'P'; 300], None),
    ]
    .into_iter()
    .enumerate()
    {
        let mut wire = Wire::connect(gate.address()).await;
        wire.send(&[header.clone(), request(n).into_bytes()].concat()).await;
        let status = wire.reply().await.map(|reply| reply.status);
        assert_eq!(status, want, "{:?}", String::from_utf8_lossy(&header));
    }
    assert_eq!(receiver.count(), 3);
}
