//! Why a request does not verify, in plain words: tries the mistakes that people make and names the ones that fit.
//!
//! It never says a secret or the signature that would be right: what it finds is the kind of mistake.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    Catalogue, Definition, Means, Plan, Signed,
    cases::Request,
    definition::Method,
    key::{KeyEncoding, KeyForm},
    mac::{Algorithm, Encoding},
    place::Pick,
    timestamp::Unit,
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    secret::Secret,
};

/// A verdict and what may have led to it.
pub(crate) struct Explanation {
    pub(crate) verdict: Result<Signed, Reject>,
    /// Whole sentences without a full stop; the likeliest first.
    pub(crate) findings: Vec<String>,
}

/// What is judged.
pub(crate) struct Question<'a> {
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) definition: &'a Arc<Definition>,
    pub(crate) secrets: &'a [Secret],
    pub(crate) params: &'a BTreeMap<String, String>,
    pub(crate) request: &'a Request,
    pub(crate) now_ms: i64,
}

/// One way a secret may have been changed.
type Change<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

/// Judges a request and explains the verdict; the error is for who asked wrongly.
pub(crate) fn explain(question: &Question<'_>) -> Result<Explanation, String> {
    let plan = Plan::new(question.definition, &Means::new(question.secrets, question.params))?;
    let verdict = question.request.judge(&plan, question.now_ms);
    let findings = match &verdict {
        Ok(signed) => accepted(signed, &plan),
        Err(why) => question.refused(why),
    };
    Ok(Explanation { verdict, findings })
}

fn accepted(signed: &Signed, plan: &Plan) -> Vec<String> {
    let mut findings = Vec::new();
    if signed.verification != Verification::Content {
        findings.push("the proof does not cover the body: it says who sent the request, not what was sent".to_owned());
    }
    if signed.replay.is_none() {
        findings.push("nothing unique is signed, so a copy of this request cannot be told from it".to_owned());
    }
    if plan.attempt_window().is_none() {
        findings.push("no time is judged: this request stays valid for as long as the secret does".to_owned());
    }
    findings
}

impl Question<'_> {
    fn refused(&self, why: &Reject) -> Vec<String> {
        let mut findings = Vec::new();
        let mut found = |what: String| {
            if !findings.contains(&what) && findings.len() < 6 {
                findings.push(what);
            }
        };
        if matches!(why.reason, Reason::TimestampStale | Reason::TimestampFuture) {
            if self.holds(self.definition, self.secrets, self.request, true) {
                found("the signature itself is good; only its time is not: judge a captured request at the time it was sent, with --at".to_owned());
            } else {
                found("the signature is not good either, whatever the time".to_owned());
            }
        }
        if why.reason == Reason::SignatureMissing {
            self.missing(&mut found);
        }
        self.secrets(&mut found);
        self.bodies(&mut found);
        self.recipes(&mut found);
        self.urls(&mut found);
        for name in self.catalogue.names().into_iter().filter(|name| *name != &*self.definition.name) {
            if let Some(other) = self.catalogue.definition(name)
                && self.holds(other, self.secrets, self.request, true)
            {
                found(format!("it verifies as `{name}`: the provider may be another one"));
            }
        }
        findings
    }

    /// Whether a changed question is answered with yes; `any_time` leaves the time out of it.
    fn holds(&self, definition: &Arc<Definition>, secrets: &[Secret], request: &Request, any_time: bool) -> bool {
        let definition = if any_time { &self.changed(definition, &|method| timeless(method)) } else { definition };
        let plan = Plan::new(definition, &Means::new(secrets, self.params));
        plan.is_ok_and(|plan| request.judge(&plan, self.now_ms).is_ok())
    }

    /// The definition with every form changed.
    fn changed(&self, definition: &Arc<Definition>, change: &dyn Fn(&mut Method)) -> Arc<Definition> {
        let mut copy = Definition::clone(definition);
        copy.variants.iter_mut().for_each(|variant| change(&mut variant.method));
        Arc::new(copy)
    }

    /// Whether it holds with every form changed.
    fn would(&self, change: &dyn Fn(&mut Method)) -> bool {
        let changed = self.changed(self.definition, &|method| {
            change(method);
            timeless(method);
        });
        self.holds(&changed, self.secrets, self.request, false)
    }

    fn missing(&self, found: &mut dyn FnMut(String)) {
        let near = self
            .request
            .headers
            .keys()
            .map(http::HeaderName::as_str)
            .filter(|name| ["signature", "hmac", "token", "authorization"].iter().any(|word| name.contains(word)));
        let near: Vec<&str> = near.collect();
        match near.as_slice() {
            [] => found("the request has no header that looks like a signature: does the sender have a secret configured, and does every proxy before this one pass the header on?".to_owned()),
            names => found(format!("headers of this request that look like proofs: {}", names.join(", "))),
        }
    }

    fn secrets(&self, found: &mut dyn FnMut(String)) {
        let change = |how: Change<'_>| -> Option<Vec<Secret>> {
            let changed: Vec<(bool, Secret)> = self
                .secrets
                .iter()
                .map(|secret| (how(secret.expose()), secret))
                .map(|(bytes, secret)| (bytes != secret.expose(), Secret::new(secret.label().clone(), bytes, secret.not_after())))
                .collect();
            let any = changed.iter().any(|(changed, secret)| *changed && !secret.expose().is_empty());
            any.then(|| changed.into_iter().map(|(_, secret)| secret).collect())
        };
        let tries: [(Change<'_>, &str); 6] = [
            (&|s| s.trim_ascii().to_vec(), "the secret has blanks or a line end around it that do not belong to it"),
            (&|s| [s, b"\n"].concat(), "the sender's secret has a line end that yours has not"),
            (
                &|s| {
                    s.strip_prefix(b"\"")
                        .and_then(|s| s.strip_suffix(b"\""))
                        .or_else(|| s.strip_prefix(b"'").and_then(|s| s.strip_suffix(b"'")))
                        .unwrap_or(s)
                        .to_vec()
                },
                "the secret has quotes around it that do not belong to it",
            ),
            (&|s| s.strip_prefix(b"whsec_").unwrap_or(s).to_vec(), "the sender's key is the secret without its `whsec_`"),
            (&|s| if s.starts_with(b"whsec_") { s.to_vec() } else { [b"whsec_", s].concat() }, "the sender's key is the secret with `whsec_` before it"),
            (&|s| s.to_ascii_lowercase(), "the secret is in the wrong letter case"),
        ];
        for (how, what) in tries {
            if let Some(secrets) = change(how)
                && self.holds(self.definition, &secrets, self.request, true)
            {
                found(what.to_owned());
            }
        }
        let forms = [
            (KeyForm { encoding: KeyEncoding::Utf8, ..KeyForm::default() }, "the sender uses the secret as text; this provider's are decoded first"),
            (KeyForm { encoding: KeyEncoding::Hex, ..KeyForm::default() }, "the sender decodes the secret from hex first"),
            (KeyForm { encoding: KeyEncoding::Base64, ..KeyForm::default() }, "the sender decodes the secret from base64 first"),
            (
                KeyForm { encoding: KeyEncoding::Base64, strip_prefix: "whsec_".to_owned(), ..KeyForm::default() },
                "the sender decodes what follows `whsec_` in the secret from base64 first",
            ),
        ];
        for (form, what) in forms {
            let same = |method: &Method| matches!(method, Method::Signature(recipe) if recipe.key.encoding == form.encoding && recipe.key.strip_prefix == form.strip_prefix);
            if self.definition.variants.iter().all(|variant| same(&variant.method)) {
                continue;
            }
            if self.would(&|method| {
                if let Method::Signature(recipe) = method {
                    recipe.key = form.clone();
                }
            }) {
                found(what.to_owned());
            }
        }
    }

    fn bodies(&self, found: &mut dyn FnMut(String)) {
        let body = self.request.body.to_bytes();
        let replace = |from: &[u8], to: &[u8]| -> Vec<u8> {
            let mut out = Vec::with_capacity(body.len());
            let mut rest = &body[..];
            while !rest.is_empty() {
                if let Some(after) = rest.strip_prefix(from) {
                    out.extend_from_slice(to);
                    rest = after;
                } else {
                    out.push(rest[0]);
                    rest = &rest[1..];
                }
            }
            out
        };
        let mut tries: Vec<(Vec<u8>, &str)> = vec![
            (
                body.strip_suffix(b"\n").map(|b| b.strip_suffix(b"\r").unwrap_or(b)).unwrap_or(&body).to_vec(),
                "the body has a line end at its end that was not signed; editors and `echo` add one",
            ),
            ([&body[..], b"\n"].concat(), "the body has lost a line end at its end that was signed"),
            (replace(b"\r\n", b"\n"), "the line ends of the body were changed from LF to CRLF on the way"),
        ];
        if !body.contains(&b'\r') {
            tries.push((replace(b"\n", b"\r\n"), "the line ends of the body were changed from CRLF to LF on the way"));
        }
        tries.push((compact(&body), "the body was parsed and written again on the way: the signature fits its compact form"));
        for (bytes, what) in tries {
            if bytes == body[..] {
                continue;
            }
            let request = Request { body: Chunks::from(Bytes::from(bytes)), ..self.request.copy() };
            if self.holds(self.definition, self.secrets, &request, true) {
                found(what.to_owned());
            }
        }
    }

    fn recipes(&self, found: &mut dyn FnMut(String)) {
        for (name, algorithm) in Algorithm::WORDS {
            if self.would(&|method| {
                if let Method::Signature(recipe) = method {
                    recipe.algorithm = *algorithm;
                }
            }) && !self.holds(self.definition, self.secrets, self.request, true)
            {
                found(format!("the signature is made with {name}, which is not this provider's algorithm"));
            }
        }
        for encoding in [Encoding::Hex, Encoding::HexAny, Encoding::Base64, Encoding::Base64NoPad, Encoding::Base64Url, Encoding::Base64UrlNoPad] {
            if self.would(&|method| {
                if let Method::Signature(recipe) = method {
                    recipe.signatures.iter_mut().for_each(|signature| signature.encoding = encoding);
                }
            }) && !self.holds(self.definition, self.secrets, self.request, true)
            {
                found(format!("the signature is written in {}, which is not this provider's form", encoding.name()));
            }
        }
        if self.would(&|method| {
            if let Method::Signature(recipe) = method {
                recipe.signatures.iter_mut().for_each(|signature| {
                    signature.place.prefix.clear();
                    if let Pick::List { version, .. } = &mut signature.place.pick {
                        version.clear();
                    }
                });
            }
        }) && !self.holds(self.definition, self.secrets, self.request, true)
        {
            found("the signature is good but for the word before it".to_owned());
        }
        for (unit, what) in [(Unit::Seconds, "seconds"), (Unit::Millis, "milliseconds"), (Unit::Rfc3339, "RFC 3339")] {
            let with = self.changed(self.definition, &|method| {
                timeless(method);
                if let Method::Signature(recipe) = method
                    && let Some(timestamp) = &mut recipe.timestamp
                {
                    timestamp.unit = unit;
                }
            });
            if self.holds(&with, self.secrets, self.request, false) && !self.holds(self.definition, self.secrets, self.request, true) {
                found(format!("the signature is good, but its time is written in {what}, which is not this provider's unit"));
            }
        }
    }

    fn urls(&self, found: &mut dyn FnMut(String)) {
        let base = &self.request.base;
        let target = &self.request.target;
        let other =
            if let Some(rest) = base.strip_prefix("https:") { format!("http:{rest}") } else { format!("https:{}", base.strip_prefix("http:").unwrap_or(base)) };
        let slash = if let Some(cut) = target.strip_suffix('/') { cut.to_owned() } else { format!("{target}/") };
        let tries = [
            (other, target.clone(), "the sender signed the URL with the other of http and https: set `public_url` to what the provider was given"),
            (base.clone(), slash, "the sender's URL differs in a slash at its end"),
            (base.clone(), target.split('?').next().unwrap_or("").to_owned(), "the sender signed the URL without its query string"),
            (
                base.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(base.as_str(), |(host, _)| host).to_owned(),
                target.clone(),
                "the sender signed the URL without its port",
            ),
        ];
        for (base, target, what) in tries {
            if (&base, &target) == (&self.request.base, &self.request.target) {
                continue;
            }
            let request = Request { base, target, ..self.request.copy() };
            if self.holds(self.definition, self.secrets, &request, true) && !self.holds(self.definition, self.secrets, self.request, true) {
                found(what.to_owned());
            }
        }
    }
}

/// A JSON text without the white space between its parts.
fn compact(text: &[u8]) -> Vec<u8> {
    let (mut out, mut inside, mut escaped) = (Vec::with_capacity(text.len()), false, false);
    for &byte in text {
        if !inside && byte.is_ascii_whitespace() {
            continue;
        }
        match (byte, escaped) {
            (b'"', false) => inside = !inside,
            (b'\\', false) if inside => {
                escaped = true;
                out.push(byte);
                continue;
            }
            _ => {}
        }
        escaped = false;
        out.push(byte);
    }
    out
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
    use http::{HeaderMap, HeaderValue, Method as HttpMethod};

    use super::*;
    use crate::verify::sign::{Wishes, sign};

    /// Signs as `provider` with `theirs`, changes the request, and wants a finding that holds `want`.
    fn check(provider: &str, theirs: &str, ours: &str, change: impl Fn(&mut Request), want: &str) {
        let catalogue = Catalogue::shipped();
        let definition = catalogue.definition(provider).expect("a preset");
        let params = BTreeMap::new();
        let secret = Secret::new("#1", theirs.into(), None);
        let plan = Plan::new(definition, &Means::new(std::slice::from_ref(&secret), &params)).expect("a plan");
        let mut request = Request {
            method: HttpMethod::POST,
            base: "https://hooks.example.com".into(),
            target: "/in".into(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{\"id\":\"evt_1\",\"b\":2}").into(),
        };
        request.headers.insert("content-type", HeaderValue::from_static("application/json"));
        sign(&plan, &secret, &mut request, &Wishes { id: "msg_1".into(), now_ms: 1_760_000_000_000, ..Wishes::default() }).expect("a signed request");
        change(&mut request);
        let ours = [Secret::new("#1", ours.into(), None)];
        let question = Question { catalogue: &catalogue, definition, secrets: &ours, params: &params, request: &request, now_ms: 1_760_000_000_000 };
        let explanation = explain(&question).expect("a question");
        assert!(explanation.verdict.is_err());
        assert!(explanation.findings.iter().any(|finding| finding.contains(want)), "{provider}: {:?}", explanation.findings);
        let said = explanation.findings.join(" ");
        assert!(!said.contains(theirs.trim()) || theirs.len() < 6, "a secret was said: {said}");
    }

    #[test]
    fn common_mistakes_are_named() {
        const SECRET: &str = "0123456789abcdef";
        let same = |_: &mut Request| {};
        check("github", SECRET, "0123456789abcdef\n", same, "line end around it");
        check("github", "0123456789abcdef\n", SECRET, same, "sender's secret has a line end");
        check("github", SECRET, "\"0123456789abcdef\"", same, "quotes");
        check("stripe", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", same, "without its `whsec_`");
        check("github", SECRET, SECRET, |r| r.body.push(Bytes::from_static(b"\n")), "editors");
        check("github", SECRET, SECRET, |r| r.body = Bytes::from_static(b"{ \"id\": \"evt_1\",\n\"b\":2 }").into(), "compact");
        check("square", SECRET, SECRET, |r| r.base = "http://hooks.example.com".into(), "http and https");
        check(
            "gitea",
            SECRET,
            SECRET,
            |r| {
                let value = r.headers.remove("x-gitea-signature").expect("it was signed");
                r.headers.insert("x-hub-signature-256", HeaderValue::from_str(&format!("sha256={}", value.to_str().expect("hex"))).expect("a header"));
            },
            "verifies as `github`",
        );
    }

    #[test]
    fn stale_requests_with_a_good_signature_say_so() {
        let catalogue = Catalogue::shipped();
        let definition = catalogue.definition("stripe").expect("a preset");
        let secrets = [Secret::new("#1", b"0123456789abcdef".to_vec(), None)];
        let params = BTreeMap::new();
        let plan = Plan::new(definition, &Means::new(&secrets, &params)).expect("a plan");
        let mut request = Request {
            method: HttpMethod::POST,
            base: "https://h".into(),
            target: "/".into(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{}").into(),
        };
        sign(&plan, &secrets[0], &mut request, &Wishes { id: "1".into(), now_ms: 1_760_000_000_000, ..Wishes::default() }).expect("a signed request");
        let question = Question { catalogue: &catalogue, definition, secrets: &secrets, params: &params, request: &request, now_ms: 1_760_000_301_000 };
        let explanation = explain(&question).expect("a question");
        assert_eq!(explanation.verdict.expect_err("it is stale").reason, Reason::TimestampStale);
        assert!(explanation.findings[0].contains("the signature itself is good"), "{:?}", explanation.findings);
    }
}
