//! Doors for `benches/`, which see only what is public. Nothing else uses them.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};

use crate::{
    clock::Clock,
    event::EventId,
    outcome::Answer,
    replay::{Claim, OnDuplicate, OnInFlight, Rule, claim},
    secret::Secret,
    state::{OnStateError, Settings, State},
    validate::json::{self, Pointer},
    verify::{
        Catalogue, Means, Plan,
        cases::Request,
        private_key::PrivateKey,
        public_key::Trusted,
        sign::{Wishes, sign},
    },
};
pub use crate::{condition::bench::ConditionCall, filter::bench::FilterCall};

const NOW_MS: i64 = 1_760_000_000_000;

/// A plan and a good request of a preset, judged as often as wanted.
pub struct Verify {
    plan: Plan,
    request: Request,
}

impl Verify {
    /// Signs `body` as `provider` does: with `secrets` secrets configured of which the last one is the sender's, or with a fresh key pair
    /// where the provider signs by one.
    ///
    /// # Panics
    ///
    /// Where there is no such preset or it cannot sign this body.
    #[must_use]
    pub fn new(provider: &str, body: &[u8], secrets: usize) -> Self {
        let catalogue = Catalogue::shipped();
        let definition = catalogue.definition(provider).expect("a preset's name");
        let secrets: Vec<Secret> =
            (0..secrets).map(|i| Secret::new(format!("#{i}"), format!("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS{i}").into_bytes(), None)).collect();
        let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
        let theirs = secrets.last().expect("one secret or more");
        let key = definition.takes_public_keys().then(|| Arc::new(key_pair(&definition.schemes())));
        let public: Vec<Trusted> =
            key.iter().map(|key| Trusted { label: "pair".into(), not_after: None, key: key.public().expect("a pair has both halves") }).collect();
        let means = |secrets| Means { public_keys: &public, ..Means::new(secrets, &params) };
        let sender = Plan::new(definition, &means(std::slice::from_ref(theirs))).expect("a plan");
        let mut request = Request {
            method: Method::POST,
            base: "https://hooks.example.com".into(),
            target: "/in".into(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body).into(),
        };
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let wishes = Wishes { id: "msg_1".into(), event_type: Some("push".into()), now_ms: NOW_MS, key, ..Wishes::default() };
        sign(&sender, theirs, &mut request, &wishes).expect("a signed request");
        let plan = Plan::new(definition, &means(&secrets)).expect("a plan");
        Self { plan, request }
    }

    /// Whether the request verifies.
    #[must_use]
    pub fn run(&self) -> bool {
        self.request.judge(&self.plan, NOW_MS).is_ok()
    }
}

/// A fresh key pair for one of the schemes.
fn key_pair(schemes: &[&str]) -> PrivateKey {
    let algorithm = match schemes {
        ["ecdsa", ..] => &rcgen::PKCS_ECDSA_P256_SHA256,
        ["rsa", ..] => &rcgen::PKCS_RSA_SHA256,
        _ => &rcgen::PKCS_ED25519,
    };
    let pair = rcgen::KeyPair::generate_for(algorithm).expect("the system has randomness");
    PrivateKey::parse(pair.serialize_pem().as_bytes()).expect("a key that was just made")
}

/// A replay store in a folder, and the events that go through it.
pub struct Replay {
    state: State,
    rule: Rule,
    answer: Answer,
}

impl Replay {
    /// # Panics
    ///
    /// Where the folder cannot be used.
    #[must_use]
    pub fn new(dir: &Path, persist_within: Duration) -> Self {
        let settings = Settings { dir: dir.to_owned(), persist_within, on_error: OnStateError::Reject, max_records: 1_000_000 };
        let state = State::open(&settings, Clock::system(), Arc::new(|_| {})).expect("a folder to use");
        let rule = Rule { remember: Duration::from_secs(4200), on_duplicate: OnDuplicate::Acknowledge, on_in_flight: OnInFlight::Refuse, dedupe: None };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Self { state, rule, answer: Answer { status: StatusCode::OK, headers, body: Bytes::from_static(b"ok") } }
    }

    /// Claims a key and ends it as done, or takes the stored answer of its first copy; says whether it was the first.
    ///
    /// # Panics
    ///
    /// Where the store fails.
    pub async fn run(&self, key: u64) -> bool {
        let now = self.state.clock().now();
        // A delivery's digest has 32 bytes.
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&key.to_le_bytes());
        match claim(&self.state, &self.rule, "github", &digest, EventId::new(), now).await.expect("the store works") {
            Claim::Mine(claimed) => {
                claimed.record_branch("billing", true);
                claimed.done(&self.answer).await.expect("the store works");
                true
            }
            Claim::Done(_) => false,
        }
    }

    /// Synced transactions so far.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.state.stats().commits
    }
}

/// Judges a JSON text.
#[must_use]
pub fn json_check(text: &[u8], unique_keys: bool) -> bool {
    json::check(text, 64, unique_keys).is_ok()
}

/// Takes two values out of a JSON text.
///
/// # Panics
///
/// Where a pointer is none.
#[must_use]
pub fn json_find(text: &[u8], pointers: [&str; 2]) -> bool {
    let pointers = pointers.map(|pointer| Pointer::parse(pointer).expect("a pointer"));
    json::find(text, 64, &pointers).is_ok()
}
