//! Body to bytes, feeding the MAC as they arrive.
//!
//! The pieces are kept as they came, never joined, so that what a receiver gets is what was verified; only pieces that would cost more
//! to keep than to copy are put together. Bounded in size, in time, and in what all bodies together may hold.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

use crate::{
    event::{CallBody, Chunks},
    guard::head::too_large,
    limit::within,
    reject::{Reason, Reject},
};

/// A piece smaller than this is copied beside its neighbours: each may hold a read buffer of its own, which hyper makes 8 KiB at least,
/// and a sender that drips would cost that much for every byte.
const SMALL: usize = 4 * 1024;

/// Copied pieces are put together up to this.
const JOINED: usize = 16 * 1024;

/// What one body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes. Default 10 MiB.
    pub(crate) body: u64,
    /// From the first look at the body to its end. Default 20 s.
    pub(crate) timeout: Duration,
}

impl Limits {
    /// The same for a body of no more than `bytes`.
    pub(crate) fn at_most(self, bytes: usize) -> Self {
        Self { body: self.body.min(bytes as u64), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 10 * 1024 * 1024, timeout: Duration::from_secs(20) }
    }
}

/// The whole body. `reserve` is asked for room before a piece is kept, and whoever made it gives the room back when the event is done;
/// `feed` gets every byte in order, before the next one is read. Trailers are read past and dropped.
///
/// Errors: [`Reason::BodyTooLarge`], also for a body without a length; [`Reason::BodyTimeout`]; [`Reason::BadRequest`] where the body
/// breaks off or its framing is broken; and whatever `reserve` refuses with.
pub(crate) async fn body(
    body: CallBody,
    limits: &Limits,
    reserve: impl FnMut(u64) -> Result<(), Reject>,
    feed: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Chunks, Reject> {
    let mut sink = Sink { limit: limits.body, reserve, feed, kept: Kept::default() };
    match body {
        #[cfg(test)]
        CallBody::Whole(whole) => sink.take(whole)?,
        CallBody::Incoming(mut incoming) => {
            if incoming.size_hint().lower() > limits.body {
                return Err(too_large(limits.body));
            }
            let mut limit = incoming.limit();
            limit.set(limits.timeout);
            let read = within(&mut limit, pin!(drain(&mut incoming, &mut sink))).await;
            incoming.keep(limit);
            read.ok_or_else(|| Reject::new(Reason::BodyTimeout, "the body took longer than `body_timeout`"))??;
        }
    }
    Ok(sink.kept.finish())
}

async fn drain<B, R>(body: &mut B, sink: &mut Sink<'_, R>) -> Result<(), Reject>
where
    B: Body<Data = Bytes> + Unpin,
    R: FnMut(u64) -> Result<(), Reject>,
{
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    sink.take(data)?;
                }
            }
            Err(_) => return Err(Reject::new(Reason::BadRequest, "the body broke off, or its framing is broken")),
        }
    }
    Ok(())
}

struct Sink<'f, R> {
    limit: u64,
    reserve: R,
    feed: &'f mut (dyn FnMut(&[u8]) + Send),
    kept: Kept,
}

impl<R: FnMut(u64) -> Result<(), Reject>> Sink<'_, R> {
    fn take(&mut self, piece: Bytes) -> Result<(), Reject> {
        let bytes = piece.len() as u64;
        if (self.kept.len as u64).saturating_add(bytes) > self.limit {
            return Err(too_large(self.limit));
        }
        (self.reserve)(bytes)?;
        (self.feed)(&piece);
        self.kept.push(piece);
        Ok(())
    }
}

/// The pieces so far; at most one of the two places at the end is taken.
#[derive(Debug, Default)]
struct Kept {
    chunks: Chunks,
    len: usize,
    /// One small piece, still as it came: most bodies are no more than that.
    small: Bytes,
    /// Several small pieces.
    joined: BytesMut,
}

impl Kept {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() >= SMALL {
            self.flush();
            self.chunks.push(piece);
        } else if !self.joined.is_empty() {
            self.joined.extend_from_slice(&piece);
            if self.joined.len() >= JOINED {
                self.flush();
            }
        } else if self.small.is_empty() {
            self.small = piece;
        } else {
            self.joined.reserve(self.small.len() + piece.len());
            self.joined.extend_from_slice(&std::mem::take(&mut self.small));
            self.joined.extend_from_slice(&piece);
        }
    }

    fn flush(&mut self) {
        self.chunks.push(std::mem::take(&mut self.small));
        self.chunks.push(std::mem::take(&mut self.joined).freeze());
    }

    fn finish(mut self) -> Chunks {
        self.flush();
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;

    use super::*;

    /// Frames at hand; `None` breaks off.
    struct Frames(VecDeque<Option<Frame<Bytes>>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(self.0.pop_front().map(|frame| frame.ok_or_else(|| std::io::ErrorKind::ConnectionReset.into())))
        }
    }

    fn data(sizes: &[usize]) -> Vec<Option<Frame<Bytes>>> {
        sizes.iter().enumerate().map(|(at, size)| Some(Frame::data(Bytes::from(vec![u8::try_from(at % 251).expect("small"); *size])))).collect()
    }

    /// The refusal's code, or the number of pieces kept.
    fn read(frames: Vec<Option<Frame<Bytes>>>, limit: u64, room: u64) -> Result<Chunks, Reject> {
        let whole: Vec<u8> = frames.iter().flatten().filter_map(Frame::data_ref).flatten().copied().collect();
        let (mut fed, mut left) = (Vec::new(), room);
        let mut feed = |bytes: &[u8]| fed.extend_from_slice(bytes);
        let mut sink = Sink {
            limit,
            reserve: |bytes| {
                left = left.checked_sub(bytes).ok_or(Reject::new(Reason::Overloaded, "full"))?;
                Ok(())
            },
            feed: &mut feed,
            kept: Kept::default(),
        };
        futures_util::FutureExt::now_or_never(drain(&mut Frames(frames.into()), &mut sink)).expect("frames are at hand")?;
        let chunks = sink.kept.finish();
        assert_eq!((chunks.to_bytes().as_ref(), fed.as_slice()), (whole.as_slice(), whole.as_slice()));
        assert_eq!((chunks.len(), room - left), (whole.len(), whole.len() as u64));
        Ok(chunks)
    }

    fn check(sizes: &[usize], limit: u64, room: u64, want: Result<usize, Reason>) {
        let got = read(data(sizes), limit, room).map(|chunks| chunks.pieces().count()).map_err(|why| why.reason);
        assert_eq!(got, want, "{sizes:?} of {limit}, {room}");
    }

    #[test]
    fn bodies_are_bounded() {
        check(&[], 0, 0, Ok(0));
        check(&[10], 10, 10, Ok(1));
        check(&[11], 10, 99, Err(Reason::BodyTooLarge));
        check(&[5, 5, 1], 10, 99, Err(Reason::BodyTooLarge));
        check(&[5, 5], 99, 9, Err(Reason::Overloaded));
        check(&[5, 100], 10, 9, Err(Reason::BodyTooLarge)); // said before room is asked for
    }

    #[test]
    fn small_pieces_are_put_together_and_large_ones_kept() {
        let all = u64::MAX;
        check(&[300], all, all, Ok(1));
        check(&[4096, 4096, 4096], all, all, Ok(3));
        check(&[1; 5000], all, all, Ok(1));
        check(&[1; 40_000], all, all, Ok(3));
        check(&[0; 1000], all, all, Ok(0));
        check(&[10, 5000, 10, 10, 5000, 10], all, all, Ok(5));
        check(&[10, 0, 10, 0], all, all, Ok(1));
        // One byte at a time costs about a byte each, not a piece each.
        let chunks = read(data(&[1; 100_000]), all, all).expect("no limit");
        assert!(chunks.pieces().count() <= 7, "{}", chunks.pieces().count());
    }

    #[test]
    fn a_lone_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; 500]);
        let chunks = read(vec![Some(Frame::data(piece.clone()))], 999, 999).expect("it fits");
        assert_eq!(chunks.pieces().next().map(|kept| kept.as_ptr()), Some(piece.as_ptr()));
    }

    #[test]
    fn trailers_are_dropped_and_breaks_refused() {
        let mut frames = data(&[5]);
        frames.push(Some(Frame::trailers(http::HeaderMap::new())));
        assert_eq!(read(frames, 9, 9).map(|chunks| chunks.len()), Ok(5));
        let mut frames = data(&[5]);
        frames.push(None);
        assert_eq!(read(frames, 9, 9).map_err(|why| why.reason), Err(Reason::BadRequest));
    }

    #[tokio::test]
    async fn bytes_at_hand_are_judged_alike() {
        let limits = Limits { body: 3, timeout: Duration::from_secs(1) };
        let mut fed = Vec::new();
        let whole = CallBody::Whole(Bytes::from_static(b"abc"));
        let got = body(whole, &limits, |_| Ok(()), &mut |bytes| fed.extend_from_slice(bytes)).await;
        assert_eq!(got.map(|chunks| chunks.to_bytes()), Ok(Bytes::from_static(b"abc")));
        assert_eq!(fed, b"abc");
        let got = body(CallBody::Whole(Bytes::from_static(b"abcd")), &limits, |_| Ok(()), &mut |_| ()).await;
        assert_eq!(got.map_err(|why| why.reason), Err(Reason::BodyTooLarge));
    }

    /// What becomes of a request with these bytes after `POST / HTTP/1.1`; `end` closes the sender's side after them.
    async fn wire(after: &str, end: bool, limits: Limits) -> Result<String, Reason> {
        use tokio::io::AsyncWriteExt;
        let (mut sender, gate) = tokio::io::duplex(1 << 16);
        sender.write_all(format!("POST / HTTP/1.1\r\nHost: x\r\n{after}").as_bytes()).await.expect("the pipe is wide enough");
        if end {
            sender.shutdown().await.expect("the pipe is open");
        }
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let tell = tell.clone();
            async move {
                let got = body(CallBody::Incoming(request.into_body().into()), &limits, |_| Ok(()), &mut |_| ()).await;
                let text = got.map(|chunks| String::from_utf8_lossy(&chunks.to_bytes()).into_owned()).map_err(|why| why.reason);
                tell.send(text).await.expect("the test listens");
                Ok::<_, std::convert::Infallible>(http::Response::new(Chunks::default()))
            }
        });
        let serve = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(gate), service);
        tokio::select! {
            biased;
            got = told.recv() => got.expect("one answer"),
            _ = serve => told.try_recv().expect("one answer"),
        }
    }

    #[tokio::test]
    async fn bodies_from_the_wire() {
        let limits = Limits { body: 8, timeout: Duration::from_secs(30) };
        let chunked = |rest: &str| format!("Transfer-Encoding: chunked\r\n\r\n{rest}");
        assert_eq!(wire("Content-Length: 3\r\n\r\nabc", false, limits).await, Ok("abc".into()));
        assert_eq!(wire("Content-Length: 9\r\n\r\n", false, limits).await, Err(Reason::BodyTooLarge)); // at once
        assert_eq!(wire(&chunked("3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"), false, limits).await, Ok("abcde".into()));
        assert_eq!(wire(&chunked("3\r\nabc\r\n6\r\ndefghi\r\n"), false, limits).await, Err(Reason::BodyTooLarge));
        assert_eq!(wire(&chunked("3\r\nabcX"), false, limits).await, Err(Reason::BadRequest));
        assert_eq!(wire(&chunked("zz\r\n"), false, limits).await, Err(Reason::BadRequest));
        assert_eq!(wire("Content-Length: 5\r\n\r\nabc", true, limits).await, Err(Reason::BadRequest));
        assert_eq!(wire(&chunked("3\r\nabc\r\n"), true, limits).await, Err(Reason::BadRequest));
        let hasty = Limits { timeout: Duration::from_millis(1), ..limits };
        assert_eq!(wire("Content-Length: 5\r\n\r\nabc", false, hasty).await, Err(Reason::BodyTimeout));
    }
}
