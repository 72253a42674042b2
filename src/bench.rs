//! Doors for `benches/`, which see only what is public. Nothing else uses them.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header::CONTENT_TYPE};

pub use crate::{condition::bench::ConditionCall, filter::bench::FilterCall};
use crate::{
    secret::Secret,
    validate::json::{self, Pointer},
    verify::{
        Catalogue, Plan,
        cases::Request,
        sign::{Wishes, sign},
    },
};

const NOW_MS: i64 = 1_760_000_000_000;

/// A plan and a good request of a preset, judged as often as wanted.
pub struct Verify {
    plan: Plan,
    request: Request,
}

impl Verify {
    /// Signs `body` as `provider` does, with `secrets` secrets configured of which the last one is the sender's.
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
        let sender = Plan::new(definition, std::slice::from_ref(theirs), &params, None, None).expect("a plan");
        let mut request = Request {
            method: Method::POST,
            base: "https://hooks.example.com".into(),
            target: "/in".into(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body).into(),
        };
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        sign(&sender, theirs, &mut request, &Wishes { id: "msg_1".into(), event_type: Some("push".into()), now_ms: NOW_MS, ..Wishes::default() })
            .expect("a signed request");
        let plan = Plan::new(definition, &secrets, &params, None, None).expect("a plan");
        Self { plan, request }
    }

    /// Whether the request verifies.
    #[must_use]
    pub fn run(&self) -> bool {
        self.request.judge(&self.plan, NOW_MS).is_ok()
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
