//! Raw bytes to a socket and back, for what a well-behaved client would not send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::soon;

pub(crate) struct Wire {
    socket: TcpStream,
    /// Bytes that were read and belong to no answer yet.
    rest: Vec<u8>,
}

/// One HTTP/1.1 answer as it stood on the wire.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address} does not take a connection: {error}"));
        socket.set_nodelay(true).expect("a connected socket takes the option");
        Self { socket, rest: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The other side may have answered and closed before all was sent; what it answered is what counts.
        let _ = self.socket.write_all(bytes).await;
    }

    /// Ends our side only.
    pub(crate) async fn finish(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16384];
        match soon("bytes on the wire", self.socket.read(&mut buffer)).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.rest.extend_from_slice(&buffer[..n]);
                true
            }
        }
    }

    /// The next answer, or `None` where the connection ended before one was whole.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut reply = Reply { status, head, body: Vec::new() };
        self.rest.drain(..end);
        if status < 200 || status == 204 || status == 304 {
            return Some(reply);
        }
        match reply.header("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) => {
                while self.rest.len() < length {
                    if !self.more().await {
                        return None;
                    }
                }
                reply.body = self.rest.drain(..length).collect();
            }
            Some(Err(_)) => return None,
            None if reply.header("transfer-encoding").is_some() => reply.body = self.chunks().await?,
            None => {
                while self.more().await {}
                reply.body = std::mem::take(&mut self.rest);
            }
        }
        Some(reply)
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = self.rest.windows(2).position(|w| w == b"\r\n") {
                    break self.rest.drain(..at + 2).collect::<Vec<u8>>();
                }
                if !self.more().await {
                    return None;
                }
            };
            let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
            while self.rest.len() < size + 2 {
                if !self.more().await {
                    return None;
                }
            }
            body.extend(self.rest.drain(..size));
            self.rest.drain(..2);
            if size == 0 {
                return Some(body);
            }
        }
    }

    /// Every answer until the other side closes, with [`super::PATIENCE`] between bytes.
    pub(crate) async fn replies(&mut self) -> Vec<Reply> {
        let mut all = Vec::new();
        while let Some(reply) = self.reply().await {
            all.push(reply);
        }
        all
    }

    /// Everything until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.rest)
    }
}
