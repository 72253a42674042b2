//! Amazon SNS: the fields of a message are signed, not its bytes. Source: docs.aws.amazon.com, "Verifying the signatures of Amazon SNS
//! messages"; sns-validator 0.3.5.
//!
//! The signature says that SNS sent it, for anybody's topic: name the topics that are yours (`params = { topic_arn = "…" }`).

use std::{collections::BTreeSet, sync::Arc};

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use super::{
    Facts, Means,
    certified::Certificates,
    definition::{Context, Method, Scheme},
    engine::PUBLISHED,
    judge::{Held, Judge, Rule},
    place::{At, Place},
    public_key::{Algorithm, Hash, Padding},
    timestamp::Unit,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Settings, Source, Want},
    reject::{Reason, Reject},
    section::Section,
    validate::json::{self, Pointer, Value},
};

pub(super) static SCHEME: Scheme = Scheme { name: "aws-sns", about: "the signed fields of an Amazon SNS message", read: Some(read) };

const DEPTH: usize = 64;

/// The fields that are read, by their places in [`FIELDS`].
const TYPE: usize = 0;
const MESSAGE_ID: usize = 1;
const TOPIC: usize = 2;
const TIMESTAMP: usize = 3;
const VERSION: usize = 4;
const SIGNATURE: usize = 5;
const CERT_URL: usize = 6;
const CERT_URL_OLD: usize = 7;
const MESSAGE: usize = 8;
const SUBJECT: usize = 9;
const SUBSCRIBE_URL: usize = 10;
const TOKEN: usize = 11;
static FIELDS: [&str; 12] = [
    "/Type",
    "/MessageId",
    "/TopicArn",
    "/Timestamp",
    "/SignatureVersion",
    "/Signature",
    "/SigningCertURL",
    "/SigningCertUrl",
    "/Message",
    "/Subject",
    "/SubscribeURL",
    "/Token",
];

/// What is signed of a notification, and of the confirmations.
const NOTIFICATION: &[usize] = &[MESSAGE, MESSAGE_ID, SUBJECT, TIMESTAMP, TOPIC, TYPE];
const CONFIRMATION: &[usize] = &[MESSAGE, MESSAGE_ID, SUBSCRIBE_URL, TIMESTAMP, TOKEN, TOPIC, TYPE];

#[derive(Clone, Debug)]
struct Sns;

fn read(_: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    Some(Method::Own(Arc::new(Sns)))
}

/// A label of a region: `us-east-1`, `cn-north-1`.
fn is_sns(host: &str) -> bool {
    let region = host.strip_prefix("sns.").and_then(|rest| rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn")));
    region.is_some_and(|region| region.len() >= 3 && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
}

impl Rule for Sns {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        let source = means.source(None).unwrap_or_else(|| Source::remote(Settings::certificates("amazonaws.com")));
        let topics = means.params.get("topic_arn").map(|list| list.split([',', ' ']).filter(|arn| !arn.is_empty()).map(str::to_owned).collect());
        let pointers = FIELDS.iter().map(|text| Pointer::parse(text)).collect::<Result<_, _>>()?;
        Ok(Box::new(Bound { certificates: Certificates { source, host: is_sns, suffix: ".pem", name: "" }, topics, pointers }))
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn needs_secret(&self, _: bool) -> bool {
        false
    }

    fn covers(&self, place: &Place) -> bool {
        matches!(&place.at, At::Json { pointer, .. } if NOTIFICATION.iter().any(|at| FIELDS[*at] == pointer.as_str()))
    }

    fn names_id(&self) -> bool {
        true
    }
}

struct Bound {
    certificates: Certificates,
    /// The topics whose messages are taken; without them, anybody's.
    topics: Option<BTreeSet<String>>,
    pointers: Vec<Pointer>,
}

/// The fields of a message; nothing of it is proven.
struct Message(Vec<Option<String>>);

impl Message {
    fn get(&self, at: usize) -> Result<&str, Reject> {
        self.0[at].as_deref().ok_or_else(|| {
            let reason = if at == SIGNATURE { Reason::SignatureMissing } else { Reason::SignatureMalformed };
            Reject::new(reason, format!("the message has no `{}`", &FIELDS[at][1..]))
        })
    }

    fn certificate(&self) -> Result<&str, Reject> {
        self.0[CERT_URL_OLD].as_deref().filter(|_| self.0[CERT_URL].is_none()).map_or_else(|| self.get(CERT_URL), Ok)
    }

    /// `Key\nValue\n` of each signed field, in the order of their names.
    fn signed(&self) -> Result<String, Reject> {
        let fields = match self.get(TYPE)? {
            "Notification" => NOTIFICATION,
            "SubscriptionConfirmation" | "UnsubscribeConfirmation" => CONFIRMATION,
            _ => return Err(Reject::new(Reason::SignatureMalformed, "the message is of no known `Type`")),
        };
        let mut text = String::new();
        for at in fields {
            if *at == SUBJECT && self.0[SUBJECT].is_none() {
                continue;
            }
            let value = if *at == MESSAGE { self.0[MESSAGE].as_deref().unwrap_or_default() } else { self.get(*at)? };
            text.extend([&FIELDS[*at][1..], "\n", value, "\n"]);
        }
        Ok(text)
    }
}

impl Bound {
    fn message(&self, body: &Chunks) -> Result<Message, Reject> {
        let bytes = body.to_bytes();
        let found =
            json::find(&bytes, DEPTH, &self.pointers).map_err(|flaw| Reject::new(Reason::SignatureMalformed, format!("this is no SNS message: {flaw}")))?;
        let text = |(at, value): (usize, Option<Value<'_>>)| match value {
            None | Some(Value::Null) => Ok(None),
            // An empty message is signed as such; any other empty field counts as absent.
            Some(Value::Text(text)) => Ok(Some(text.into_owned()).filter(|text| at == MESSAGE || !text.is_empty())),
            Some(_) => Err(Reject::new(Reason::SignatureMalformed, format!("`{}` is not a text", &FIELDS[at][1..]))),
        };
        found.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Message)
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        facts.headers.contains_key("x-amz-sns-message-type")
    }

    fn prepare(&self, _: &Facts<'_>, _: i64) -> Result<(), Reject> {
        Ok(())
    }

    fn wants(&self, _: &Facts<'_>, body: &Chunks, _: i64) -> Option<Want> {
        let message = self.message(body).ok()?;
        message.signed().ok()?;
        self.certificates.want(message.certificate().ok()?)
    }

    fn reads_body(&self) -> bool {
        true
    }

    fn finish(&self, _: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let message = self.message(body)?;
        let signature = message.get(SIGNATURE)?;
        let signed = message.signed()?;
        let hash = match message.get(VERSION)? {
            "1" => Hash::Sha1,
            "2" => Hash::Sha256,
            _ => return Err(Reject::new(Reason::SignatureMalformed, "the message's `SignatureVersion` is neither 1 nor 2")),
        };
        let signature = BASE64.decode(signature.as_bytes()).map_err(|_| Reject::new(Reason::SignatureMalformed, "the message's `Signature` is not base64"))?;
        let key = self.certificates.key(message.certificate()?, now_ms)?;
        if !key.verify(Algorithm::Rsa(hash, Padding::Pkcs1), signed.as_bytes(), &signature) {
            return Err(Reject::new(Reason::SignatureMismatch, "the signature is not that of the certificate's key over the message's fields"));
        }
        let topic = message.get(TOPIC)?;
        if self.topics.as_ref().is_some_and(|topics| !topics.contains(topic)) {
            return Err(Reject::new(Reason::ClaimsInvalid, "the message is of a topic that is not in `topic_arn`"));
        }
        let id = message.get(MESSAGE_ID)?;
        Ok(Held {
            label: PUBLISHED.into(),
            timestamp_ms: Unit::Rfc3339.parse(message.get(TIMESTAMP)?.as_bytes()),
            content: Sha256::new().chain_update(b"hooklatch sns\0").chain_update(&signed).finalize().into(),
            // The same id may be sent for several topics.
            id: Some(format!("{topic} {id}")),
            event_type: message.0[TYPE].clone(),
        })
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn names_its_route(&self) -> bool {
        self.topics.is_some()
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        match self.topics {
            Some(_) => Vec::new(),
            None => vec![("messages of anybody's topic are taken", "name yours: params = { topic_arn = \"arn:aws:sns:…\" }")],
        }
    }

    fn labels(&self) -> Vec<Arc<str>> {
        vec![PUBLISHED.into()]
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        vec![self.certificates.source.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::is_sns;

    #[test]
    fn certificates_come_from_sns_alone() {
        fn check(host: &str, good: bool) {
            assert_eq!(is_sns(host), good, "{host}");
        }
        check("sns.us-east-1.amazonaws.com", true);
        check("sns.cn-north-1.amazonaws.com.cn", true);
        check("sns.us-gov-west-1.amazonaws.com", true);
        check("sns.amazonaws.com", false);
        check("sns.a.b.amazonaws.com", false);
        check("sns.us-east-1.amazonaws.com.evil.example", false);
        check("s3.us-east-1.amazonaws.com", false);
        check("evil-sns.us-east-1.amazonaws.com", false);
    }
}
