//! PayPal: transmission id, time, webhook id and the body's CRC-32, by the key of a certificate that the request names.
//! Source: developer.paypal.com, "Verify webhook signatures"; paypalrestsdk 1.13.3.
//!
//! The webhook id is the receiver's own and not sent. The CRC-32 does not bind the body against an attacker who can make another one
//! with the same checksum: what PayPal signs proves the sender and guards against accidents.

use std::sync::Arc;

use data_encoding::BASE64;
use http::HeaderName;
use sha2::{Digest, Sha256};

use super::{
    Facts, Means,
    certified::Certificates,
    definition::{Context, Method, Scheme},
    engine::PUBLISHED,
    judge::{Held, Judge, Rule},
    place::Place,
    public_key::{Algorithm, Hash, Padding},
    timestamp::Unit,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Settings, Source, Want},
    reject::{Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "paypal", about: "PayPal's transmission signature", read: Some(read) };

const ID: HeaderName = HeaderName::from_static("paypal-transmission-id");
const TIME: HeaderName = HeaderName::from_static("paypal-transmission-time");
const SIGNATURE: HeaderName = HeaderName::from_static("paypal-transmission-sig");
const CERT_URL: HeaderName = HeaderName::from_static("paypal-cert-url");
const ALGORITHM: HeaderName = HeaderName::from_static("paypal-auth-algo");

#[derive(Clone, Debug)]
struct PayPal;

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    if !context.params.iter().any(|name| name == "webhook_id") {
        section.problem("params", "this scheme signs the webhook's id", "declare it: params = [\"webhook_id\"]");
        return None;
    }
    Some(Method::Own(Arc::new(PayPal)))
}

fn is_paypal(host: &str) -> bool {
    host == "paypal.com" || host.strip_suffix(".paypal.com").is_some_and(|rest| !rest.is_empty())
}

impl Rule for PayPal {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        let source = means.source(None).unwrap_or_else(|| Source::remote(Settings::certificates("paypal.com")));
        let webhook_id = means.params.get("webhook_id").cloned().unwrap_or_default();
        Ok(Box::new(Bound { certificates: Certificates { source, host: is_paypal, suffix: "", name: ".paypal.com" }, webhook_id }))
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn needs_secret(&self, _: bool) -> bool {
        false
    }

    fn covers(&self, place: &Place) -> bool {
        *place == Place::header(ID)
    }

    fn names_id(&self) -> bool {
        true
    }
}

struct Bound {
    certificates: Certificates,
    webhook_id: String,
}

/// The headers of a transmission.
struct Transmission {
    id: String,
    time: String,
    time_ms: i64,
    signature: Vec<u8>,
    certificate: String,
}

impl Bound {
    fn read(facts: &Facts<'_>) -> Result<Transmission, Reject> {
        let malformed = |what: &'static str| Reject::new(Reason::SignatureMalformed, what);
        let text = |name: HeaderName, reason: Reason| {
            let place = Place::header(name);
            let value = place.value(facts, None)?.ok_or_else(|| Reject::new(reason, format!("{place} is missing or empty")))?;
            String::from_utf8(value.into_owned()).map_err(|_| Reject::new(Reason::SignatureMalformed, format!("{place} is not text")))
        };
        let signature = text(SIGNATURE, Reason::SignatureMissing)?;
        let signature = BASE64.decode(signature.as_bytes()).map_err(|_| malformed("the transmission's signature is not base64"))?;
        if text(ALGORITHM, Reason::SignatureMalformed)? != "SHA256withRSA" {
            return Err(malformed("the transmission's algorithm is not SHA256withRSA"));
        }
        let time = text(TIME, Reason::TimestampMissing)?;
        let time_ms = Unit::Rfc3339.parse(time.as_bytes()).ok_or_else(|| malformed("the transmission's time is not an RFC 3339 time"))?;
        let id = text(ID, Reason::SignatureMalformed)?;
        if id.contains('|') || time.contains('|') {
            return Err(malformed("a part of the transmission holds the separator of what is signed"));
        }
        Ok(Transmission { id, time, time_ms, signature, certificate: text(CERT_URL, Reason::SignatureMalformed)? })
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        facts.headers.contains_key(SIGNATURE)
    }

    fn prepare(&self, facts: &Facts<'_>, _: i64) -> Result<(), Reject> {
        let transmission = Self::read(facts)?;
        self.certificates.check(&transmission.certificate)
    }

    fn wants(&self, facts: &Facts<'_>, _: &Chunks, _: i64) -> Option<Want> {
        self.certificates.want(&Self::read(facts).ok()?.certificate)
    }

    fn reads_body(&self) -> bool {
        false
    }

    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let transmission = Self::read(facts)?;
        let (mut crc, mut digest) = (crc32fast::Hasher::new(), Sha256::new().chain_update(b"hooklatch paypal\0"));
        for piece in body.pieces() {
            crc.update(piece);
            digest.update(piece);
        }
        let signed = format!("{}|{}|{}|{}", transmission.id, transmission.time, self.webhook_id, crc.finalize());
        let key = self.certificates.key(&transmission.certificate, now_ms)?;
        if !key.verify(Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1), signed.as_bytes(), &transmission.signature) {
            return Err(Reject::new(Reason::SignatureMismatch, "the signature is not that of the certificate's key over this transmission and webhook id"));
        }
        let content = digest.chain_update(&signed).finalize().into();
        Ok(Held { label: PUBLISHED.into(), timestamp_ms: Some(transmission.time_ms), content, id: Some(transmission.id), event_type: None })
    }

    fn headers(&self) -> Vec<HeaderName> {
        vec![SIGNATURE]
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn names_its_route(&self) -> bool {
        true
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        vec![("this provider signs a CRC-32 of the body, which an attacker can keep while changing the body", "guard the route with `allow_ips` as well")]
    }

    fn labels(&self) -> Vec<Arc<str>> {
        vec![PUBLISHED.into()]
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        vec![self.certificates.source.clone()]
    }
}
