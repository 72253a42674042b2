//! Why a request does not verify, in plain words: computes what would verify if one of the usual mistakes had been made, and names the
//! mistake that fits.
//!
//! It never says a secret or the signature that would be right: what it finds is the kind of mistake. Nor does it say how much of a forged
//! signature is right: every finding needs the whole of a signature, or so much of one that nobody guesses it. The work is bounded, in
//! requests judged and in bytes of bodies hashed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use http::{HeaderName, HeaderValue, header};
use serde_json::json;

pub(crate) use super::account::Account;
use super::{
    Catalogue, Definition, Means, Plan, Ready, Signed,
    account::account,
    cases::Request,
    definition::{Method, Variant},
    engine::Recipe,
    key::{KeyEncoding, KeyForm},
    mac::{Algorithm, Encoding, Mac, Tag},
    place::{At, Body, Pick, Place, Pointers, Whole, is_form},
    scan,
    template::{self, Template},
    timestamp::Unit,
    variants::{self, Hints},
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    secret::Secret,
};

/// The most bytes of bodies that one explanation hashes: where a body is large, fewer mistakes are tried.
const BYTES: u64 = 512 << 20;
/// The same beside live traffic.
const LIVE_BYTES: u64 = 64 << 20;
/// The most requests that one explanation judges.
const TRIES: usize = 20_000;
/// What a try costs beside its body's bytes.
const COST: u64 = 512;
/// How far around a signed time its true value is looked for, in seconds.
const AROUND: i64 = 900;
/// The most findings.
const FINDINGS: usize = 6;
/// The fewest characters of a cut signature that are believed: 80 bits in hex, more in base64.
const CUT: usize = 20;

/// A verdict and what may have led to it.
pub(crate) struct Explanation {
    pub(crate) verdict: Result<Signed, Reject>,
    pub(crate) account: Account,
    /// The likeliest first; never empty after a refusal.
    pub(crate) findings: Vec<Finding>,
    /// How many changed requests were judged.
    pub(crate) tries: usize,
    /// Whether the bound on the work left mistakes untried.
    pub(crate) bounded: bool,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// A stable word of `docs/verify.md`.
    pub(crate) cause: &'static str,
    /// A sentence without a full stop.
    pub(crate) text: String,
    /// Whether it was computed: with this mistake undone, the request verifies. Otherwise it is what the request looks like.
    pub(crate) certain: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Explanation {
    /// For the command line, the admin API and its page. Never a secret or a signature.
    pub(crate) fn as_json(&self) -> serde_json::Value {
        let read: Vec<_> = self.account.read.iter().map(|(what, place)| json!({ "what": what, "where": place })).collect();
        let signed: Vec<_> = self.account.signed.iter().map(|text| json!({ "bytes": text.bytes, "sha256": text.sha256, "text": text.shown })).collect();
        let findings: Vec<_> =
            self.findings.iter().map(|finding| json!({ "cause": finding.cause, "certain": finding.certain, "text": finding.text })).collect();
        let mut told = match &self.verdict {
            Ok(signed) => json!({
                "verdict": "accept", "proves": signed.verification.code(), "secret": signed.secret.as_deref(), "delivery_id": signed.delivery_id,
                "event_type": signed.event_type, "timestamp_ms": signed.timestamp_ms, "replay_key": signed.replay.map(|key| key.to_string()),
            }),
            Err(why) => json!({ "verdict": "reject", "reason": why.reason.code(), "detail": why.detail }),
        };
        told["scheme"] = self.account.scheme.as_str().into();
        told["read"] = read.into();
        told["signed"] = signed.into();
        told["findings"] = findings.into();
        told["tries"] = self.tries.into();
        told["bounded"] = self.bounded.into();
        told
    }
}

/// Every cause, in the order of `docs/verify.md`.
pub(crate) const CAUSES: &[&str] = &[
    "secret_blank",
    "secret_quoted",
    "secret_bom",
    "secret_name",
    "secret_case",
    "secret_escaped",
    "secret_whsec",
    "secret_encoding",
    "secret_normal_form",
    "secret_other",
    "secret_order",
    "secret_expired",
    "secret_sent",
    "secret_unusable",
    "signature_missing",
    "signature_renamed",
    "signature_twice",
    "signature_prefix",
    "signature_dressed",
    "signature_cut",
    "signature_encoding",
    "signature_algorithm",
    "signature_text",
    "token_form",
    "provider_other",
    "variant_other",
    "param_blank",
    "body_newline_added",
    "body_newline_lost",
    "body_line_ends",
    "body_blank",
    "body_bom",
    "body_nul",
    "body_charset",
    "body_coding",
    "body_base64",
    "body_json_string",
    "body_decoded",
    "body_rewritten",
    "body_form_parsed",
    "body_empty",
    "body_length",
    "url_scheme",
    "url_host",
    "url_port",
    "url_path",
    "url_slash",
    "url_case",
    "url_query",
    "url_query_order",
    "url_encoding",
    "url_unknown",
    "method_changed",
    "time_skew",
    "time_unit",
    "time_changed",
    "time_missing",
    "id_missing",
    "id_changed",
    "field_missing",
    "keys_missing",
    "unknown",
];

/// Secrets that are configured elsewhere.
#[derive(Debug)]
pub(crate) struct Other {
    /// What they are, such as ``the route `billing` ``.
    pub(crate) what: String,
    pub(crate) secrets: Vec<Secret>,
}

/// What is judged.
pub(crate) struct Question<'a> {
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) definition: &'a Arc<Definition>,
    pub(crate) means: Means<'a>,
    pub(crate) others: &'a [Other],
    pub(crate) request: &'a Request,
    pub(crate) now_ms: i64,
    /// Whether the URL is the one that the sender was given, and not made of the Host header.
    pub(crate) knows_url: bool,
    /// Whether it is asked beside live traffic.
    pub(crate) live: bool,
}

/// Judges a request and explains the verdict; the error is for who asked wrongly.
pub(crate) fn explain(question: &Question<'_>) -> Result<Explanation, String> {
    let plan = Plan::new(question.definition, &question.means);
    let search = Search::new(question);
    let (verdict, account) = match plan {
        Ok(plan) => {
            let verdict = question.request.judge(&plan, question.now_ms);
            match &verdict {
                Ok(signed) => search.accepted(signed, &plan),
                Err(why) => search.refused(why),
            }
            (verdict, account(&plan, question.request, question.live))
        }
        Err(why) => {
            // A secret that is no key of this provider is one of the mistakes.
            if !search.unusable(&why) {
                return Err(why);
            }
            (Err(Reject::new(Reason::SignatureMismatch, why)), Account::default())
        }
    };
    let mut findings = search.findings.into_inner();
    findings.sort_by_key(|finding| !finding.certain); // stable: what was computed comes first
    Ok(Explanation { verdict, account, findings, tries: search.tries.get(), bounded: search.bounded.get() })
}

struct Search<'a> {
    question: &'a Question<'a>,
    /// The provider with its times left unjudged.
    timeless: Arc<Definition>,
    /// The secrets without their last days.
    secrets: Vec<Secret>,
    /// Both, ready; `None` where a secret is no key.
    plan: Option<Plan>,
    tries: Cell<usize>,
    bytes: Cell<u64>,
    bounded: Cell<bool>,
    findings: RefCell<Vec<Finding>>,
}

impl<'a> Search<'a> {
    fn new(question: &'a Question<'a>) -> Self {
        let timeless = changed(question.definition, &|_| {});
        let secrets: Vec<Secret> = question.means.secrets.iter().map(|secret| Secret::new(secret.label().clone(), secret.expose().to_vec(), None)).collect();
        let mut search = Self {
            question,
            timeless,
            secrets,
            plan: None,
            tries: Cell::new(0),
            bytes: Cell::new(if question.live { LIVE_BYTES } else { BYTES }),
            bounded: Cell::new(false),
            findings: RefCell::default(),
        };
        search.plan = search.planned(&search.timeless, &search.secrets, question.means.params);
        search
    }

    fn planned(&self, definition: &Arc<Definition>, secrets: &[Secret], params: &BTreeMap<String, String>) -> Option<Plan> {
        let Means { keys, public_keys, .. } = self.question.means;
        Plan::new(definition, &Means { keys, public_keys, ..Means::new(secrets, params) }).ok()
    }

    /// Notes a finding; further ones of the same cause are not.
    fn found(&self, cause: &'static str, certain: bool, text: impl Into<String>) {
        debug_assert!(CAUSES.contains(&cause), "{cause} is not listed");
        let mut findings = self.findings.borrow_mut();
        if findings.len() < FINDINGS && !findings.iter().any(|known| known.cause == cause) {
            findings.push(Finding { cause, text: text.into(), certain });
        }
    }

    /// Whether a cause was computed already: then nothing further is tried.
    fn done(&self) -> bool {
        self.findings.borrow().iter().any(|finding| finding.certain)
    }

    /// Whether one more request of this size may be judged.
    fn may(&self, size: usize) -> bool {
        let left = self.bytes.get().checked_sub(size as u64 + COST).filter(|_| self.tries.get() < TRIES);
        match left {
            Some(left) => {
                self.bytes.set(left);
                self.tries.set(self.tries.get() + 1);
                true
            }
            None => {
                self.bounded.set(true);
                false
            }
        }
    }

    fn fits(&self, plan: &Plan, request: &Request) -> bool {
        self.may(request.body.len()) && request.judge(plan, self.question.now_ms).is_ok()
    }

    /// Whether a changed request verifies, its time left unjudged.
    fn request(&self, request: &Request) -> bool {
        self.plan.as_ref().is_some_and(|plan| self.fits(plan, request))
    }

    /// Whether the request verifies by other secrets.
    fn by(&self, secrets: &[Secret]) -> bool {
        self.planned(&self.timeless, secrets, self.question.means.params).is_some_and(|plan| self.fits(&plan, self.question.request))
    }

    /// Whether the request verifies with the provider's forms changed.
    fn would(&self, change: &dyn Fn(&mut Method)) -> bool {
        let definition = changed(self.question.definition, change);
        self.planned(&definition, &self.secrets, self.question.means.params).is_some_and(|plan| self.fits(&plan, self.question.request))
    }

    fn with_body(&self, body: &[u8]) -> Request {
        Request { body: Chunks::from(Bytes::copy_from_slice(body)), ..self.question.request.copy() }
    }

    // -- accepted --

    fn accepted(&self, signed: &Signed, plan: &Plan) {
        let note = |text: &str| self.findings.borrow_mut().push(Finding { cause: "note", text: text.to_owned(), certain: true });
        if signed.verification != Verification::Content {
            note("the proof does not cover the body: it says who sent the request, not what was sent");
        }
        if signed.replay.is_none() {
            note("nothing unique is signed, so a copy of this request cannot be told from it");
        }
        if plan.attempt_window().is_none() {
            note("no time is judged: this request stays valid for as long as the secret does");
        }
    }

    // -- refused --

    fn refused(&self, why: &Reject) {
        if self.request(self.question.request) {
            self.good_but_for(why);
            return;
        }
        if why.reason == Reason::KeysUnavailable {
            let help = if self.question.live { "the gate could not fetch them" } else { "give them with --public-key" };
            return self.found("keys_missing", false, format!("the keys that this proof is judged by are not at hand: {help} ({})", why.detail));
        }
        if matches!(why.reason, Reason::TimestampStale | Reason::TimestampFuture) {
            // Only of a template's scheme the time can be left out of the judgement.
            let signs = self.plan.as_ref().is_some_and(|plan| self.form(plan).is_some());
            let more = if signs { "and the signature is not good either, whatever the time" } else { "whether the rest of the proof is good is not known" };
            self.found("time_skew", false, format!("{}; {more}; a captured request is judged at the time it was sent", why.detail));
        }
        let steps: [&dyn Fn(&Self); 10] = [
            &|s| s.missing(why),
            &Self::by_key_form,
            &Self::providers_and_proofs,
            &Self::by_secrets,
            &Self::by_others,
            &Self::by_body,
            &Self::by_url,
            &Self::by_time,
            &Self::by_fields,
            &Self::by_recipe,
        ];
        for step in steps {
            if self.done() {
                break;
            }
            step(self);
        }
        if !self.done() {
            self.evidence();
        }
        if self.findings.borrow().is_empty() {
            let tried = self.tries.get();
            let more = if self.bounded.get() { "; the body is so large that not all were tried" } else { "" };
            self.found(
                "unknown",
                false,
                format!("none of the usual mistakes fits ({tried} were tried{more}): is it the secret of this very endpoint, and are these the bytes that were sent?"),
            );
        }
    }

    /// Everything is right but what the plain judgement looks at beside the signature.
    fn good_but_for(&self, why: &Reject) {
        match why.reason {
            Reason::TimestampStale | Reason::TimestampFuture => {
                let signed =
                    self.plan.as_ref().and_then(|plan| self.question.request.judge(plan, self.question.now_ms).ok()).and_then(|signed| signed.timestamp_ms);
                let skew = signed.map(|at| self.question.now_ms - at);
                let mut text = format!("the signature itself is good; only its time is not: {}", why.detail);
                if let Some(skew) = skew {
                    let hours = (skew as f64 / 3_600_000.0).round() as i64;
                    if hours != 0 && hours.abs() <= 14 && (skew - hours * 3_600_000).abs() < 180_000 {
                        text.push_str(&format!("; that is {} hour(s) almost exactly: is a local time written as UTC?", hours.abs()));
                    }
                }
                text.push_str(if self.question.live {
                    "; either it was sent so long ago (a copy, a queue on its way), or one of the two clocks is off by that much"
                } else {
                    "; judge a captured request at the time it was sent, with --now; if that was just now, one of the two clocks is off by that much"
                });
                self.found("time_skew", true, text);
            }
            _ => {
                let now = self.question.now_ms;
                let over = self.question.means.secrets.iter().find(|secret| secret.not_after().is_some_and(|end| end < now));
                match over {
                    Some(secret) => {
                        self.found("secret_expired", true, format!("the signature is good by the secret {}, whose `not_after` is over", secret.label()))
                    }
                    None if self.question.means.variants.is_some() => {
                        self.found("variant_other", true, "the signature is good in a form of this provider that `variants` leaves out");
                    }
                    None => self.found("unknown", false, why.detail.clone().into_owned()),
                }
            }
        }
    }

    // -- what is missing --

    /// The form that the request is of, its variant and its recipe where it has one.
    fn form<'p>(&self, plan: &'p Plan) -> Option<(&'p Variant, &'p Recipe)> {
        let form = plan.forms.get(plan.choose(&self.question.request.facts()))?;
        match &form.ready {
            Ready::Signature(engine) => Some((&form.variant, &engine.recipe)),
            Ready::Token(..) | Ready::Basic(_) | Ready::Own(_) => None,
        }
    }

    fn value(&self, variant: &Variant, place: &Place) -> Option<Vec<u8>> {
        let facts = self.question.request.facts();
        let mut chunks = self.question.request.body.clone();
        chunks.contiguous();
        let whole = Whole::new(&facts, &chunks, &variant.pointers);
        let (fields, _) = scan(&whole, &variant.pointers);
        place.value(&facts, Some(Body { whole: &whole, fields: &fields })).ok()?.map(|value| value.into_owned())
    }

    /// Says what is not there; what fits nevertheless is looked for by the other steps.
    fn missing(&self, why: &Reject) {
        if !matches!(why.reason, Reason::SignatureMissing | Reason::TimestampMissing | Reason::SignatureMalformed) {
            return;
        }
        let request = self.question.request;
        let facts = request.facts();
        let Some((variant, recipe)) = self.plan.as_ref().and_then(|plan| self.form(plan)) else { return };
        let stands = recipe.signatures.iter().any(|signature| signature.place.stands(&facts) || self.value(variant, &signature.place).is_some());
        if !stands && why.reason == Reason::SignatureMissing {
            let words = ["signature", "hmac", "token", "authorization", "digest"];
            let near: Vec<&str> = request.headers.keys().map(HeaderName::as_str).filter(|name| words.iter().any(|word| name.contains(word))).take(8).collect();
            let place = recipe.signatures.first().map_or_else(|| "the signature".to_owned(), |signature| signature.place.to_string());
            self.found("signature_missing", false, match near.as_slice() {
                [] => format!(
                    "{place} is missing, and no header looks like a signature: does the sender have a secret configured, and does every proxy before this one pass the header on?"
                ),
                names => format!("{place} is missing; headers of this request that look like proofs: {}", names.join(", ")),
            });
            return;
        }
        if let Some(timestamp) = &recipe.timestamp
            && why.reason == Reason::TimestampMissing
        {
            self.found(
                "time_missing",
                false,
                format!("{}, the signed time, is missing or empty: a proxy or framework dropped it, or the capture left it out", timestamp.place),
            );
            return;
        }
        if why.reason != Reason::SignatureMissing {
            return;
        }
        let lost = recipe.signed.iter().flat_map(Template::places).find(|place| self.value(variant, place).is_none());
        if let Some(place) = lost {
            let is_id = variant.identity.id.as_ref() == Some(place);
            let (cause, what) =
                if is_id { ("id_missing", "the delivery id, which is signed, is missing") } else { ("field_missing", "a value that is signed is missing") };
            self.found(cause, false, format!("{what}: {place}; a proxy or framework dropped it, or the capture left it out"));
            return;
        }
        if let Some(required) = recipe.require.iter().find(|required| self.value(variant, &required.place).is_none()) {
            self.found("field_missing", false, format!("{}, which this provider always sends, is missing: is the sender another one?", required.place));
        }
    }

    // -- other providers, and signatures that stand or look otherwise --

    fn providers_and_proofs(&self) {
        self.providers();
        self.tokens();
        self.renamed();
        self.proofs();
        self.secret_sent();
    }

    /// Headers that a proxy gave another name: `x-original-…`, `http_…`, or any other for the signature alone.
    fn renamed(&self) {
        let Some((_, recipe)) = self.plan.as_ref().and_then(|plan| self.form(plan)) else { return };
        let request = self.question.request;
        let places = recipe.signatures.iter().map(|signature| &signature.place).chain(recipe.timestamp.iter().map(|timestamp| &timestamp.place));
        let places = places.chain(recipe.signed.iter().flat_map(Template::places)).chain(recipe.require.iter().map(|required| &required.place));
        let wanted: Vec<&HeaderName> = places
            .filter_map(|place| match &place.at {
                At::Header(name) => Some(name),
                _ => None,
            })
            .filter(|name| !request.headers.contains_key(*name))
            .collect();
        let (Some(first), mut all, mut from) = (wanted.first(), request.copy(), Vec::new()) else { return };
        for (name, value) in request.headers.iter().take(256) {
            let plain = name.as_str().replace('_', "-");
            if let Some(meant) = wanted.iter().find(|meant| plain.ends_with(meant.as_str())) {
                all.headers.insert(*meant, value.clone());
                from.push(format!("`{name}`"));
            }
        }
        if !from.is_empty() && self.request(&all) {
            return self.found(
                "signature_renamed",
                true,
                format!("headers have other names than this provider gives them ({}): a proxy or framework renamed them", from.join(", ")),
            );
        }
        if !recipe.signatures.iter().any(|signature| matches!(&signature.place.at, At::Header(name) if name == *first)) {
            return;
        }
        for (name, value) in request.headers.iter().take(128) {
            if self.with_header(first, value.as_bytes()).is_some_and(|request| self.request(&request)) {
                return self.found(
                    "signature_renamed",
                    true,
                    format!("the signature stands in the header `{name}`, and this provider sends it in `{first}`: a proxy or framework renamed it"),
                );
            }
        }
    }

    fn providers(&self) {
        let question = self.question;
        let mut fitting = Vec::new();
        for name in question.catalogue.names().into_iter().filter(|name| *name != &*question.definition.name) {
            let Some(other) = question.catalogue.definition(name) else { continue };
            let other = changed(other, &|_| {});
            if let Some(plan) = self.planned(&other, &self.secrets, question.means.params)
                && self.fits(&plan, question.request)
            {
                fitting.push(format!("`{name}`"));
            }
            if fitting.len() == 4 {
                break;
            }
        }
        if !fitting.is_empty() {
            self.found("provider_other", true, format!("it verifies as {}: the provider may be another one", fitting.join(", ")));
        }
    }

    /// Credentials in another dress.
    fn tokens(&self) {
        let Some(plan) = &self.plan else { return };
        for form in &plan.forms {
            let Ready::Token(token, _) = &form.ready else { continue };
            let At::Header(name) = &token.place.at else { continue };
            let prefix = token.place.prefix.as_bytes();
            let own = self.question.request.headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            let bare = own.strip_prefix(prefix).unwrap_or(own);
            let quoted = |text: &[u8]| text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).map(<[u8]>::to_vec);
            let forms: [(&str, Option<Vec<u8>>); 7] = [
                ("the credential stands without the word that is due before it", Some(own.to_vec())),
                ("the credential has `Bearer ` before it, which this provider's has not", bare.strip_prefix(b"Bearer ").map(<[u8]>::to_vec)),
                ("the credential has `Token ` before it, which this provider's has not", bare.strip_prefix(b"Token ").map(<[u8]>::to_vec)),
                ("the credential has quotes around it", quoted(bare)),
                ("the credential is sent as base64", BASE64.decode(bare).ok()),
                ("the credential is percent-encoded", Some(percent_encoding::percent_decode(bare).collect())),
                ("the credential is sent with `user:` before it, as basic authentication does", {
                    let pair = own.strip_prefix(b"Basic ").and_then(|text| BASE64.decode(text).ok());
                    pair.and_then(|pair| pair.iter().position(|byte| *byte == b':').map(|at| pair[at + 1..].to_vec()))
                }),
            ];
            for (what, value) in forms {
                if let Some(value) = value.filter(|value| !value.is_empty())
                    && let Some(request) = self.with_header(name, &[prefix, &value].concat())
                    && self.request(&request)
                {
                    return self.found("token_form", true, what);
                }
            }
            for (other, value) in self.question.request.headers.iter().take(128).filter(|(other, _)| *other != name) {
                for value in [value.as_bytes(), value.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default()] {
                    if !value.is_empty()
                        && let Some(request) = self.with_header(name, &[prefix, value].concat())
                        && self.request(&request)
                    {
                        return self.found(
                            "signature_renamed",
                            true,
                            format!("the credential stands in the header `{other}`, and this provider sends it in `{name}`"),
                        );
                    }
                }
            }
        }
    }

    fn with_header(&self, name: &HeaderName, value: &[u8]) -> Option<Request> {
        let mut request = self.question.request.copy();
        request.headers.insert(name, HeaderValue::from_bytes(value).ok()?);
        Some(request)
    }

    /// Looks for the right signature in every place and dress of the request.
    fn proofs(&self) {
        let Some(plan) = &self.plan else { return };
        if let Some(Some((cause, what))) = self.spot(plan) {
            return self.found(cause, true, what);
        }
        for (name, algorithm) in Algorithm::WORDS {
            let same = |method: &Method| matches!(method, Method::Signature(recipe) if recipe.algorithm == *algorithm);
            if self.question.definition.variants.iter().all(|variant| same(&variant.method)) {
                continue;
            }
            let other = changed(self.question.definition, &|method| {
                if let Method::Signature(recipe) = method {
                    recipe.algorithm = *algorithm;
                }
            });
            if let Some(plan) = self.planned(&other, &self.secrets, self.question.means.params)
                && let Some(wrong) = self.spot(&plan)
            {
                let more = wrong.filter(|(cause, _)| *cause == "signature_renamed").map(|(_, what)| format!("; {what}")).unwrap_or_default();
                return self.found("signature_algorithm", true, format!("the signature is made with {name}, which is not this provider's algorithm{more}"));
            }
        }
    }

    /// Every signature that would be right, with the recipe it belongs to.
    fn tags<'p>(&self, plan: &'p Plan, request: &Request) -> Vec<(&'p Recipe, Tag)> {
        let facts = request.facts();
        let mut chunks = request.body.clone();
        chunks.contiguous();
        let mut all = Vec::new();
        for form in &plan.forms {
            let Ready::Signature(engine) = &form.ready else { continue };
            if !self.may(chunks.len() * engine.recipe.signed.len() * self.secrets.len().max(1)) {
                break;
            }
            let whole = Whole::new(&facts, &chunks, &form.variant.pointers);
            let (fields, _) = scan(&whole, &form.variant.pointers);
            let body = Body { whole: &whole, fields: &fields };
            all.extend(engine.every(&facts, &chunks, body).into_iter().map(|tag| (&engine.recipe, tag)));
        }
        all
    }

    /// Whether one of the right signatures stands in this request, and what is wrong with how it stands there, if anything is.
    fn spot(&self, plan: &Plan) -> Option<Option<(&'static str, String)>> {
        let request = self.question.request;
        for (recipe, tag) in self.tags(plan, request) {
            if let Some(spot) = self.spot_tag(recipe, &tag) {
                return Some(spot);
            }
        }
        None
    }

    fn spot_tag(&self, recipe: &Recipe, tag: &Tag) -> Option<Option<(&'static str, String)>> {
        let request = self.question.request;
        let signature = recipe.signatures.first()?;
        let wanted = signature.encoding;
        let mut written = spellings(tag);
        written.sort_by_key(|(name, _)| *name != wanted.name()); // stable: the wanted one first
        let own = |name: &HeaderName| recipe.signatures.iter().any(|signature| matches!(&signature.place.at, At::Header(known) if known == name));
        let mut headers: Vec<(&HeaderName, &HeaderValue)> = request.headers.iter().take(256).collect();
        headers.sort_by_key(|(name, _)| !own(name)); // stable: the right header first
        for (name, value) in headers {
            let text = String::from_utf8_lossy(value.as_bytes());
            let dresses = [text.to_string(), percent_encoding::percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned(), text.replace(' ', "+")];
            for (dress, text) in dresses.iter().enumerate().filter(|(at, text)| *at == 0 || **text != dresses[0]) {
                for (spelling, signed) in &written {
                    let Some(at) = text.find(signed.as_str()) else { continue };
                    return Some(self.placed(recipe, name, own(name), (spelling, signed), (text, at, dress)));
                }
            }
            if own(name) {
                let whole = wanted.encode(tag.as_slice());
                let cut =
                    text.split(|c: char| !c.is_ascii_alphanumeric() && !"+/=-_".contains(c)).flat_map(|piece| [piece, piece.rsplit('=').next().unwrap_or("")]);
                for piece in cut {
                    let enough = piece.len() >= CUT.max(whole.len() / 2) && piece.len() < whole.len();
                    if enough && (whole.starts_with(piece) || whole.ends_with(piece)) {
                        let what = format!(
                            "the signature in `{name}` is good as far as it goes, but it was cut: {} of {} characters are there",
                            piece.len(),
                            whole.len()
                        );
                        return Some(Some(("signature_cut", what)));
                    }
                }
            }
        }
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let plain = percent_encoding::percent_decode_str(query).decode_utf8_lossy();
        let in_query = written.iter().any(|(_, signed)| query.contains(signed.as_str()) || plain.contains(signed.as_str()));
        if in_query && !matches!(signature.place.at, At::Query(_)) {
            return Some(Some((
                "signature_renamed",
                format!("the signature stands in the query of the URL, and this provider sends it in {}", signature.place),
            )));
        }
        None
    }

    /// What is wrong with a right signature that stands in a header; `None` where nothing is.
    fn placed(
        &self,
        recipe: &Recipe,
        name: &HeaderName,
        own: bool,
        (spelling, signed): (&str, &str),
        (text, at, dress): (&str, usize, usize),
    ) -> Option<(&'static str, String)> {
        let signature = &recipe.signatures[0];
        let wanted = signature.encoding.name();
        if !own {
            let what =
                format!("the signature stands in the header `{name}`, and this provider sends it in {}: a proxy or framework renamed it", signature.place);
            return Some(("signature_renamed", what));
        }
        if spelling != wanted {
            return Some(("signature_encoding", format!("the signature is written in {spelling}, and this provider's is in {wanted}")));
        }
        if dress > 0 {
            let what = if dress == 1 { "percent-encoded" } else { "read as a form, which made a blank of each `+`" };
            return Some(("signature_dressed", format!("the value of `{name}` was {what} on the way; the signature in it is good")));
        }
        let many = self.question.request.headers.get_all(name).iter().count() > 1;
        if many || text.matches(signed).count() > 1 || (matches!(signature.place.pick, Pick::Whole) && text.contains(',')) {
            let what = format!(
                "`{name}` holds more than one value: it was sent twice, or joined with another; the signature among them is good, but which one counts must not be guessed"
            );
            return Some(("signature_twice", what));
        }
        let due = match &signature.place.pick {
            Pick::Pairs { field, assign, .. } => format!("{field}{assign}{}", signature.place.prefix),
            Pick::List { version, .. } => format!("{version}{}", signature.place.prefix),
            Pick::Whole | Pick::Item { .. } => signature.place.prefix.clone(),
        };
        let before = text[..at].trim_end_matches(['"', '\'', ' ']);
        if !due.is_empty() && !before.ends_with(&due) {
            // What stands before it is part of the header, not of the signature.
            let start = before.rfind([',', ';', ' ']).map_or(0, |at| at + 1);
            let there: String = before[start..].chars().take(24).collect();
            let there = if there.is_empty() { "nothing".to_owned() } else { format!("`{there}`") };
            return Some(("signature_prefix", format!("the signature is good, but {there} stands before it where `{due}` is due")));
        }
        let plain = matches!(signature.place.pick, Pick::Whole) && text == format!("{due}{signed}");
        if plain || (before.len() == at && !matches!(signature.place.pick, Pick::Whole)) {
            return None;
        }
        Some(("signature_dressed", format!("the signature in `{name}` is good, but something stands around it: quotes, blanks or other words")))
    }

    /// The secret itself where a signature is due.
    fn secret_sent(&self) {
        let signs = self.question.definition.variants.iter().all(|variant| matches!(variant.method, Method::Signature(_)));
        if !signs || self.done() {
            return;
        }
        for (name, value) in self.question.request.headers.iter().take(256) {
            let value = value.as_bytes();
            let bare = value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"Token ")).unwrap_or(value);
            let sent = |secret: &Secret| secret.expose().len() >= 8 && subtle::ConstantTimeEq::ct_eq(secret.expose(), bare).into();
            if self.secrets.iter().any(sent) {
                return self.found(
                    "secret_sent",
                    true,
                    format!("the sender sends the secret itself in `{name}` and signs nothing: it is a token, or the sender is set up wrongly"),
                );
            }
        }
    }

    // -- secrets --

    fn by_secrets(&self) {
        for (cause, words, change) in variants::SECRETS {
            if let Some(secrets) = self.with_secrets(change)
                && self.by(&secrets)
            {
                return self.found(cause, true, *words);
            }
        }
        if self.secrets.len() > 1 {
            let mut reversed: Vec<Secret> = self.secrets.iter().rev().cloned().collect();
            let several =
                self.question.definition.variants.iter().any(|variant| matches!(&variant.method, Method::Signature(recipe) if recipe.signatures.len() > 1));
            if several && self.by(&reversed) {
                return self.found("secret_order", true, "the secrets stand in another order than the places of their signatures");
            }
            reversed.clear();
        }
        let trimmed: BTreeMap<String, String> = self.question.means.params.iter().map(|(name, value)| (name.clone(), value.trim().to_owned())).collect();
        if &trimmed != self.question.means.params
            && self.planned(&self.timeless, &self.secrets, &trimmed).is_some_and(|plan| self.fits(&plan, self.question.request))
        {
            self.found("param_blank", true, "a value of `params` has blanks or a line end around it that do not belong to it");
        }
    }

    /// Every secret changed; `None` where the change changes none.
    fn with_secrets(&self, change: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<Secret>> {
        let mut any = false;
        let changed = self.secrets.iter().map(|secret| match change(secret.expose()).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => {
                any = true;
                Secret::new(secret.label().clone(), bytes, None)
            }
            None => secret.clone(),
        });
        let changed: Vec<Secret> = changed.collect();
        any.then_some(changed)
    }

    /// A secret that cannot be made a key of: whether one of the usual changes makes it fit, or usable at least.
    fn unusable(&self, why: &str) -> bool {
        let mut usable = None;
        for (cause, words, change) in variants::SECRETS {
            let Some(secrets) = self.with_secrets(change) else { continue };
            if self.by(&secrets) {
                self.found(cause, true, *words);
                return true;
            }
            if usable.is_none() && cause != &"secret_case" && self.planned(&self.timeless, &secrets, self.question.means.params).is_some() {
                usable = Some(*words);
            }
        }
        let other = self.question.catalogue.definition("standardwebhooks").filter(|_| why.contains("base64"));
        for (form, words) in KEY_FORMS {
            let form = KeyForm { encoding: *form, ..KeyForm::default() };
            if self.would(&|method| {
                if let Method::Signature(recipe) = method {
                    recipe.key = form.clone();
                }
            }) {
                self.found("secret_encoding", true, *words);
                return true;
            }
        }
        match usable {
            // A key of the right form that verifies nothing: the mistake in the secret is one, and there is another.
            Some(words) if other.is_some() || !why.contains("belongs to no") => {
                self.found("secret_unusable", false, format!("{why}; perhaps {words}"));
                true
            }
            _ if why.contains("the secret is not") => {
                self.found("secret_unusable", false, format!("{why}: is it the secret of another provider?"));
                true
            }
            _ => false,
        }
    }

    /// Secrets that are configured elsewhere.
    fn by_others(&self) {
        for other in self.question.others {
            for secret in &other.secrets {
                let one = [Secret::new(secret.label().clone(), secret.expose().to_vec(), None)];
                if self.by(&one) {
                    return self.found(
                        "secret_other",
                        true,
                        format!("it verifies by the secret {} of {}: the sender uses that one", secret.label(), other.what),
                    );
                }
            }
        }
    }

    fn by_key_form(&self) {
        for (encoding, words) in KEY_FORMS {
            for prefix in ["", "whsec_"] {
                let form = KeyForm { encoding: *encoding, strip_prefix: prefix.to_owned(), ..KeyForm::default() };
                let same = |method: &Method| matches!(method, Method::Signature(recipe) if recipe.key.encoding == form.encoding && recipe.key.strip_prefix == form.strip_prefix);
                if self.question.definition.variants.iter().all(|variant| same(&variant.method)) {
                    continue;
                }
                if self.would(&|method| {
                    if let Method::Signature(recipe) = method {
                        recipe.key = form.clone();
                    }
                }) {
                    let (cause, what) = if prefix.is_empty() { ("secret_encoding", "") } else { ("secret_whsec", ", after its `whsec_`") };
                    self.found(cause, true, format!("{words}{what}"));
                    return self.providers();
                }
            }
        }
    }

    // -- body --

    fn by_body(&self) {
        let body = self.question.request.body.to_bytes();
        let form = is_form(&self.question.request.facts());
        variants::bodies(&body, Hints { form }, &mut |cause, words, new| {
            if self.bounded.get() {
                return false;
            }
            let hit = self.request(&self.with_body(new));
            if hit {
                self.found(cause, true, words);
            }
            !hit
        });
    }

    // -- URL --

    /// Whether the signature covers the URL in any form.
    fn signs_url(&self) -> bool {
        self.question
            .definition
            .variants
            .iter()
            .any(|variant| matches!(&variant.method, Method::Signature(recipe) if recipe.signed.iter().any(|t| t.covers_path() || t.covers_query())))
    }

    fn by_url(&self) {
        let request = self.question.request;
        for method in ["POST", "GET", "PUT", "PATCH"] {
            if request.method != method
                && let Ok(method) = http::Method::from_bytes(method.as_bytes())
            {
                let changed = Request { method: method.clone(), ..request.copy() };
                if self.request(&changed) {
                    return self.found(
                        "method_changed",
                        true,
                        format!("the sender signed the method {method}, and the request is a {}: did a redirect change it?", request.method),
                    );
                }
            }
        }
        if !self.signs_url() {
            return;
        }
        let hosts = hosts(request);
        variants::urls(&request.base, &request.target, &hosts, &mut |cause, words, base, target| {
            if self.bounded.get() {
                return false;
            }
            let hit = self.request(&Request { base: base.to_owned(), target: target.to_owned(), ..request.copy() });
            if hit {
                let help = if self.question.live {
                    "set `public_url` to what the provider was given"
                } else {
                    "say with --url what the provider was given; in the policy it is `public_url`"
                };
                self.found(cause, true, format!("{words}: {help}"));
            }
            !hit
        });
        if self.done() {
            return;
        }
        for name in ["x-original-uri", "x-original-url", "x-rewrite-url", "x-forwarded-uri", "x-envoy-original-path", "x-forwarded-prefix"] {
            let Some(text) = request.headers.get(name).and_then(|value| value.to_str().ok()) else { continue };
            let target = if name == "x-forwarded-prefix" { format!("{}{}", text.trim_end_matches('/'), request.target) } else { text.to_owned() };
            let target = super::cases::split_url(&target).map_or(target.as_str(), |(_, target)| target).to_owned();
            if self.request(&Request { target: target.clone(), ..request.copy() }) {
                return self.found("url_path", true, format!("the sender signed the path that the header `{name}` names: a proxy changed it on the way"));
            }
        }
    }

    // -- times and fields --

    fn by_time(&self) {
        let Some(plan) = &self.plan else { return };
        for (unit, what) in [(Unit::Seconds, "seconds"), (Unit::Millis, "milliseconds"), (Unit::Rfc3339, "RFC 3339"), (Unit::HttpDate, "an HTTP date")] {
            if self.would(&|method| {
                if let Method::Signature(recipe) = method
                    && let Some(timestamp) = &mut recipe.timestamp
                {
                    timestamp.unit = unit;
                }
            }) {
                return self.found("time_unit", true, format!("the signature is good, but its time is written in {what}, which is not this provider's unit"));
            }
        }
        let Some((variant, recipe)) = self.form(plan) else { return };
        let Some(timestamp) = &recipe.timestamp else { return };
        let Some(old) = self.value(variant, &timestamp.place) else { return };
        let Some((unit, at)) = UNITS.iter().find_map(|unit| Some((*unit, unit.parse(&old)?))) else { return };
        // The text that was signed may be a time in another unit than the one that came.
        for other in UNITS {
            let any = changed(self.question.definition, &|method| {
                if let Method::Signature(recipe) = method
                    && let Some(timestamp) = &mut recipe.timestamp
                {
                    timestamp.unit = *other;
                }
            });
            let text = other.write(at);
            if *other != unit
                && let Some(request) = self.replaced(&timestamp.place, &old, text.as_bytes())
                && self.planned(&any, &self.secrets, self.question.means.params).is_some_and(|plan| self.fits(&plan, &request))
            {
                return self.found(
                    "time_unit",
                    true,
                    format!("the sender signed its time in {}, and {} holds it in {}", name_of(*other), timestamp.place, name_of(unit)),
                );
            }
        }
        let differs = |new: i64| {
            let text = unit.write(new);
            let request = self.replaced(&timestamp.place, &old, text.as_bytes());
            new != at && request.is_some_and(|request| self.request(&request))
        };
        let tell = |new: i64, from: &str| {
            let (span, side) = (humantime::format_duration(Duration::from_millis(new.abs_diff(at))), if new < at { "earlier" } else { "later" });
            self.found("time_changed", true, format!("{} was changed on the way: the signature fits a time that is {span} {side}{from}", timestamp.place));
        };
        for (name, value) in self.question.request.headers.iter().take(128) {
            let other = UNITS.iter().find_map(|unit| unit.parse(value.as_bytes()));
            if let Some(other) = other
                && differs(other)
            {
                return tell(other, &format!(", the one of the header `{name}`"));
            }
        }
        let hours = (1..=14).flat_map(|hour| [hour * 3_600_000, -hour * 3_600_000]);
        let near = (1..=AROUND).flat_map(|second| [second * 1000, -second * 1000]);
        for step in near.chain(hours) {
            if self.bounded.get() {
                return;
            }
            if differs(at + step) {
                return tell(at + step, "");
            }
        }
    }

    /// The request with another value at a place. `None` where it cannot be put there without guessing.
    fn replaced(&self, place: &Place, old: &[u8], new: &[u8]) -> Option<Request> {
        let mut request = self.question.request.copy();
        let once = |text: &[u8]| -> Option<Vec<u8>> {
            let at = memchr::memmem::find(text, old).filter(|_| !old.is_empty())?;
            let (before, after) = (&text[..at], &text[at + old.len()..]);
            memchr::memmem::find(after, old).is_none().then(|| [before, new, after].concat())
        };
        match &place.at {
            At::Header(name) => {
                let value = match request.headers.get(name) {
                    Some(value) => once(value.as_bytes())?,
                    None if old.is_empty() => new.to_vec(),
                    None => return None,
                };
                request.headers.insert(name, HeaderValue::from_bytes(&value).ok()?);
            }
            At::Query(_) => request.target = String::from_utf8(once(request.target.as_bytes())?).ok()?,
            At::Form(_) | At::Json { .. } => request.body = Chunks::from(Bytes::from(once(&request.body.to_bytes())?)),
            At::Numbered(_) => return None,
        }
        Some(request)
    }

    /// A signed header, such as the delivery id, whose value stands somewhere else.
    fn by_fields(&self) {
        let Some((variant, recipe)) = self.plan.as_ref().and_then(|plan| self.form(plan)) else { return };
        let request = self.question.request;
        let mut values: Vec<(String, Vec<u8>)> =
            request.headers.iter().take(64).map(|(name, value)| (format!("the header `{name}`"), value.as_bytes().to_vec())).collect();
        if let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(&request.body.to_bytes()) {
            let texts = fields.into_iter().filter_map(|(name, value)| Some((format!("the JSON field `/{name}`"), value.as_str()?.as_bytes().to_vec())));
            values.extend(texts.take(64));
        }
        for place in recipe.signed.iter().flat_map(Template::places).filter(|place| matches!(place.at, At::Header(_))) {
            let old = self.value(variant, place).unwrap_or_default();
            let is_id = variant.identity.id.as_ref() == Some(place);
            for (from, value) in values.iter().filter(|(_, value)| *value != old && !value.is_empty() && value.len() <= 512) {
                if let Some(changed) = self.replaced(place, &old, value)
                    && self.request(&changed)
                {
                    let cause = match (is_id, old.is_empty()) {
                        (true, true) => "id_missing",
                        (true, false) => "id_changed",
                        (false, true) => "field_missing",
                        (false, false) => "signature_text",
                    };
                    self.findings.borrow_mut().retain(|finding| finding.cause != cause);
                    let what = if old.is_empty() { "is missing" } else { "was changed on the way" };
                    return self.found(cause, true, format!("{place}, which is signed, {what}: the signature fits the value of {from}"));
                }
            }
        }
    }

    // -- another recipe --

    fn by_recipe(&self) {
        let definition = self.question.definition;
        for at in 0..definition.variants.len() {
            let variant = &definition.variants[at];
            let Method::Signature(recipe) = &variant.method else { continue };
            let pointers = Pointers::default();
            let context = template::Context {
                timestamp: recipe.timestamp.as_ref(),
                id: variant.identity.id.as_ref(),
                signature: recipe.signatures.first().map(|signature| &signature.place),
                params: &definition.params,
                pointers: &pointers,
                ambiguous: true,
            };
            for text in TEXTS {
                let Ok(template) = Template::parse(text, &context) else { continue };
                for plain in [false, true] {
                    if plain != recipe.plain_hash && !template.has_secret() && plain {
                        continue;
                    }
                    let other = changed_at(definition, at, &|method| {
                        if let Method::Signature(recipe) = method {
                            recipe.signed = vec![template.clone()];
                            recipe.plain_hash = plain;
                        }
                    });
                    if let Some(plan) = self.planned(&other, &self.secrets, self.question.means.params)
                        && (self.fits(&plan, self.question.request) || self.spot(&plan).is_some())
                    {
                        let how = if plain { "a plain digest of " } else { "" };
                        return self.found("signature_text", true, format!("the sender signs {how}`{text}`, which is not what this provider signs"));
                    }
                }
            }
        }
        self.unkeyed();
    }

    /// A digest without any secret, or by a secret put before or after the text.
    fn unkeyed(&self) {
        let Some(plan) = &self.plan else { return };
        let Some((_, recipe)) = self.form(plan) else { return };
        let body = self.question.request.body.to_bytes();
        let secrets = self.secrets.iter().map(Secret::expose).chain([&b""[..]]);
        for secret in secrets {
            for (pieces, what) in
                [([secret, &body[..]], "the secret and the body, one after the other"), ([&body[..], secret], "the body and the secret, one after the other")]
            {
                if !self.may(body.len()) {
                    return;
                }
                let mut digest = Mac::digest(recipe.algorithm);
                pieces.iter().for_each(|piece| digest.update(piece));
                let tag = digest.finish();
                if self.spot_tag(recipe, &tag).is_some() {
                    let what = if secret.is_empty() { "the body alone, without any secret: it proves nothing" } else { what };
                    return self.found("signature_text", true, format!("the sender sends a plain digest of {what}, and not an HMAC"));
                }
            }
        }
    }

    // -- what the request looks like --

    fn evidence(&self) {
        let request = self.question.request;
        let body = request.body.to_bytes();
        let text_of = |name: HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok()).map(|text| text.trim().to_ascii_lowercase());
        let chunked = request.headers.contains_key(header::TRANSFER_ENCODING);
        let length = text_of(header::CONTENT_LENGTH).and_then(|text| text.parse::<usize>().ok());
        if let Some(length) = length.filter(|length| *length != body.len() && !chunked) {
            if body.is_empty() {
                self.found("body_empty", false, format!("the body is empty, and Content-Length says {length}: something read it before it was verified"));
            } else {
                self.found(
                    "body_length",
                    false,
                    format!("the body is not the one that was sent: it has {} bytes, and Content-Length says {length}", body.len()),
                );
            }
        }
        let coding = text_of(header::CONTENT_ENCODING).unwrap_or_default();
        let packed = body.starts_with(b"\x1f\x8b") || body.starts_with(b"\x78") || body.starts_with(b"\x28\xb5\x2f\xfd");
        if ["gzip", "x-gzip", "deflate", "br", "zstd"].contains(&coding.as_str()) && !packed && (coding != "br" || std::str::from_utf8(&body).is_ok()) {
            self.found(
                "body_coding",
                false,
                format!("Content-Encoding says {coding} and the body is not: it was unpacked on the way, and what was signed may be the packed bytes"),
            );
        }
        if body.windows(3).any(|three| three == "\u{fffd}".as_bytes()) {
            self.found("body_charset", false, "the body holds U+FFFD: bytes that were no UTF-8 were replaced, and what was signed is lost");
        }
        if is_form(&request.facts()) && matches!(body.first(), Some(b'{' | b'[')) {
            self.found(
                "body_form_parsed",
                false,
                "the content type is that of forms and the body is JSON: it was parsed on the way, and what was signed is lost",
            );
        }
        if body.is_empty() && self.findings.borrow().is_empty() && request.method == http::Method::POST {
            self.found("body_empty", false, "the body is empty: did something read it before it was verified?");
        }
        if self.signs_url() && !self.question.knows_url {
            let help = if self.question.live { "set `public_url`" } else { "say it with --url" };
            self.found(
                "url_unknown",
                false,
                format!("this provider signs the URL that it was given; `{}` was made of the Host header: {help} if it is another", request.base),
            );
        }
    }
}

/// Ways to make a key of a secret.
const KEY_FORMS: &[(KeyEncoding, &str)] = &[
    (KeyEncoding::Utf8, "the sender uses the secret's text as the key; this provider's secrets are decoded first"),
    (KeyEncoding::Base64, "the sender decodes the secret from base64; this provider's are used as text"),
    (KeyEncoding::Hex, "the sender decodes the secret from hex; this provider's are used as text"),
];

/// What senders sign, where it is not what is configured.
const TEXTS: &[&str] = &[
    "{body}",
    "{timestamp}.{body}",
    "{timestamp}{body}",
    "{timestamp}:{body}",
    "{body}{timestamp}",
    "{body}.{timestamp}",
    "{id}.{timestamp}.{body}",
    "{id}{timestamp}{body}",
    "{id}.{body}",
    "v0:{timestamp}:{body}",
    "v1:{timestamp}:{body}",
    "{url}{body}",
    "{method}{url}{body}",
    "{path}{body}",
    "{timestamp}.{url}.{body}",
    "{body_sha256_hex}",
    "{url}",
    "{secret}{body}",
    "{body}{secret}",
];

const UNITS: &[Unit] = &[Unit::Seconds, Unit::Millis, Unit::Rfc3339, Unit::HttpDate];

fn name_of(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "seconds",
        Unit::Millis => "milliseconds",
        Unit::Rfc3339 => "RFC 3339",
        Unit::HttpDate => "an HTTP date",
    }
}

/// The hosts that other headers name, with where each stands.
fn hosts(request: &Request) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let port = request
        .headers
        .get("x-forwarded-port")
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let mut push = |from: String, host: &str| {
        let host = host.trim().trim_matches('"');
        let good = !host.is_empty() && host.len() <= 255 && !host.contains(['/', ' ', '@', '?', '#']);
        if good && all.len() < 12 && !all.iter().any(|(_, known)| known == host) {
            all.push((from, host.to_owned()));
        }
    };
    for name in ["host", "x-forwarded-host", "x-original-host", "x-host", "x-real-host", "ngrok-host", "disguised-host"] {
        for value in request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()) {
            for host in value.split(',').take(4) {
                push(format!("the header `{name}`"), host);
                if let Some(port) = port
                    && !host.contains(':')
                {
                    push(format!("the headers `{name}` and `x-forwarded-port`"), &format!("{}:{port}", host.trim()));
                }
            }
        }
    }
    for value in request.headers.get_all("forwarded").iter().filter_map(|value| value.to_str().ok()) {
        for pair in value.split([',', ';']).take(16) {
            if let Some((name, host)) = pair.trim().split_once('=')
                && name.eq_ignore_ascii_case("host")
            {
                push("the header `forwarded`".to_owned(), host);
            }
        }
    }
    all
}

/// A signature in every spelling that senders use, by the name of each.
fn spellings(tag: &Tag) -> Vec<(&'static str, String)> {
    let bytes = tag.as_slice();
    let hex = HEXLOWER.encode(bytes);
    vec![
        (Encoding::Hex.name(), hex.clone()),
        (Encoding::HexAny.name(), hex.clone()),
        (Encoding::Base64.name(), BASE64.encode(bytes)),
        (Encoding::Base64Url.name(), BASE64URL.encode(bytes)),
        (Encoding::Base64NoPad.name(), BASE64_NOPAD.encode(bytes)),
        (Encoding::Base64UrlNoPad.name(), BASE64URL_NOPAD.encode(bytes)),
        ("upper-case hex", HEXUPPER.encode(bytes)),
        ("base64 of its hex", BASE64.encode(hex.as_bytes())),
        ("base64 of its base64", BASE64.encode(BASE64.encode(bytes).as_bytes())),
        ("hex of its hex", HEXLOWER.encode(hex.as_bytes())),
    ]
}

/// The definition with every form changed, its times left unjudged.
fn changed(definition: &Arc<Definition>, change: &dyn Fn(&mut Method)) -> Arc<Definition> {
    let mut copy = Definition::clone(definition);
    for variant in &mut copy.variants {
        change(&mut variant.method);
        timeless(&mut variant.method);
    }
    Arc::new(copy)
}

/// The definition with one form changed, all times left unjudged.
fn changed_at(definition: &Arc<Definition>, at: usize, change: &dyn Fn(&mut Method)) -> Arc<Definition> {
    let mut copy = Definition::clone(definition);
    for (i, variant) in copy.variants.iter_mut().enumerate() {
        if i == at {
            change(&mut variant.method);
        }
        timeless(&mut variant.method);
    }
    Arc::new(copy)
}

/// Leaves the time out of the judgement.
fn timeless(method: &mut Method) {
    if let Method::Signature(recipe) = method
        && let Some(timestamp) = &mut recipe.timestamp
    {
        timestamp.enforced = false;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde::Deserialize;

    use super::*;
    use crate::verify::cases::Case;

    /// A request with one mistake in it, made by `tests/mistakes/make.py` with Python's own libraries.
    #[derive(Deserialize)]
    struct Mistake {
        /// The words of the finding that must be there.
        cause: String,
        #[serde(flatten)]
        case: Case,
        /// Secrets of other routes.
        #[serde(default)]
        others: Vec<String>,
        /// The verdict where it is not a refusal by the signature.
        #[serde(default)]
        reason: Option<String>,
    }

    fn mistakes() -> Vec<Mistake> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes/mistakes.json");
        serde_json::from_slice(&fs::read(path).expect("the table is part of the repository")).expect("a table of mistakes")
    }

    fn explained(mistake: &Mistake) -> Explanation {
        let catalogue = Catalogue::shipped();
        let case = &mistake.case;
        let definition = catalogue.definition(&case.provider).expect("a preset");
        let secrets: Vec<Secret> =
            case.secrets.iter().enumerate().map(|(at, text)| Secret::new(format!("#{}", at + 1), text.clone().into_bytes(), None)).collect();
        let params = case.params.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect();
        let others: Vec<Other> = mistake
            .others
            .iter()
            .map(|text| Other { what: "the route `b`".to_owned(), secrets: vec![Secret::new("#1", text.clone().into_bytes(), None)] })
            .collect();
        let request = case.request().expect("a request");
        let question = Question {
            catalogue: &catalogue,
            definition,
            means: Means::new(&secrets, &params),
            others: &others,
            request: &request,
            now_ms: case.now * 1000,
            knows_url: true,
            live: false,
        };
        explain(&question).unwrap_or_else(|why| panic!("{}: {why}", case.id))
    }

    /// Each seeded mistake is named, first among what is found, and nothing secret is said of it.
    #[test]
    fn every_seeded_mistake_is_named() {
        let mut wrong = Vec::new();
        let mistakes = mistakes();
        for mistake in &mistakes {
            let explanation = explained(mistake);
            let id = &mistake.case.id;
            let Err(why) = &explanation.verdict else {
                wrong.push(format!("{id}: it was accepted"));
                continue;
            };
            if mistake.reason.as_deref().is_some_and(|reason| reason != why.reason.code()) {
                wrong.push(format!("{id}: {} was due, got {why}", mistake.reason.as_deref().unwrap_or_default()));
            }
            if explanation.findings.first().is_none_or(|finding| finding.cause != mistake.cause) {
                wrong.push(format!("{id}: {} was due, got {:?}", mistake.cause, explanation.findings));
            }
            let said = explanation.as_json().to_string();
            let secret = |text: &String| text.trim().len() > 8 && said.contains(text.trim().trim_start_matches("whsec_"));
            assert!(!mistake.case.secrets.iter().chain(&mistake.others).any(secret), "{id}: a secret was said: {said}");
            let signed =
                mistake.case.headers.iter().filter(|(name, _)| name.to_ascii_lowercase().contains("signature") || name.to_ascii_lowercase().contains("hmac"));
            for (name, value) in signed {
                let long = value.split([',', '=', ' ', ';']).filter(|piece| piece.len() >= 24);
                assert!(long.clone().all(|piece| !said.contains(piece)), "{id}: the signature of {name} was said: {said}");
            }
            assert!(explanation.tries < TRIES && !explanation.bounded, "{id}: {} tries", explanation.tries);
        }
        assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), mistakes.len(), wrong.join("\n"));
        assert!(mistakes.len() >= 20, "{}", mistakes.len());
    }

    /// A good request of every provider is told of without a finding that says otherwise, and a spoilt one never names a certain cause.
    #[test]
    fn cases_are_told_of_soberly() {
        let catalogue = Catalogue::shipped();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        for name in ["github", "stripe", "hubspot"] {
            let text = fs::read(folder.join(format!("{name}.json"))).expect("the vectors are part of the repository");
            for case in crate::verify::cases::read(&text).expect("cases").into_iter().take(24) {
                let definition = catalogue.definition(name).expect("a preset");
                let secrets: Vec<Secret> =
                    case.secrets.iter().enumerate().map(|(at, text)| Secret::new(format!("#{}", at + 1), text.clone().into_bytes(), None)).collect();
                let request = case.request().expect("a request");
                let params = BTreeMap::new();
                let question = Question {
                    catalogue: &catalogue,
                    definition,
                    means: Means::new(&secrets, &params),
                    others: &[],
                    request: &request,
                    now_ms: case.now * 1000,
                    knows_url: true,
                    live: true,
                };
                let explanation = explain(&question).unwrap_or_else(|why| panic!("{}: {why}", case.id));
                match &explanation.verdict {
                    Ok(_) => assert!(explanation.findings.iter().all(|finding| finding.cause == "note"), "{}: {:?}", case.id, explanation.findings),
                    Err(_) => assert!(!explanation.findings.is_empty(), "{}", case.id),
                }
            }
        }
    }

    #[test]
    fn every_cause_is_documented() {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/verify.md")).expect("the page is part of the repository");
        for cause in CAUSES {
            assert!(page.contains(&format!("| `{cause}` |")), "`{cause}` is not in docs/verify.md");
        }
    }

    #[test]
    fn the_work_is_bounded() {
        let catalogue = Catalogue::shipped();
        let definition = catalogue.definition("github").expect("a preset");
        let secrets = [Secret::new("#1", b"0123456789abcdef".to_vec(), None)];
        let params = BTreeMap::new();
        let mut request = Request {
            method: http::Method::POST,
            base: "https://h".into(),
            target: "/".into(),
            headers: http::HeaderMap::new(),
            body: Bytes::from(format!("[{}1]", "1,".repeat(1 << 19))).into(),
        };
        let name = HeaderName::from_static("x-hub-signature-256");
        request.headers.insert(name, HeaderValue::from_str(&format!("sha256={}", "0".repeat(64))).expect("a header"));
        let means = Means::new(&secrets, &params);
        let question = Question { catalogue: &catalogue, definition, means, others: &[], request: &request, now_ms: 0, knows_url: true, live: true };
        let explanation = explain(&question).expect("a question");
        assert!(explanation.bounded && explanation.tries < 100, "{}", explanation.tries);
    }
}
