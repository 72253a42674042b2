//! Microsoft Graph change notifications: every one carries the `clientState` that its subscription was made with.
//! Source: learn.microsoft.com, "Receive change notifications through webhooks".
//!
//! It proves who sent the request and nothing about its content. One request brings several notifications, maybe of several
//! subscriptions: all must carry a configured state, and there must be at least one.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Facts, Means,
    definition::{Context, Method, Scheme},
    judge::{Held, Judge, Rule, notifications},
    token::Known,
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "microsoft-graph", about: "the `clientState` of each Microsoft Graph notification", read: Some(read) };

/// The longest `clientState`, as their reference has it, in characters.
const MAX_STATE: usize = 128;

#[derive(Clone, Debug)]
struct Graph;

fn read(_: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    Some(Method::Own(Arc::new(Graph)))
}

impl Rule for Graph {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        match means.secrets.iter().find(|secret| String::from_utf8_lossy(secret.expose()).chars().count() > MAX_STATE) {
            Some(secret) => Err(format!("secret {}: a `clientState` has at most {MAX_STATE} characters", secret.label())),
            None => Ok(Box::new(Bound(Known::new(means.secrets)))),
        }
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }

    fn needs_secret(&self, _: bool) -> bool {
        true
    }
}

struct Bound(Known);

impl Judge for Bound {
    fn stands(&self, _: &Facts<'_>) -> bool {
        true
    }

    fn prepare(&self, _: &Facts<'_>, _: i64) -> Result<(), Reject> {
        Ok(())
    }

    fn reads_body(&self) -> bool {
        true
    }

    fn finish(&self, _: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let malformed = |what: String| Reject::new(Reason::SignatureMalformed, what);
        let parsed = notifications(body)?;
        let notifications = parsed.get("value").and_then(Value::as_array).filter(|all| !all.is_empty());
        let notifications = notifications.ok_or_else(|| malformed("the body has no list `value` of notifications".to_owned()))?;
        let mut label = None;
        for (at, notification) in notifications.iter().enumerate() {
            let state = notification.get("clientState").and_then(Value::as_str).filter(|state| !state.is_empty());
            let state = state.ok_or_else(|| Reject::new(Reason::TokenInvalid, format!("notification {} has no `clientState`", at + 1)))?;
            let found = self.0.find(state.as_bytes(), now_ms);
            label =
                Some(found.ok_or_else(|| Reject::new(Reason::TokenInvalid, format!("the `clientState` of notification {} is none of the secrets", at + 1)))?);
        }
        let label = label.ok_or_else(|| malformed("there is no notification".to_owned()))?;
        Ok(Held { label, timestamp_ms: None, content: [0; 32], id: None, event_type: None })
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        vec![("what this provider sends proves who sent it and nothing about the body", "guard the route with `allow_ips` or `client_cert` as well")]
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method as HttpMethod};

    use super::*;
    use crate::secret::Secret;

    fn check(body: &str, want: Result<&str, Reason>) {
        let secrets = [Secret::new("one", b"state one".to_vec(), None), Secret::new("old", b"state old".to_vec(), Some(500))];
        let judge = Graph.bind(&Means { secrets: &secrets, ..Means::default() }).expect("good secrets");
        let headers = HeaderMap::new();
        let facts = Facts { method: &HttpMethod::POST, base: "https://h.example", target: "/", headers: &headers };
        let body = Chunks::from(bytes::Bytes::copy_from_slice(body.as_bytes()));
        match (judge.finish(&facts, &body, 1000), want) {
            (Ok(held), Ok(label)) => assert_eq!(&*held.label, label),
            (Err(why), Err(reason)) => assert_eq!(why.reason, reason, "{why}"),
            (got, want) => panic!("{got:?}, due was {want:?}"),
        }
    }

    #[test]
    fn every_notification_must_carry_the_state() {
        check(r#"{"value":[{"clientState":"state one","changeType":"created"}]}"#, Ok("one"));
        check(r#"{"value":[{"clientState":"state one"},{"clientState":"state one"}]}"#, Ok("one"));
        check(r#"{"value":[{"clientState":"state one"},{"clientState":"state two"}]}"#, Err(Reason::TokenInvalid));
        check(r#"{"value":[{"clientState":"state one"},{}]}"#, Err(Reason::TokenInvalid));
        check(r#"{"value":[{"clientState":"state old"}]}"#, Err(Reason::TokenInvalid));
        check(r#"{"value":[{"clientState":""}]}"#, Err(Reason::TokenInvalid));
        check(r#"{"value":[{"clientState":["state one"]}]}"#, Err(Reason::TokenInvalid));
        check(r#"{"value":[{"clientState":"x","clientState":"state one"}]}"#, Err(Reason::SignatureMalformed));
        check(r#"{"value":[]}"#, Err(Reason::SignatureMalformed));
        check(r#"{"clientState":"state one"}"#, Err(Reason::SignatureMalformed));
        check("", Err(Reason::SignatureMalformed));
    }
}
