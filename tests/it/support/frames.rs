//! HTTP/2 frames written by hand, for what no well-behaved client sends. RFC 9113 section 4.1, RFC 7541 section 6.2.2.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{gate::Gate, soon};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame's bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header block of literal fields without indexing.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, text.len());
            out.extend(text.as_bytes());
        }
    }
    out
}

/// A string's length: seven bits, then seven a byte.
fn integer(out: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        out.push(u8::try_from(value).expect("below 127"));
        return;
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push(u8::try_from(value % 128 + 128).expect("below 256"));
        value /= 128;
    }
    out.push(u8::try_from(value).expect("below 128"));
}

/// The request of a delivery to `target`.
pub(crate) fn post(target: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![(":method", "POST"), (":scheme", "https"), (":path", target), (":authority", "localhost")];
    fields.extend(more);
    block(&fields)
}

/// A connection that has said hello.
pub(crate) struct Frames {
    stream: TlsStream<TcpStream>,
}

impl Frames {
    pub(crate) async fn connect(gate: &Gate) -> Self {
        let socket = TcpStream::connect(gate.address()).await.expect("the gate listens");
        let config = gate.ca().expect("HTTP/2 needs TLS").trust(&["h2"], None);
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(config).connect(name, socket).await.expect("the gate's certificate is good");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the connection is fresh");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("the connection is fresh");
        Self { stream }
    }

    /// Sends bytes; false once the gate has cut the connection.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        soon("the gate to take frames or cut the connection", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Reads on in the background, as a sender that floods does not wait, until the gate cuts the connection or `limit` passes.
    /// The frames that came: kind, stream, payload.
    pub(crate) async fn read_all(self, limit: Duration) -> Vec<(u8, u32, Vec<u8>)> {
        let (mut reader, _writer) = tokio::io::split(self.stream);
        let mut frames = Vec::new();
        let _ = tokio::time::timeout(limit, async {
            while let Some(frame) = read(&mut reader).await {
                frames.push(frame);
            }
        })
        .await;
        frames
    }

    /// Reads until such a frame (kind, stream) came, or the gate cut the connection.
    pub(crate) async fn read_until(mut self, wanted: impl Fn(u8, u32) -> bool) -> Vec<(u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(frame) = soon("a frame", read(&mut self.stream)).await {
            let found = wanted(frame.0, frame.1);
            frames.push(frame);
            if found {
                break;
            }
        }
        frames
    }

    /// Sends `flood` again and again while reading; how many went out before the gate cut the connection, or `most`.
    pub(crate) async fn flood(self, most: usize, flood: impl Fn(usize) -> Vec<u8>) -> usize {
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let cut = tokio::spawn(async move { while read(&mut reader).await.is_some() {} });
        let mut sent = 0;
        while sent < most && !cut.is_finished() {
            let wrote = tokio::time::timeout(Duration::from_secs(10), writer.write_all(&flood(sent))).await;
            if !matches!(wrote, Ok(Ok(()))) {
                break;
            }
            sent += 1;
        }
        cut.abort();
        sent
    }
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    reader.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}
