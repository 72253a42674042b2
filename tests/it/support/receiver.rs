//! A receiver that records what arrives, byte for byte, and answers as the test says. It parses HTTP/1.1 itself, so that it can
//! also answer wrongly.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{hold::Hold, soon};

/// What arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Counts from 0 over all connections.
    pub(crate) nth: usize,
    /// Which connection it came on; counts from 0.
    pub(crate) connection: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// A header's value; empty where it is missing, and an error where it came twice.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
        let value = found.next().unwrap_or("");
        assert!(found.next().is_none(), "`{name}` came twice: {:?}", self.headers);
        value
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
    }
}

/// What a receiver does with a request.
#[derive(Clone)]
pub(crate) enum Act {
    /// Answers with this status and body, keeps the connection.
    Answer(u16, &'static str),
    /// Writes these bytes as they are, keeps the connection.
    Raw(Vec<u8>),
    /// Writes these bytes, then closes.
    RawThenClose(Vec<u8>),
    /// Writes the first, then the second again and again until the other side is gone.
    Endless(Vec<u8>, Vec<u8>),
    /// Closes without a word; a reset where bytes are unread.
    Close,
    /// Says nothing until the test ends.
    Hang,
    /// Waits for the door, then does the other thing.
    After(Hold, Box<Act>),
}

impl Act {
    pub(crate) fn after(hold: &Hold, act: Act) -> Self {
        Self::After(hold.clone(), Box::new(act))
    }
}

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Requests answered in full, with whether all bytes could be written.
    answered: Mutex<Vec<bool>>,
    count: watch::Sender<usize>,
    connections: Mutex<usize>,
    script: Box<Script>,
}

impl Receiver {
    /// Answers every request with 200 `ok`.
    pub(crate) async fn start() -> Self {
        Self::acting(|_| Act::Answer(200, "ok")).await
    }

    /// Does with every request what `script` says of it.
    pub(crate) async fn acting(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            answered: Mutex::default(),
            count: watch::Sender::new(0),
            connections: Mutex::default(),
            script: Box::new(script),
        });
        let accept = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let connection = accept.connection();
                tokio::spawn(serve(socket, accept.clone(), connection));
            }
        });
        Self { address, shared, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything that arrived so far, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no task panics with the record").clone()
    }

    pub(crate) fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().expect("no task panics with the record")
    }

    /// Waits until `count` requests arrived.
    pub(crate) async fn arrived(&self, count: usize) -> Vec<Seen> {
        let mut counter = self.shared.count.subscribe();
        let _ = soon(&format!("{count} requests at the receiver"), counter.wait_for(|n| *n >= count)).await;
        self.seen()
    }

    /// Stops listening; connections that are open stay so.
    pub(crate) fn stop_listening(&self) {
        self.task.abort();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn connection(&self) -> usize {
        let mut connections = self.connections.lock().expect("no task panics with the record");
        *connections += 1;
        *connections - 1
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>, connection: usize) {
    let mut stream = Stream { socket, rest: Vec::new() };
    while let Some(mut seen) = stream.request().await {
        seen.connection = connection;
        {
            let mut all = shared.seen.lock().expect("no task panics with the record");
            seen.nth = all.len();
            all.push(seen.clone());
        }
        shared.count.send_modify(|count| *count += 1);
        let mut act = (shared.script)(&seen);
        while let Act::After(hold, then) = act {
            hold.pass().await;
            act = *then;
        }
        let (bytes, keep) = match act {
            Act::Answer(status, body) => {
                (format!("HTTP/1.1 {status} Status\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(), true)
            }
            Act::Raw(bytes) => (bytes, true),
            Act::RawThenClose(bytes) => (bytes, false),
            Act::Endless(first, again) => {
                let _ = stream.socket.write_all(&first).await;
                while stream.socket.write_all(&again).await.is_ok() {}
                return;
            }
            Act::Close => return,
            Act::Hang => return std::future::pending().await,
            Act::After(..) => unreachable!("doors were passed above"),
        };
        let written = stream.socket.write_all(&bytes).await.is_ok();
        shared.answered.lock().expect("no task panics with the record").push(written);
        if !keep {
            return;
        }
    }
}

struct Stream<S> {
    socket: S,
    rest: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    async fn more(&mut self) -> Option<()> {
        let mut buffer = vec![0; 65536];
        match self.socket.read(&mut buffer).await {
            Ok(0) | Err(_) => None,
            Ok(n) => {
                self.rest.extend_from_slice(&buffer[..n]);
                Some(())
            }
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.rest.len() < length {
            self.more().await?;
        }
        Some(self.rest.drain(..length).collect())
    }

    async fn through(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.rest.windows(end.len()).position(|w| w == end) {
                return Some(self.rest.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn request(&mut self) -> Option<Seen> {
        let head = String::from_utf8_lossy(&self.through(b"\r\n\r\n").await?).into_owned();
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: Vec<(String, String)> =
            lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let value = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        let body = if let Some(length) = value("content-length") {
            self.take(length.parse().ok()?).await?
        } else if value("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let line = self.through(b"\r\n").await?;
                let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
                body.extend(self.take(size).await?);
                self.take(2).await?;
                if size == 0 {
                    break body;
                }
            }
        } else {
            Vec::new()
        };
        Some(Seen { nth: 0, connection: 0, method, target, headers, body })
    }
}
