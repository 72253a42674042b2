//! Adyen's classic notifications: every item of `notificationItems` is signed by itself, over some of its fields.
//! Source: @adyen/api-library 32.1.0, `hmacValidator`; docs.adyen.com, "Verify HMAC signatures".
//!
//! HMAC-SHA256, keyed with the secret's hex, over `pspReference:originalReference:merchantAccountCode:merchantReference:value:currency:
//! eventCode:success`; an absent field is empty. All items must be good, and there must be at least one. Other fields prove nothing.
//! The fields are not escaped, so a `:` may stand in the merchant's own reference only: then there is one way to read what is signed.

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::Choice;

use super::{
    Facts, Means,
    definition::{Context, Method, Scheme},
    judge::{Held, Judge, Rule, notifications},
    key::{KeyEncoding, KeyForm},
    mac::{Algorithm, Encoding, Mac},
    place::{At, Place},
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "adyen", about: "the signed fields of each Adyen notification item", read: Some(read) };

/// The signed fields of an item, in their order; the fourth is the merchant's own text.
const FIELDS: [&str; 8] =
    ["/pspReference", "/originalReference", "/merchantAccountCode", "/merchantReference", "/amount/value", "/amount/currency", "/eventCode", "/success"];
const FREE: usize = 3;

#[derive(Clone, Debug)]
struct Adyen;

fn read(_: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    Some(Method::Own(Arc::new(Adyen)))
}

impl Rule for Adyen {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        let form = KeyForm { encoding: KeyEncoding::Hex, ..KeyForm::default() };
        let key = |secret: &crate::secret::Secret| {
            let bytes = form.bytes(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
            Ok(Key { label: secret.label().clone(), not_after: secret.not_after(), start: Mac::hmac(Algorithm::Sha256, &bytes) })
        };
        Ok(Box::new(Bound(means.secrets.iter().map(key).collect::<Result<_, String>>()?)))
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }

    fn needs_secret(&self, _: bool) -> bool {
        true
    }

    fn covers(&self, place: &Place) -> bool {
        let At::Json { pointer, .. } = &place.at else { return false };
        let item = pointer.as_str().strip_prefix("/notificationItems/0/NotificationRequestItem");
        item.is_some_and(|field| FIELDS.contains(&field))
    }

    fn signs_content(&self) -> bool {
        true
    }
}

struct Key {
    label: Arc<str>,
    not_after: Option<i64>,
    start: Mac,
}

struct Bound(Vec<Key>);

fn malformed(what: impl Into<String>) -> Reject {
    Reject::new(Reason::SignatureMalformed, what.into())
}

/// What is signed of one item.
fn signed(item: &Value, number: usize) -> Result<String, Reject> {
    if !item.get("amount").is_some_and(Value::is_object) {
        return Err(malformed(format!("item {number} has no `amount`")));
    }
    let mut text = String::new();
    for (at, field) in FIELDS.iter().enumerate() {
        if at > 0 {
            text.push(':');
        }
        match item.pointer(field) {
            None | Some(Value::Null) => {}
            Some(Value::String(value)) if at == FREE || !value.contains(':') => text.push_str(value),
            Some(Value::Number(value)) if value.is_i64() || value.is_u64() => text.push_str(&value.to_string()),
            Some(Value::Bool(value)) => text.push_str(if *value { "true" } else { "false" }),
            Some(_) => return Err(malformed(format!("`{}` of item {number} is not in the form that is signed", &field[1..]))),
        }
    }
    Ok(text)
}

impl Bound {
    /// The label of the key that made the signature.
    fn find(&self, text: &str, given: &[u8], number: usize, now_ms: i64) -> Result<Arc<str>, Reject> {
        let given = Encoding::Base64
            .decode_tag(given, Algorithm::Sha256.len())
            .ok_or_else(|| malformed(format!("the signature of item {number} is not base64 of 32 bytes")))?;
        let mut found = None;
        for key in self.0.iter().filter(|key| key.not_after.is_none_or(|last| now_ms <= last)) {
            let mut mac = key.start.clone();
            mac.update(text.as_bytes());
            let equal: Choice = mac.finish().matches(&given);
            if bool::from(equal) && found.is_none() {
                found = Some(key.label.clone());
            }
        }
        found.ok_or_else(|| Reject::new(Reason::SignatureMismatch, format!("no configured secret gives the signature of item {number}")))
    }
}

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
        let parsed = notifications(body)?;
        let items = parsed.get("notificationItems").and_then(Value::as_array);
        let items = items.ok_or_else(|| malformed("the body has no list `notificationItems`"))?;
        let mut content = Sha256::new().chain_update(b"hooklatch adyen\0");
        let mut label = None;
        for (at, entry) in items.iter().enumerate() {
            let number = at + 1;
            let item = entry.get("NotificationRequestItem").ok_or_else(|| malformed(format!("item {number} is no `NotificationRequestItem`")))?;
            let given = item.pointer("/additionalData/hmacSignature").and_then(Value::as_str).filter(|given| !given.is_empty());
            let given = given.ok_or_else(|| Reject::new(Reason::SignatureMissing, format!("item {number} has no `hmacSignature`")))?;
            let text = signed(item, number)?;
            let by = self.find(&text, given.as_bytes(), number, now_ms)?;
            label.get_or_insert(by);
            content.update((text.len() as u64).to_be_bytes());
            content.update(&text);
        }
        let label = label.ok_or_else(|| Reject::new(Reason::SignatureMissing, "there is no item, so nothing is signed"))?;
        Ok(Held { label, timestamp_ms: None, content: content.finalize().into(), id: None, event_type: None })
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method as HttpMethod};

    use super::*;
    use crate::secret::Secret;

    fn check(body: &Value, want: Result<(), Reason>) {
        let secrets = [Secret::new("one", b"00FF".to_vec(), None)];
        let judge = Adyen.bind(&Means { secrets: &secrets, ..Means::default() }).expect("hex");
        let headers = HeaderMap::new();
        let facts = Facts { method: &HttpMethod::POST, base: "https://h.example", target: "/", headers: &headers };
        let got = judge.finish(&facts, &Chunks::from(bytes::Bytes::from(body.to_string())), 0);
        assert_eq!(got.map(|_| ()).map_err(|why| why.reason), want, "{body}");
    }

    fn item(change: impl FnOnce(&mut Value)) -> Value {
        let mut item = serde_json::json!({ "amount": { "value": 1130, "currency": "EUR" }, "pspReference": "7914", "eventCode": "CAPTURE", "success": "true" });
        change(&mut item);
        let mut mac = Mac::hmac(Algorithm::Sha256, &[0, 255]);
        mac.update(
            FIELDS
                .map(|field| item.pointer(field).map_or_else(String::new, |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .join(":")
                .as_bytes(),
        );
        item["additionalData"] = serde_json::json!({ "hmacSignature": Encoding::Base64.encode(mac.finish().as_slice()) });
        serde_json::json!({ "NotificationRequestItem": item })
    }

    #[test]
    fn what_is_signed_is_read_in_one_way() {
        let body = |items: Vec<Value>| serde_json::json!({ "notificationItems": items });
        check(&body(vec![item(|_| {})]), Ok(()));
        check(&body(vec![item(|i| i["merchantReference"] = "a:b".into()), item(|_| {})]), Ok(()));
        check(&body(vec![item(|i| i["success"] = true.into())]), Ok(()));
        check(&body(vec![item(|i| i["pspReference"] = "a:b".into())]), Err(Reason::SignatureMalformed));
        check(&body(vec![item(|i| i["amount"]["value"] = 1.5.into())]), Err(Reason::SignatureMalformed));
        check(&body(vec![item(|i| i["amount"] = "1130".into())]), Err(Reason::SignatureMalformed));
        check(&body(vec![item(|_| {}), serde_json::json!({})]), Err(Reason::SignatureMalformed));
        check(&body(vec![]), Err(Reason::SignatureMissing));
        check(&serde_json::json!([]), Err(Reason::SignatureMalformed));
    }
}
