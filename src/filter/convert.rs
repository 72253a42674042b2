//! An event as the guest sees it, and what the guest returns as what the gate does.
//!
//! Everything that a guest returns is counted against a bound before it is taken over; no collection is sized by a
//! number that a guest chose.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{bindings::hooklatch::filter::types, chain::Known, fault::Cause, host::clean, load::OUTPUT_BYTES};
use crate::{
    event::{Credentials, Event, Verification, is_credential},
    outcome::Answer,
};

/// Header fields that a filter may set, and that it may remove.
const FIELDS: usize = 128;
/// Names and values of the fields it sets, together, in bytes.
const FIELD_BYTES: usize = 32 << 10;
/// Names of destinations, and the longest.
const DESTINATIONS: usize = 64;
const DESTINATION_BYTES: usize = 128;
/// Notes for the audit line: how many, longest name, longest value.
const ANNOTATIONS: usize = 16;
const ANNOTATION_NAME_BYTES: usize = 64;
const ANNOTATION_VALUE_BYTES: usize = 256;
/// Longest event type and order key, in bytes.
const WORD_BYTES: usize = 256;
/// Longest reason or error text, in bytes; longer ones are cut.
pub(super) const REASON_BYTES: usize = 512;
/// Largest body of a filter's own answer, in bytes.
const ANSWER_BYTES: usize = 1 << 20;
/// What filters see in the place of a credential.
const MASKED: &str = "[masked]";

/// The bound on what a call may hand to the host: a body as large as twice what came in has to fit.
pub(super) fn output_limit(event: &Event) -> usize {
    OUTPUT_BYTES.max(event.body.len().saturating_mul(2))
}

/// The parts of an event that have to be written out before they can be lent.
pub(super) struct Lent {
    pub(super) id: String,
    ip: String,
    query: Option<String>,
}

impl Lent {
    pub(super) fn of(event: &Event) -> Self {
        Self { id: event.id.to_string(), ip: event.client.ip.to_string(), query: event.query_without(Credentials::Masked).map(Cow::into_owned) }
    }
}

/// The header fields that a filter may see: values that are not UTF-8 stay with the host, credentials are masked.
pub(super) fn fields<'a>(event: &'a Event) -> Vec<types::HeaderParam<'a>> {
    let shown = |(name, value): (&'a HeaderName, &'a HeaderValue)| {
        let value = if is_credential(name, value) { MASKED } else { std::str::from_utf8(value.as_bytes()).ok()? };
        Some(types::HeaderParam { name: name.as_str(), value })
    };
    event.headers.iter().filter_map(shown).collect()
}

/// The event, lent to the guest. `body` is empty for a filter that wants none.
pub(super) fn event<'a>(event: &'a Event, lent: &'a Lent, headers: &'a [types::HeaderParam<'a>], body: &'a [u8]) -> types::Event<'a> {
    types::Event {
        id: &lent.id,
        route: &event.route,
        provider: event.provider.as_deref(),
        verification: match event.verification {
            Verification::None => types::Verification::None,
            Verification::Sender => types::Verification::Sender,
            Verification::Content => types::Verification::Content,
        },
        secret_label: event.secret_label.as_deref(),
        event_type: event.event_type.as_deref(),
        delivery_id: event.delivery_id.as_deref(),
        received_ms: u64::try_from(event.received_ms).unwrap_or(0),
        client_ip: &lent.ip,
        method: event.method.as_str(),
        path: &event.path,
        query: lent.query.as_deref(),
        headers,
        body,
    }
}

/// What a filter decided, checked.
#[derive(Debug)]
pub(super) enum Decision {
    Pass(Changes),
    Drop(Option<String>),
    Reject { status: u16, reason: String },
    Respond(Answer),
}

/// Changes that are known to be allowed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    body: Option<Bytes>,
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
    destinations: Option<Vec<String>>,
    event_type: Option<String>,
    annotations: Vec<(String, String)>,
}

/// Judges what the guest returned; `output` bounds a new body, `known` are the destinations that it may name.
pub(super) fn decision(outcome: types::Outcome, output: usize, known: Known<'_>) -> Result<Decision, Cause> {
    match outcome {
        types::Outcome::Pass(made) => changes(made, output, known).map(Decision::Pass),
        types::Outcome::Drop(reason) => Ok(Decision::Drop(reason.map(|reason| clean(&reason, REASON_BYTES)))),
        types::Outcome::Reject(rejection) => match rejection.status {
            400..=499 | 503 => Ok(Decision::Reject { status: rejection.status, reason: clean(&rejection.reason, REASON_BYTES) }),
            other => Err(bad(format!("a rejection has a status of 400 to 499 or 503, not {other}"))),
        },
        types::Outcome::Respond(response) => respond(response).map(Decision::Respond),
        types::Outcome::Emit(emissions) if emissions.is_empty() => Ok(Decision::Drop(Some("the filter emits nothing".into()))),
        types::Outcome::Emit(_) => Err(Cause::NotBuilt("`emit`, which needs the durable queue,")),
    }
}

fn changes(made: types::Changes, output: usize, known: Known<'_>) -> Result<Changes, Cause> {
    at_most("set-headers", made.set_headers.len(), FIELDS)?;
    at_most("remove-headers", made.remove_headers.len(), FIELDS)?;
    at_most("annotations", made.annotations.len(), ANNOTATIONS)?;
    at_most("bytes of body", made.body.as_ref().map_or(0, Vec::len), output)?;
    let set = set_fields(&made.set_headers, false)?;
    let remove = made.remove_headers.iter().map(|name| field_name(name, false)).collect::<Result<_, _>>()?;
    if let Some(names) = &made.destinations {
        at_most("destinations", names.len(), DESTINATIONS)?;
        names.iter().try_for_each(|name| at_most("bytes of a destination's name", name.len(), DESTINATION_BYTES))?;
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(bad(format!("the route delivers to no `{}`: add it to the route's `deliver`, or change the filter", clean(name, DESTINATION_BYTES))));
        }
    }
    for word in [&made.event_type, &made.order_key].into_iter().flatten() {
        at_most("bytes of event-type or order-key", word.len(), WORD_BYTES)?;
        if word.contains(char::is_control) {
            return Err(bad("event-type and order-key hold no control characters".to_owned()));
        }
    }
    for (name, value) in &made.annotations {
        at_most("bytes of an annotation's name", name.len(), ANNOTATION_NAME_BYTES)?;
        at_most("bytes of an annotation", value.len(), ANNOTATION_VALUE_BYTES)?;
    }
    Ok(Changes {
        body: made.body.map(Bytes::from),
        set,
        remove,
        destinations: made.destinations,
        event_type: made.event_type,
        annotations: made.annotations.iter().map(|(name, value)| (clean(name, ANNOTATION_NAME_BYTES), clean(value, ANNOTATION_VALUE_BYTES))).collect(),
    })
}

fn respond(response: types::Response) -> Result<Answer, Cause> {
    let status = match response.status {
        200..=299 | 400..=599 => StatusCode::from_u16(response.status).map_err(|_| bad("a status that is none".to_owned()))?,
        other => return Err(bad(format!("an answer has a status of 200 to 299 or 400 to 599, not {other}"))),
    };
    at_most("headers of an answer", response.headers.len(), FIELDS)?;
    at_most("bytes of an answer's body", response.body.len(), ANSWER_BYTES)?;
    let mut headers = HeaderMap::new();
    for (name, value) in set_fields(&response.headers, true)? {
        headers.append(name, value);
    }
    Ok(Answer { status, headers, body: response.body.into() })
}

fn set_fields(fields: &[types::HeaderResult], answer: bool) -> Result<Vec<(HeaderName, HeaderValue)>, Cause> {
    let bytes: usize = fields.iter().map(|field| field.name.len() + field.value.len()).sum();
    at_most("bytes of header fields", bytes, FIELD_BYTES)?;
    fields
        .iter()
        .map(|field| {
            let name = field_name(&field.name, answer)?;
            let value = HeaderValue::from_str(&field.value).map_err(|_| bad(format!("the value of `{name}` is none that a header field may have")))?;
            Ok((name, value))
        })
        .collect()
}

/// A field that a filter may touch. Framing, the connection, the target and the gate's own fields are not among them, nor, in
/// an answer, cookies.
fn field_name(name: &str, answer: bool) -> Result<HeaderName, Cause> {
    const FRAMING: [HeaderName; 9] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let shown = clean(name, 64);
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(format!("`{shown}` is no header name")))?;
    // `_` and `-` are one to many a receiver.
    let plain = parsed.as_str().replace('_', "-");
    let framing = FRAMING.contains(&parsed) || ["keep-alive", "proxy-connection", "expect"].contains(&plain.as_str());
    if framing || plain.starts_with("hooklatch-") || (answer && parsed == header::SET_COOKIE) {
        return Err(bad(format!("`{shown}` is not for filters to touch")));
    }
    Ok(parsed)
}

fn at_most(what: &str, found: usize, most: usize) -> Result<(), Cause> {
    if found > most { Err(bad(format!("{found} {what}: at most {most}"))) } else { Ok(()) }
}

fn bad(why: String) -> Cause {
    Cause::BadOutcome(why)
}

impl Changes {
    /// Makes the changes: removal first, then setting, where a name given twice is sent twice.
    pub(super) fn make(self, filter: &str, event: &mut Event) {
        for name in &self.remove {
            event.headers.remove(name);
        }
        for (name, _) in &self.set {
            event.headers.remove(name);
        }
        for (name, value) in self.set {
            event.headers.append(name, value);
        }
        if let Some(body) = self.body {
            event.body = body.into();
        }
        if self.destinations.is_some() {
            event.chosen = self.destinations;
        }
        if self.event_type.is_some() {
            event.event_type = self.event_type;
        }
        event.annotations.extend(self.annotations.into_iter().map(|(name, value)| (format!("{filter}.{name}"), value)));
    }
}
