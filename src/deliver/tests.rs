//! Deliveries over real sockets.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use crate::event::{Client, Event, EventId, Verification};

/// An event such as a GitHub route makes.
pub(crate) fn event(body: &str) -> Event {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    Event {
        id: EventId::new(),
        route: "github-prod".into(),
        provider: Some("github".into()),
        verification: Verification::Content,
        secret_label: None,
        event_type: Some("push".to_owned()),
        delivery_id: None,
        received_ms: 1_795_553_600_000,
        client: Client::new([192, 0, 2, 7].into()),
        client_cert: None,
        method: Method::POST,
        path: "/github".to_owned(),
        rest: None,
        query: None,
        scheme: "https",
        host: Some("hooks.example.com:8443".to_owned()),
        headers,
        body: Bytes::from(body.to_owned()).into(),
        chosen: None,
        annotations: Vec::new(),
    }
}
