//! Counting webhook receiver: plain HTTP/1.1, single thread, keep-alive.
//! Reads the whole body (Content-Length or chunked), answers 200 `ok`.
//! GET /__stats -> JSON counters, GET /__reset -> zero them.
//! A request with `x-bench-tampered: 1` that arrives here is a leak.
//! `len_bad` counts bodies whose length differs from `x-bench-len`.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static REQS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static LEAKS: AtomicU64 = AtomicU64::new(0);
static LEN_BAD: AtomicU64 = AtomicU64::new(0);
static CONNS: AtomicU64 = AtomicU64::new(0);

fn find(h: &[u8], n: &[u8]) -> Option<usize> {
    h.windows(n.len()).position(|w| w == n)
}

/// Value of a header (lower-case name), case-insensitive on the name.
fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    for line in head.split(|b| *b == b'\n') {
        if let Some(c) = line.iter().position(|b| *b == b':') {
            if c == name.len() && line[..c].eq_ignore_ascii_case(name.as_bytes()) {
                return std::str::from_utf8(&line[c + 1..]).ok().map(str::trim);
            }
        }
    }
    None
}

async fn serve(mut s: TcpStream) -> std::io::Result<()> {
    let _ = s.set_nodelay(true);
    CONNS.fetch_add(1, Relaxed);
    let mut buf = vec![0u8; 128 * 1024];
    let mut len = 0usize;
    loop {
        let hend = loop {
            if let Some(p) = find(&buf[..len], b"\r\n\r\n") {
                break p + 4;
            }
            if len == buf.len() {
                return Ok(());
            }
            let n = s.read(&mut buf[len..]).await?;
            if n == 0 {
                return Ok(());
            }
            len += n;
        };
        let head = &buf[..hend];
        let get = head.starts_with(b"GET ");
        let stats = head.starts_with(b"GET /__stats");
        let reset = head.starts_with(b"GET /__reset");
        let tampered = header(head, "x-bench-tampered") == Some("1");
        let want: Option<u64> = header(head, "x-bench-len").and_then(|v| v.parse().ok());
        let cl: Option<u64> = header(head, "content-length").and_then(|v| v.parse().ok());
        let chunked = header(head, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        let close = header(head, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        let http10 = find(&head[..head.len().min(200)], b"HTTP/1.0\r\n").is_some();
        if header(head, "expect").is_some() {
            s.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        buf.copy_within(hend..len, 0);
        len -= hend;
        let mut got = 0u64;
        if chunked {
            'chunks: loop {
                let line_end = loop {
                    if let Some(p) = find(&buf[..len], b"\r\n") {
                        break p;
                    }
                    let n = s.read(&mut buf[len..]).await?;
                    if n == 0 {
                        return Ok(());
                    }
                    len += n;
                };
                let txt = std::str::from_utf8(&buf[..line_end]).unwrap_or("0");
                let mut left = u64::from_str_radix(txt.split(';').next().unwrap().trim(), 16).unwrap_or(0);
                buf.copy_within(line_end + 2..len, 0);
                len -= line_end + 2;
                got += left;
                let last = left == 0;
                left += 2; // the CRLF after the chunk (or the final empty line)
                while left > 0 {
                    if len == 0 {
                        len = s.read(&mut buf).await?;
                        if len == 0 {
                            return Ok(());
                        }
                    }
                    let k = (len as u64).min(left) as usize;
                    buf.copy_within(k..len, 0);
                    len -= k;
                    left -= k as u64;
                }
                if last {
                    break 'chunks;
                }
            }
        } else if let Some(cl) = cl {
            let mut left = cl;
            got = cl;
            while left > 0 {
                if len == 0 {
                    len = s.read(&mut buf).await?;
                    if len == 0 {
                        return Ok(());
                    }
                }
                let k = (len as u64).min(left) as usize;
                if k < len {
                    buf.copy_within(k..len, 0);
                }
                len -= k;
                left -= k as u64;
            }
        }
        if get && (stats || reset) {
            if reset {
                for c in [&REQS, &BYTES, &LEAKS, &LEN_BAD, &CONNS] {
                    c.store(0, Relaxed);
                }
            }
            let b = format!(
                "{{\"requests\":{},\"bytes\":{},\"leaks\":{},\"len_bad\":{},\"conns\":{}}}",
                REQS.load(Relaxed),
                BYTES.load(Relaxed),
                LEAKS.load(Relaxed),
                LEN_BAD.load(Relaxed),
                CONNS.load(Relaxed)
            );
            s.write_all(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{b}", b.len()).as_bytes()).await?;
        } else {
            REQS.fetch_add(1, Relaxed);
            BYTES.fetch_add(got, Relaxed);
            if tampered {
                LEAKS.fetch_add(1, Relaxed);
            }
            if want.is_some_and(|w| w != got) {
                LEN_BAD.fetch_add(1, Relaxed);
            }
            s.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok").await?;
        }
        if close || http10 {
            let _ = s.shutdown().await;
            return Ok(());
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18080".into());
    let sock = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    sock.set_reuse_address(true).unwrap();
    sock.bind(&addr.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    sock.listen(8192).unwrap();
    sock.set_nonblocking(true).unwrap();
    let l = TcpListener::from_std(sock.into()).unwrap();
    loop {
        if let Ok((s, _)) = l.accept().await {
            tokio::spawn(async move {
                let _ = serve(s).await;
            });
        }
    }
}
