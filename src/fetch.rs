//! Fetches one document over https for the gate's own use: key sets, certificates, published ranges, token introspection.
//!
//! Bounded in size and time; one connection for each fetch; redirects are not followed: a location is what the policy or a preset
//! names, never what an answer says. Never here: what a document means, and when it is fetched again.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Body, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use url::Url;

use crate::egress::{self, ConnectError, Target, TlsSettings};

/// The largest head of an answer.
const HEAD_BYTES: usize = 64 << 10;

/// Fetches with one set of trusted roots.
#[derive(Clone)]
pub(crate) struct Client {
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// See [`check_url`].
    pub(crate) url: &'a Url,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The most bytes of a body.
    pub(crate) max_bytes: usize,
    /// For all of it, name lookup and connection included.
    pub(crate) timeout: Duration,
}

/// An answer, whatever its status: but no redirect.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer. Never shows a header or a body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    Url(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the exchange failed: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("no whole answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("the answer is a redirect ({0}), which is not followed")]
    Redirect(StatusCode),
}

/// Whether a document may be fetched from there: https, a host, no credentials in it.
pub(crate) fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|why| format!("this is no URL: {why}"))?;
    if url.scheme() != "https" {
        return Err("only https URLs are fetched".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL names no host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not hold credentials".to_owned());
    }
    Ok(url)
}

impl Client {
    /// Trusts the CA of `tls`, else the system's roots. Fails where the system has none.
    pub(crate) fn new(tls: &TlsSettings) -> Result<Self, String> {
        let config = tls.config(&[b"http/1.1"]).map_err(|why| format!("TLS cannot be set up: {why}"))?;
        Ok(Self { config: Arc::new(config) })
    }

    /// Asks once.
    pub(crate) async fn fetch(&self, ask: Ask<'_>) -> Result<Fetched, FetchError> {
        let limit = ask.timeout;
        tokio::time::timeout(limit, self.exchange(ask)).await.unwrap_or(Err(FetchError::Silent(limit)))
    }

    async fn exchange(&self, ask: Ask<'_>) -> Result<Fetched, FetchError> {
        let url = ask.url;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let tls = egress::tls(Arc::clone(&self.config), host).map_err(FetchError::Url)?;
        let target = Target::Tcp { host: host.to_owned(), port: url.port_or_known_default().unwrap_or(443), tls: Some(tls) };
        let stream = egress::connect(&target).await?;
        let (mut sender, connection) = http1::Builder::new().max_header_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await?;
        // Ends with the exchange: when this future goes, so does the connection.
        let mut driven = tokio::task::JoinSet::new();
        driven.spawn(connection);

        let authority =
            url.port().map_or_else(|| url.host_str().unwrap_or_default().to_owned(), |port| format!("{}:{port}", url.host_str().unwrap_or_default()));
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.uri_mut() = path.parse().map_err(|_| FetchError::Url("the URL's path cannot stand in a request".to_owned()))?;
        *request.headers_mut() = ask.headers;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|_| FetchError::Url("the URL's host cannot stand in a request".to_owned()))?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("hooklatch/", env!("CARGO_PKG_VERSION"))));
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if !ask.body.is_empty() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(ask.body.len()));
        }
        *request.method_mut() = ask.method;

        let (head, mut body) = sender.send_request(request).await?.into_parts();
        if head.status.is_redirection() && head.status != StatusCode::NOT_MODIFIED {
            return Err(FetchError::Redirect(head.status));
        }
        if body.size_hint().lower() > ask.max_bytes as u64 {
            return Err(FetchError::TooLarge(ask.max_bytes));
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(piece) = frame?.into_data() {
                if bytes.len() + piece.len() > ask.max_bytes {
                    return Err(FetchError::TooLarge(ask.max_bytes));
                }
                bytes.extend_from_slice(&piece);
            }
        }
        Ok(Fetched { status: head.status, headers: head.headers, body: bytes.freeze() })
    }
}

#[cfg(test)]
mod tests {
    use super::check_url;

    #[test]
    fn only_plain_https_urls_are_fetched() {
        fn check(text: &str, expected: Result<&str, &str>) {
            match (check_url(text), expected) {
                (Ok(url), Ok(host)) => assert_eq!(url.host_str(), Some(host), "{text}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
                (got, _) => panic!("{text}: {got:?}, due was {expected:?}"),
            }
        }
        check("https://api.example.com/meta", Ok("api.example.com"));
        check("https://[2001:db8::1]:8443/keys", Ok("[2001:db8::1]"));
        check("http://api.example.com/meta", Err("only https"));
        check("file:///etc/passwd", Err("only https"));
        check("https://user:word@api.example.com/", Err("credentials"));
        check("api.example.com", Err("no URL"));
    }
}
