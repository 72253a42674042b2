//! Asks the pages of a feed for their lists, with the marks of the last answers.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use ipnet::IpNet;
use url::Url;

use super::{cache::Part, source::Feed};
use crate::{
    egress::TlsSettings,
    fetch::{Ask, Client, Fetched},
};

/// The most that a list may weigh, in bytes; AWS's, the largest in use, has two million.
const MAX_BODY: usize = 8 << 20;
/// The longest that one page may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Fetches lists over TLS.
#[derive(Clone)]
pub(crate) struct Fetcher(Client);

impl Fetcher {
    /// Fails where TLS cannot be set up: the system's roots are read here.
    pub(crate) fn new(tls: &TlsSettings) -> Result<Self, String> {
        Client::new(tls).map(Self)
    }

    /// Everything that a feed's pages list now. `known` is what they said before: a page that did not change is not read again.
    pub(super) async fn parts(&self, feed: &Feed, known: &[Part]) -> Result<Vec<Part>, String> {
        let known: BTreeMap<&str, &Part> = known.iter().map(|part| (part.url.as_str(), part)).collect();
        let mut parts = Vec::with_capacity(feed.urls.len());
        for url in &feed.urls {
            parts.push(self.part(url, feed, known.get(url.as_str()).copied()).await.map_err(|why| format!("{url}: {why}"))?);
        }
        Ok(parts)
    }

    /// What a feed's pages list now, without anything known before; sorted.
    pub(crate) async fn networks(&self, feed: &Feed) -> Result<Vec<IpNet>, String> {
        let mut nets: Vec<IpNet> = self.parts(feed, &[]).await?.into_iter().flat_map(|part| part.networks).collect();
        nets.sort_unstable();
        nets.dedup();
        Ok(nets)
    }

    async fn part(&self, url: &Url, feed: &Feed, before: Option<&Part>) -> Result<Part, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/plain;q=0.9, */*;q=0.1"));
        for (name, mark) in [
            (header::IF_NONE_MATCH, before.and_then(|part| part.etag.as_deref())),
            (header::IF_MODIFIED_SINCE, before.and_then(|part| part.last_modified.as_deref())),
        ] {
            if let Some(mark) = mark.and_then(|mark| HeaderValue::from_str(mark).ok()) {
                headers.insert(name, mark);
            }
        }
        let ask = Ask { url, method: Method::GET, headers, body: bytes::Bytes::new(), max_bytes: MAX_BODY, timeout: TIMEOUT };
        let Fetched { status, headers, body } = self.0.fetch(ask).await.map_err(|why| why.to_string())?;
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        match (status, before) {
            (StatusCode::NOT_MODIFIED, Some(before)) => Ok(before.clone()),
            (StatusCode::OK, _) => {
                let networks = feed.extract(&body)?;
                Ok(Part { url: url.to_string(), etag: text(header::ETAG), last_modified: text(header::LAST_MODIFIED), networks })
            }
            (status, _) => Err(format!("the answer is {status}")),
        }
    }
}
