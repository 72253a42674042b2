//! Case files: one captured request, the secrets, the time, and the verdict that is due. The form is that of `tests/vectors/README.md`.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;

use super::{
    Catalogue, Facts, Means, Plan, Signed,
    public_key::{self, Trusted},
};
use crate::{
    event::Chunks,
    keys::{Document, Form, Given, Source},
    reject::Reject,
    secret::Secret,
};

/// One case as it stands in a file.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) provider: String,
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body_base64: String,
    #[serde(default)]
    pub(crate) secrets: Vec<String>,
    /// The sender's, in the form that the provider hands out.
    #[serde(default)]
    pub(crate) public_key: Option<String>,
    #[serde(default)]
    pub(crate) params: BTreeMap<String, serde_json::Value>,
    /// Unix seconds.
    pub(crate) now: i64,
    pub(crate) expect: Expect,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expect {
    Accept,
    Reject,
}

impl Expect {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
        }
    }
}

/// Why a case has no verdict: it cannot be read, or its provider cannot be judged here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unjudged(pub(crate) String);

/// A whole request, held in memory.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Scheme, host and port.
    pub(crate) base: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Chunks,
}

impl Request {
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts { method: &self.method, base: &self.base, target: &self.target, headers: &self.headers }
    }

    pub(crate) fn copy(&self) -> Self {
        Self { method: self.method.clone(), base: self.base.clone(), target: self.target.clone(), headers: self.headers.clone(), body: self.body.clone() }
    }

    /// Judges it from head to end, as the gate would.
    pub(crate) fn judge(&self, plan: &Plan, now_ms: i64) -> Result<Signed, Reject> {
        let facts = self.facts();
        let mut feed = plan.prepare(&facts, now_ms)?;
        self.body.pieces().for_each(|piece| plan.update(&mut feed, piece));
        plan.finish(feed, &facts, &mut self.body.clone(), now_ms)
    }
}

/// A URL's scheme, host and port, and its path and query, exactly as written.
pub(crate) fn split_url(url: &str) -> Option<(&str, &str)> {
    let host = url.find("://")? + 3;
    let end = url[host..].find(['/', '?']).map_or(url.len(), |at| host + at);
    (end > host).then(|| url.split_at(end))
}

impl Case {
    pub(crate) fn request(&self) -> Result<Request, Unjudged> {
        let bad = |what: &str| Unjudged(format!("{}: {what}", self.id));
        let (base, target) = split_url(&self.url).ok_or_else(|| bad("`url` is not a URL"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a header's name cannot stand in HTTP"))?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad("a header's value cannot stand in HTTP"))?;
            headers.append(name, value);
        }
        Ok(Request {
            method: Method::from_bytes(self.method.as_bytes()).map_err(|_| bad("`method` is not a method"))?,
            base: base.to_owned(),
            target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
            headers,
            body: Chunks::from(Bytes::from(BASE64.decode(self.body_base64.as_bytes()).map_err(|_| bad("`body_base64` is not base64"))?)),
        })
    }

    pub(crate) fn plan(&self, catalogue: &Catalogue) -> Result<Plan, Unjudged> {
        let definition = catalogue
            .definition(&self.provider)
            .ok_or_else(|| Unjudged(format!("there is no provider `{}`; {}", self.provider, catalogue.hint(&self.provider))))?;
        let secrets: Vec<Secret> =
            self.secrets.iter().enumerate().map(|(i, text)| Secret::new(format!("#{}", i + 1), text.clone().into_bytes(), None)).collect();
        let params = definition
            .params
            .iter()
            .chain(&definition.optional_params)
            .filter_map(|name| Some((name.clone(), self.params.get(name)?.as_str()?.to_owned())))
            .collect();
        let keys = self.keys()?;
        let mut public_keys = Vec::new();
        if let Some(text) = &self.public_key {
            let keys = public_key::parse(text.as_bytes()).map_err(|why| Unjudged(format!("{}: `public_key`: {why}", self.id)))?;
            public_keys.extend(keys.into_iter().map(|key| Trusted { label: "#1".into(), not_after: None, key }));
        }
        Plan::new(definition, &Means { keys: keys.as_ref(), public_keys: &public_keys, ..Means::new(&secrets, &params) }).map_err(Unjudged)
    }

    /// What a receiver would fetch: `params.jwks`, a key set, `params.certs`, certificates by key id or URL, and `params.introspection`,
    /// an issuer's answers by token.
    fn keys(&self) -> Result<Option<Given>, Unjudged> {
        let unread = |why: String| Unjudged(format!("{}: {why}", self.id));
        let mut documents = Vec::new();
        if let Some(set) = self.params.get("jwks") {
            let set = Document::read(Form::Set, None, "", set.to_string().as_bytes()).map_err(|why| unread(format!("`params.jwks`: {why}")))?;
            documents.push((String::new(), set));
        }
        if let Some(certificates) = self.params.get("certs").and_then(serde_json::Value::as_object) {
            for (id, pem) in certificates {
                let chain = Document::certificates(pem.as_str().unwrap_or_default().as_bytes()).map_err(|why| unread(format!("`params.certs`: {why}")))?;
                documents.push((id.clone(), chain));
            }
        }
        if let Some(answers) = self.params.get("introspection").and_then(serde_json::Value::as_object) {
            for (token, answer) in answers {
                let answer = Document::read(Form::Introspection, None, token, answer.to_string().as_bytes())
                    .map_err(|why| unread(format!("`params.introspection`: {why}")))?;
                documents.push((token.clone(), answer));
            }
        }
        Ok((!documents.is_empty()).then(|| Given::Fixed(Source::fixed(documents))))
    }

    /// The verdict: the signed facts, or why the request is refused.
    pub(crate) fn judge(&self, catalogue: &Catalogue) -> Result<Result<Signed, Reject>, Unjudged> {
        let plan = self.plan(catalogue)?;
        Ok(self.request()?.judge(&plan, self.now.saturating_mul(1000)))
    }
}

/// Reads a file of cases: an array.
pub(crate) fn read(text: &[u8]) -> Result<Vec<Case>, String> {
    serde_json::from_slice(text).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn files() -> Vec<(String, Vec<Case>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).expect("the vectors are part of the repository") {
            let path = entry.expect("a readable folder").path();
            if path.extension().is_some_and(|e| e == "json") {
                let cases = read(&fs::read(&path).expect("a readable file")).expect("a file of cases");
                files.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), cases));
            }
        }
        files
    }

    #[test]
    fn every_case_gets_its_verdict() {
        let catalogue = Catalogue::shipped();
        let mut wrong = Vec::new();
        let mut judged = 0;
        for (name, cases) in files() {
            for case in cases {
                assert_eq!(case.provider, name);
                judged += 1;
                let got = case.judge(&catalogue);
                let right = match &got {
                    Ok(Ok(_)) => case.expect == Expect::Accept,
                    Ok(Err(_)) => case.expect == Expect::Reject,
                    Err(_) => false,
                };
                if !right {
                    wrong.push(format!("{}: {:?} was due, got {got:?}", case.id, case.expect));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {judged} wrong:\n{}", wrong.len(), wrong.join("\n"));
        assert!(judged > 1000, "{judged}");
    }

    /// A token or a signed message with any one bit of its proof changed proves nothing any more.
    #[test]
    fn no_changed_bit_of_a_token_passes() {
        let catalogue = Catalogue::shipped();
        let proofs = [
            ("netlify", "x-webhook-signature"),
            ("messagebird", "messagebird-signature-jwt"),
            ("plaid", "plaid-verification"),
            ("google-pubsub", "authorization"),
        ];
        let all = files();
        for (name, header) in proofs {
            let (_, cases) = all.iter().find(|(file, _)| file == name).expect("it has cases");
            let case = cases.iter().find(|case| case.id.ends_with("/accept-basic")).expect("a plain case");
            let (plan, request, now) = (case.plan(&catalogue).expect("a plan"), case.request().expect("a request"), case.now * 1000);
            assert!(request.judge(&plan, now).is_ok(), "{name}");
            let token = request.headers[header].as_bytes().to_vec();
            // The name of an authentication scheme has no case.
            let start = token.iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
            for at in start..token.len() {
                for bit in 0..8 {
                    let mut changed = token.clone();
                    changed[at] ^= 1 << bit;
                    let Ok(value) = HeaderValue::from_bytes(&changed) else { continue };
                    let mut request = request.copy();
                    request.headers.insert(header, value);
                    assert!(request.judge(&plan, now).is_err(), "{name}: bit {bit} of byte {at}");
                }
            }
        }
        let (_, cases) = all.iter().find(|(file, _)| file == "aws-sns").expect("it has cases");
        let case = cases.iter().find(|case| case.id.ends_with("/accept-basic")).expect("a plain case");
        let (plan, request, now) = (case.plan(&catalogue).expect("a plan"), case.request().expect("a request"), case.now * 1000);
        let body = request.body.to_bytes();
        for field in ["\"Signature\": \"", "\"Message\": \"", "\"TopicArn\": \"", "\"MessageId\": \"", "\"Timestamp\": \"", "\"SigningCertURL\": \""] {
            let start = body.windows(field.len()).position(|window| window == field.as_bytes()).expect("the field is there") + field.len();
            let len = body[start..].iter().position(|byte| *byte == b'"').expect("a text ends");
            for at in start..start + len {
                for bit in 0..8 {
                    let mut changed = body.to_vec();
                    changed[at] ^= 1 << bit;
                    let request = Request { body: Chunks::from(Bytes::from(changed)), ..request.copy() };
                    assert!(request.judge(&plan, now).is_err(), "aws-sns: {field} bit {bit} of byte {at}");
                }
            }
        }
    }

    /// The plain case of each scheme whose proof is a token or a signed message, with its plan.
    static TOKENS: std::sync::LazyLock<Vec<(String, Case, Plan)>> = std::sync::LazyLock::new(|| {
        let catalogue = Catalogue::shipped();
        let wanted = ["netlify", "messagebird", "plaid", "google-pubsub", "aws-sns", "paypal"];
        let found = files().into_iter().filter(|(name, _)| wanted.contains(&name.as_str())).filter_map(|(name, cases)| Some((name, cases.into_iter().next()?)));
        found
            .map(|(name, case)| {
                let plan = case.plan(&catalogue).expect("a plan");
                (name, case, plan)
            })
            .collect()
    });

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 256, ..Default::default() })]

        /// Nothing that arrives makes a token scheme panic, and nothing that nobody signed is accepted.
        #[test]
        fn no_made_up_token_passes(
            parts in proptest::collection::vec("[A-Za-z0-9_=-]{0,40}|eyJhbGciOiJ(IUzI1NiJ9|FUzI1NiIsImtpZCI6IjEifQ|ub25lIn0)|e30|eyJleHAiOjk5OTk5OTk5OTl9", 0..5),
            raw in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            fields in proptest::collection::vec(("(Type|MessageId|TopicArn|Timestamp|SignatureVersion|Signature|SigningCertURL|Message|Subject|Token)", "[ -~]{0,40}|1|2|Notification|https://sns.us-east-1.amazonaws.com/x.pem"), 0..12),
        ) {
            let json: serde_json::Map<String, serde_json::Value> = fields.into_iter().map(|(name, value)| (name, value.into())).collect();
            let bodies = [raw.clone(), serde_json::Value::Object(json).to_string().into_bytes(), parts.join(".").into_bytes()];
            for (name, case, plan) in TOKENS.iter() {
                for body in &bodies {
                    let mut request = case.request().expect("a request");
                    for value in request.headers.values_mut() {
                        let token = if raw.len() % 2 == 0 { parts.join(".").into_bytes() } else { raw.clone() };
                        let text = if value.as_bytes().starts_with(b"Bearer ") { [b"Bearer ", &token[..]].concat() } else { token };
                        *value = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("x"));
                    }
                    request.body = Chunks::from(Bytes::from(body.clone()));
                    proptest::prop_assert!(request.judge(plan, case.now * 1000).is_err(), "{}", name);
                }
            }
        }
    }
}
