//! The door of `benches/condition.rs`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header::CONTENT_TYPE};

use super::{Condition, Scope};
use crate::{
    clock::Clock,
    event::{Client, Event, EventId, Verification},
};

/// A condition and an event, evaluated as often as wanted.
pub struct ConditionCall {
    condition: Condition,
    event: Event,
    clock: Clock,
}

impl ConditionCall {
    /// # Panics
    ///
    /// Where the condition is not good.
    #[must_use]
    pub fn new(condition: &str, body: &[u8]) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let event = Event {
            id: EventId::new(),
            route: "github".into(),
            provider: Some("github".into()),
            verification: Verification::Content,
            secret_label: None,
            event_type: Some("push".to_owned()),
            delivery_id: Some("72d3162e".to_owned()),
            received_ms: 0,
            client: Client::new([192, 0, 2, 1].into()),
            client_cert: None,
            method: Method::POST,
            path: "/github".to_owned(),
            rest: None,
            query: None,
            secret_params: Default::default(),
            scheme: "https",
            host: None,
            headers,
            body: Bytes::copy_from_slice(body).into(),
            chosen: None,
            annotations: Vec::new(),
        };
        Self { condition: Condition::compile(condition).expect("a good condition"), event, clock: Clock::hand(0) }
    }

    /// One event's whole cost: a fresh scope, so that the body is parsed where the condition asks for it.
    #[must_use]
    pub fn run(&self) -> bool {
        self.condition.matches(&Scope::new(&self.event, self.clock.now())).is_ok_and(|holds| holds)
    }
}
