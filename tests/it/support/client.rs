//! A well-behaved sender over HTTP/1.1 or HTTP/2, by hyper and rustls.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{gate::Gate, sign, soon, tls::Identity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// One kept-alive connection.
pub(crate) struct Client {
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's text; empty where it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("our own headers are text"))
    }

    /// The problem document's `reason`; empty where the body is none.
    pub(crate) fn reason(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and reason, for one assertion.
    pub(crate) fn verdict(&self) -> (u16, String) {
        (self.status.as_u16(), self.reason())
    }

    pub(crate) fn event_id(&self) -> String {
        self.header("hooklatch-event-id").to_owned()
    }
}

/// A request as a provider sends it.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Post {
    pub(crate) fn new(target: &str, body: impl Into<Bytes>) -> Self {
        Self { method: "POST", target: target.to_owned(), host: "localhost".to_owned(), headers: Vec::new(), body: body.into() }
            .header("content-type", "application/json")
    }

    /// A delivery to `/github` as GitHub signs it.
    pub(crate) fn github(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let (name, value) = sign::github(&body);
        Self::new("/github", body).header(name, &value).header("x-github-event", "push")
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn to(mut self, target: &str) -> Self {
        self.target = target.to_owned();
        self
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    /// Sends it on a connection of its own.
    pub(crate) async fn send(&self, gate: &Gate) -> Answer {
        Client::connect(gate, Protocol::Http1).await.send(self).await
    }

    fn request(&self, protocol: Protocol) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(self.method);
        request = match protocol {
            Protocol::Http1 => request.uri(&self.target).header("host", &self.host),
            Protocol::Http2 => request.uri(format!("https://{}{}", self.host, self.target)),
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone())).expect("the request is well formed")
    }
}

impl Client {
    /// Connects as the gate listens: over TLS unless it was started plain.
    pub(crate) async fn connect(gate: &Gate, protocol: Protocol) -> Self {
        Self::connect_as(gate, protocol, "localhost", None).await
    }

    pub(crate) async fn connect_as(gate: &Gate, protocol: Protocol, name: &'static str, identity: Option<&Identity>) -> Self {
        Self::try_connect(gate, protocol, name, identity).await.unwrap_or_else(|error| panic!("no connection to the gate: {error}\n{}", gate.log()))
    }

    pub(crate) async fn try_connect(
        gate: &Gate,
        protocol: Protocol,
        name: &'static str,
        identity: Option<&Identity>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpStream::connect(gate.address()).await?;
        socket.set_nodelay(true)?;
        let sender = match gate.ca() {
            None => Self::handshake(protocol, TokioIo::new(socket)).await?,
            Some(ca) => {
                let alpn = match protocol {
                    Protocol::Http1 => "http/1.1",
                    Protocol::Http2 => "h2",
                };
                let connector = TlsConnector::from(ca.trust(&[alpn], identity));
                let stream = connector.connect(ServerName::try_from(name)?, socket).await?;
                let got = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                assert_eq!(got.as_deref(), Some(alpn.as_bytes()), "the gate takes the protocol by ALPN");
                Self::handshake(protocol, TokioIo::new(stream)).await?
            }
        };
        Ok(Self { sender })
    }

    async fn handshake<S>(protocol: Protocol, stream: S) -> hyper::Result<Sender>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        })
    }

    pub(crate) async fn send(&mut self, post: &Post) -> Answer {
        self.try_send(post).await.unwrap_or_else(|error| panic!("{} {} got no answer: {error:?}", post.method, post.target))
    }

    pub(crate) async fn try_send(&mut self, post: &Post) -> hyper::Result<Answer> {
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                soon("an answer", sender.send_request(post.request(Protocol::Http1))).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                soon("an answer", sender.send_request(post.request(Protocol::Http2))).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = soon("an answer's body", body.collect()).await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}
