//! Watches one connection's bytes go by: where heads and bodies begin and end, and whether writing is stuck.
//!
//! hyper parses; this only looks over its shoulder, for what a parsed request no longer shows (both lengths at once, bare line
//! feeds, fragments) and for the time limits, which hyper does not keep. When unsure it says so, and the connection is closed
//! after its answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limit::Limit;

/// What the parts of one connection tell each other. All run in one task, or (HTTP/2 streams) on one thread.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Requests that hyper has handed over.
    pub(super) requests: AtomicU32,
    /// Requests whose answer is not yet given to the socket.
    pub(super) active: AtomicU32,
    /// Answers made but not yet given to the socket, in two generations.
    pub(super) unsent: [AtomicU32; 2],
    pub(super) generation: AtomicBool,
    /// A write or flush waits for the peer.
    pub(super) blocked: AtomicBool,
    /// Heads that were read to their end.
    heads: AtomicU32,
    /// A head has begun and not ended.
    in_head: AtomicBool,
    /// The last head's body has not ended, or where it ends is unknown.
    in_body: AtomicBool,
    /// Number (from 1) of the first head that must be refused; 0: none.
    bad: AtomicU32,
    why: AtomicU32,
    /// For the next body: a connection's bodies come one after another, or (HTTP/2) mostly so.
    limit: Mutex<Limit>,
}

impl Watch {
    /// Whether the head of a request has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.in_head.load(Relaxed)
    }

    /// Whether bytes of the `n`th request's body are still to come.
    pub(super) fn unfinished(&self, n: u32) -> bool {
        self.in_body.load(Relaxed) && self.heads.load(Relaxed) == n
    }

    /// Whether the last body that has begun is unfinished.
    pub(super) fn in_body(&self) -> bool {
        self.in_body.load(Relaxed)
    }

    /// The limit for a body; the one of an earlier body, where it is not in use.
    pub(super) fn take_limit(&self) -> Limit {
        std::mem::take(&mut self.limit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn keep_limit(&self, limit: Limit) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }

    /// What is wrong with the framing of the `n`th request.
    pub(super) fn flaw(&self, n: u32) -> Option<&'static str> {
        (n != 0 && self.bad.load(Relaxed) == n).then(|| FLAWS.get(self.why.load(Relaxed) as usize).copied().unwrap_or(FLAWS[0]))
    }
}

/// Why a head is refused that hyper's parser takes.
const FLAWS: &[&str] = &[
    "the framing is malformed",
    "both Content-Length and Transfer-Encoding",
    "more than one Content-Length",
    "a transfer coding other than chunked",
    "more than one Transfer-Encoding",
    "a line ends without a carriage return",
    "a folded header line",
    "a fragment in the request target",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    /// Bytes of a body with a known length still to come.
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    /// The framing is not understood: nothing more is.
    Lost,
}

/// Follows the framing of one HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Scanner {
    at: At,
    /// A line whose end has not come yet.
    line: Vec<u8>,
    started: bool,
    length: Option<u64>,
    coded: bool,
    flaw: u32,
}

/// The longest line that is kept; hyper's limit on the head ends the connection before, or soon after.
const LINE_MAX: usize = 1 << 20;

impl Scanner {
    pub(super) fn new() -> Self {
        Self { at: At::Head, line: Vec::new(), started: false, length: None, coded: false, flaw: 0 }
    }

    fn feed(&mut self, mut bytes: &[u8], watch: &Watch) {
        while !bytes.is_empty() {
            match self.at {
                At::Body(left) | At::ChunkData(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(here).unwrap_or(bytes.len())..];
                    self.at = match (self.at, left - here) {
                        (At::Body(_), 0) => At::Head,
                        (At::Body(_), left) => At::Body(left),
                        (_, 0) => At::ChunkEnd,
                        (_, left) => At::ChunkData(left),
                    };
                }
                At::Lost => break,
                At::Head | At::ChunkSize | At::ChunkEnd | At::Trailer => match memchr::memchr(b'\n', bytes) {
                    None => {
                        if self.line.len() + bytes.len() > LINE_MAX {
                            self.at = At::Lost;
                        } else {
                            self.line.extend_from_slice(bytes);
                        }
                        break;
                    }
                    Some(end) => {
                        let (line, rest) = bytes.split_at(end + 1);
                        bytes = rest;
                        if self.line.is_empty() {
                            self.line(line, watch);
                        } else {
                            let mut whole = std::mem::take(&mut self.line);
                            whole.extend_from_slice(line);
                            self.line(&whole, watch);
                        }
                    }
                },
            }
        }
        watch.in_head.store(self.at == At::Head && (self.started || !self.line.is_empty()), Relaxed);
        watch.in_body.store(self.at != At::Head, Relaxed);
    }

    /// One line with its line feed.
    fn line(&mut self, line: &[u8], watch: &Watch) {
        let whole = line.ends_with(b"\r\n");
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.at {
            At::Head if line.is_empty() && !self.started => {}
            At::Head => {
                if !whole {
                    self.flaw(5);
                }
                if line.is_empty() {
                    self.end_head(watch);
                } else if self.started {
                    self.field(line);
                } else {
                    self.started = true;
                    if memchr::memchr(b'#', line).is_some() {
                        self.flaw(7);
                    }
                }
            }
            At::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                self.at = match size {
                    Some(0) => At::Trailer,
                    Some(size) => At::ChunkData(size),
                    None => At::Lost,
                };
            }
            At::ChunkEnd => self.at = if line.is_empty() { At::ChunkSize } else { At::Lost },
            At::Trailer if line.is_empty() => self.at = At::Head,
            At::Trailer => {}
            At::Body(_) | At::ChunkData(_) | At::Lost => self.at = At::Lost,
        }
    }

    fn field(&mut self, line: &[u8]) {
        let named = |name: &[u8]| line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name);
        match line[0] {
            b' ' | b'\t' => self.flaw(6),
            b'c' | b'C' if named(b"content-length") => {
                let value = line[15..].trim_ascii();
                let number = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit())).and_then(|text| text.parse().ok());
                match (self.length, number) {
                    (Some(_), _) => self.flaw(2),
                    (None, Some(number)) => self.length = Some(number),
                    (None, None) => self.flaw(0),
                }
            }
            b't' | b'T' if named(b"transfer-encoding") => {
                if self.coded {
                    self.flaw(4);
                } else if !line[18..].trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    self.flaw(3);
                }
                self.coded = true;
            }
            _ => {}
        }
    }

    /// Keeps the first flaw, as its place in [`FLAWS`] plus one.
    fn flaw(&mut self, index: u32) {
        if self.flaw == 0 {
            self.flaw = index + 1;
        }
    }

    fn end_head(&mut self, watch: &Watch) {
        let number = watch.heads.load(Relaxed).wrapping_add(1);
        watch.heads.store(number, Relaxed);
        if self.coded && self.length.is_some() {
            self.flaw(1);
        }
        self.at = match (self.flaw, self.coded, self.length) {
            (0, true, _) => At::ChunkSize,
            (0, false, None | Some(0)) => At::Head,
            (0, false, Some(left)) => At::Body(left),
            (flaw, ..) => {
                if watch.bad.load(Relaxed) == 0 {
                    watch.why.store(flaw - 1, Relaxed);
                    watch.bad.store(number, Relaxed);
                }
                At::Lost
            }
        };
        (self.started, self.length, self.coded) = (false, None, false);
    }
}

/// A stream with a [`Watch`] on it; with a scanner for HTTP/1, without one for HTTP/2.
pub(super) struct Watched<'s, S> {
    stream: &'s mut S,
    scanner: Option<Scanner>,
    watch: Arc<Watch>,
}

impl<'s, S> Watched<'s, S> {
    pub(super) fn new(stream: &'s mut S, watch: Arc<Watch>, scanner: Option<Scanner>) -> Self {
        Self { stream, scanner, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut *this.stream).poll_read(cx, buf);
        if let (Poll::Ready(Ok(())), Some(scanner)) = (&polled, &mut this.scanner) {
            scanner.feed(&buf.filled()[before..], &this.watch);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.stream).poll_write(cx, buf);
        if polled.is_pending() {
            this.watch.blocked.store(true, Relaxed);
        }
        polled
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.stream).poll_write_vectored(cx, bufs);
        if polled.is_pending() {
            this.watch.blocked.store(true, Relaxed);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Only a flush that ends clears the mark: a peer that takes a byte a minute does not hold an answer for ever.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.stream).poll_flush(cx);
        this.watch.blocked.store(polled.is_pending(), Relaxed);
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` whole and byte by byte; both must come to the same end.
    fn check(text: &str, heads: u32, flaw: Option<&str>, in_head: bool, in_body: bool) {
        for size in [text.len(), 1, 7] {
            let watch = Watch::default();
            let mut scanner = Scanner::new();
            text.as_bytes().chunks(size).for_each(|piece| scanner.feed(piece, &watch));
            let got = (watch.heads.load(Relaxed), watch.flaw(heads), watch.in_head(), watch.in_body());
            assert_eq!(got, (heads, flaw, in_head, in_body), "{text:?} in pieces of {size}");
        }
    }

    #[test]
    fn follows_bodies() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, None, false, false);
        check("GET / HTTP/1.1\r\nHost: a\r\n", 0, None, true, false);
        check("\r\n\r\nGET", 0, None, true, false);
        check("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n", 2, None, false, false);
        check("POST / HTTP/1.1\r\ncontent-length:3\r\n\r\nab", 1, None, false, true);
        check("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\nGET", 1, None, true, false);
        check("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nab", 1, None, false, true);
        check("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1, None, false, false);
    }

    #[test]
    fn finds_what_hyper_forgives() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\n{fields}\r\n");
        check(&post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 1, Some(FLAWS[1]), false, true);
        check(&post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), 1, Some(FLAWS[1]), false, true);
        check(&post("Content-Length: 3\r\ncontent-length: 3\r\n"), 1, Some(FLAWS[2]), false, true);
        check(&post("Transfer-Encoding: gzip, chunked\r\n"), 1, Some(FLAWS[3]), false, true);
        check(&post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 1, Some(FLAWS[4]), false, true);
        check(&post("A: b\r\n c\r\n"), 1, Some(FLAWS[6]), false, true);
        check(&post("A: b\nC: d\r\n"), 1, Some(FLAWS[5]), false, true);
        check("GET / HTTP/1.1\r\nA: b\r\n\n", 1, Some(FLAWS[5]), false, true);
        check("GET /a#b HTTP/1.1\r\n\r\n", 1, Some(FLAWS[7]), false, true);
        check("GET / HTTP/1.1\r\n\r\nGET /#b HTTP/1.1\r\n\r\n", 2, Some(FLAWS[7]), false, true);
    }
}
