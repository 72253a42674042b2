//! The last events whose proof was refused, kept for whoever asks why: opt-in, in memory only, bounded in number and in bytes.
//!
//! They are kept exactly, because a signature covers exact bytes. What is shown of one leaves out credentials, signatures and the values
//! of its query. Of a flood of one kind the oldest go first, so that the one event somebody waits for is not pushed out by a forger.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    event::{Chunks, is_credential},
    observe::audit::{query_names, rfc3339},
    policy::Policy,
    reject::{Reason, Reject},
    section::Section,
    verify::{
        Plan,
        cases::Request,
        explain::{Other, Question, explain},
    },
};

/// The most bytes that all kept events may have together.
const TOTAL: usize = 16 << 20;

/// What a kept event costs beside its texts, about.
const OVERHEAD: usize = 1024;

/// How much of a header's value is shown.
const VALUE: usize = 2 << 10;

/// What stands in place of a credential or a signature.
const MASK: &str = "[masked]";

/// `[admin] capture`, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How many events are kept; 0: none. Default 20, at most 200.
    pub(crate) refused: usize,
    /// The largest body that is kept, in bytes; of an event with a larger one the head is. Default 64 KiB, at most 1 MiB.
    pub(crate) max_body: usize,
}

/// Reads `capture` of `[admin]`; off without it.
pub(crate) fn read(admin: &Section<'_>) -> Settings {
    let Some(item) = admin.item("capture") else { return Settings::default() };
    let standard = Settings { refused: 20, max_body: 64 << 10 };
    match item.as_bool() {
        Some(true) => return standard,
        Some(false) => return Settings::default(),
        None => {}
    }
    let Some(table) = item.section() else { return Settings::default() };
    let refused = usize::try_from(table.u64_or("refused", standard.refused as u64, 0..=200)).unwrap_or(standard.refused);
    let size = table.size_or("max_body", standard.max_body as u64);
    if size > 1 << 20 {
        table.problem("max_body", format!("{size} bytes are too many to keep of every refused event"), "at most 1MiB");
    }
    table.finish();
    Settings { refused, max_body: usize::try_from(size).unwrap_or(standard.max_body) }
}

/// An event as it is handed in.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) id: String,
    pub(crate) route: &'a Arc<str>,
    pub(crate) client: IpAddr,
    /// When its head had arrived, by which it is judged: Unix milliseconds.
    pub(crate) received_ms: i64,
    pub(crate) why: &'a Reject,
    /// Whether the route only observes: the event went on.
    pub(crate) observed: bool,
    /// Its body may be absent: see `whole`.
    pub(crate) request: Request,
    /// Whether `request` has the whole body.
    pub(crate) whole: bool,
    pub(crate) knows_url: bool,
}

/// One refused event.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Counts up from 1; for [`Refused::list`].
    pub(crate) number: u64,
    pub(crate) id: String,
    route: Arc<str>,
    client: IpAddr,
    received_ms: i64,
    reason: Reason,
    detail: String,
    observed: bool,
    request: Request,
    whole: bool,
    knows_url: bool,
    bytes: usize,
}

/// The kept events, shared by all workers.
#[derive(Debug)]
pub(crate) struct Refused {
    inner: Mutex<Inner>,
    /// The number of the newest event: changes with every one.
    newest: watch::Sender<u64>,
    /// The largest body that is kept, plus one; 0 while nothing is kept. Read by every refusal.
    room: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    settings: Settings,
    kept: VecDeque<Arc<Kept>>,
    last: u64,
    bytes: usize,
}

impl Default for Refused {
    fn default() -> Self {
        Self { inner: Mutex::default(), newest: watch::Sender::new(0), room: AtomicUsize::new(0) }
    }
}

impl Refused {
    /// What holds from now on; what is too much is dropped.
    pub(crate) fn configure(&self, settings: Settings) {
        let mut inner = self.lock();
        inner.settings = settings;
        while inner.kept.len() > settings.refused {
            inner.drop_one();
        }
        let room = if settings.refused == 0 { 0 } else { settings.max_body + 1 };
        self.room.store(room, Ordering::Relaxed);
    }

    /// The largest body that is kept; `None` while nothing is.
    pub(crate) fn room(&self) -> Option<usize> {
        self.room.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn keep(&self, refusal: Refusal<'_>) {
        let Refusal { id, route, client, received_ms, why, observed, mut request, whole, knows_url } = refusal;
        // A copy of its own: the event's bytes count against the budget of all bodies for as long as they are shared.
        let body = if whole { Bytes::copy_from_slice(&request.body.to_bytes()) } else { Bytes::new() };
        let head: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let bytes = OVERHEAD + head + request.target.len() + body.len();
        request.body = Chunks::from(body);
        let number = {
            let mut inner = self.lock();
            if inner.settings.refused == 0 {
                return;
            }
            inner.last += 1;
            let number = inner.last;
            inner.bytes += bytes;
            let detail = why.detail.clone().into_owned();
            let kept = Kept { number, id, route: route.clone(), client, received_ms, reason: why.reason, detail, observed, request, whole, knows_url, bytes };
            inner.kept.push_back(Arc::new(kept));
            while inner.kept.len() > inner.settings.refused || (inner.bytes > TOTAL && inner.kept.len() > 1) {
                inner.drop_one();
            }
            number
        };
        self.newest.send_replace(number);
    }

    /// Those after `number`, oldest first; 0 for all.
    pub(crate) fn list(&self, after: u64) -> Vec<Arc<Kept>> {
        self.lock().kept.iter().filter(|kept| kept.number > after).cloned().collect()
    }

    /// One by its event id.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Kept>> {
        self.lock().kept.iter().rev().find(|kept| kept.id == id).cloned()
    }

    /// Changes to the newest number with every event: for live pages.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A list of finished records: nothing is left half done by a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Drops the oldest of the kind that there is most of, a kind being a route and a reason.
    fn drop_one(&mut self) {
        let mut kinds: HashMap<(Arc<str>, Reason), usize> = HashMap::new();
        for kept in &self.kept {
            *kinds.entry((kept.route.clone(), kept.reason)).or_default() += 1;
        }
        let most = kinds.values().copied().max().unwrap_or(0);
        let at = self.kept.iter().position(|kept| kinds.get(&(kept.route.clone(), kept.reason)) == Some(&most));
        if let Some(gone) = at.and_then(|at| self.kept.remove(at)) {
            self.bytes -= gone.bytes;
        }
    }
}

impl Kept {
    /// For the list: without headers and body.
    pub(crate) fn summary(&self) -> Value {
        json!({
            "number": self.number, "id": self.id, "received": rfc3339(self.received_ms), "route": &*self.route, "client": self.client.to_string(),
            "reason": self.reason.code(), "detail": self.detail, "observed": self.observed, "method": self.request.method.as_str(), "path": self.path(),
            "body_bytes": if self.whole { Some(self.request.body.len()) } else { None },
        })
    }

    /// Whether it came to the route of this name.
    pub(crate) fn is_of(&self, route: &str) -> bool {
        *self.route == *route
    }

    fn path(&self) -> &str {
        self.request.target.split('?').next().unwrap_or("")
    }

    /// Whole, with credentials and signatures masked. `plan`: the route's, which knows where they stand.
    pub(crate) fn detail(&self, plan: Option<&Plan>) -> Value {
        let mut all = self.summary();
        let headers = self.request.headers.iter().map(|(name, value)| {
            let hidden = is_credential(name, value) || plan.is_none_or(|plan| plan.is_proof(name));
            let text = if hidden { MASK.to_owned() } else { String::from_utf8_lossy(&value.as_bytes()[..value.len().min(VALUE)]).into_owned() };
            json!([name.as_str(), text])
        });
        all["headers"] = headers.collect::<Vec<_>>().into();
        all["url"] = self.url().into();
        // Where the proof is part of the body, the body is not shown.
        let shown = self.whole && plan.is_some_and(|plan| !plan.proves_in_body());
        all["body"] = if shown { String::from_utf8_lossy(&self.request.body.to_bytes()).into_owned().into() } else { Value::Null };
        all["truncated"] = (!self.whole).into();
        all
    }

    /// With the names of its query only.
    fn url(&self) -> String {
        let query = self.request.target.split_once('?').map(|(_, query)| format!("?{}", query_names(query))).unwrap_or_default();
        format!("{}{}{query}", self.request.base, self.path())
    }

    /// Why it was refused, by the policy that is in force now. The error is for whoever asks.
    pub(crate) fn explain(&self, policy: &Policy) -> Result<Value, String> {
        let route = policy.routes.iter().find(|route| route.name == self.route);
        let route = route.ok_or_else(|| format!("the route `{}` is no longer in the policy", self.route))?;
        let definition = route.verify.definition().ok_or_else(|| format!("the route `{}` now takes anything: `verify = \"none\"`", self.route))?;
        let others: Vec<Other> = policy
            .routes
            .iter()
            .filter(|other| other.name != self.route && !other.verify.is_none())
            .map(|other| Other { what: format!("the route `{}`", other.name), secrets: other.verify.means().secrets.to_vec() })
            .collect();
        let question = Question {
            catalogue: &policy.catalogue,
            definition,
            means: route.verify.means(),
            others: &others,
            request: &self.request,
            now_ms: self.received_ms,
            knows_url: self.knows_url,
            live: true,
        };
        let mut told = explain(&question)?.as_json();
        told["provider"] = (&*definition.name).into();
        told["route"] = (&*self.route).into();
        told["event_id"] = self.id.as_str().into();
        let mut notes = Vec::new();
        if !self.whole {
            notes.push("its body is not kept: it was larger than `max_body`, or did not arrive; what depends on it cannot be judged".to_owned());
        }
        if mem::take(&mut told["verdict"]) == "accept" {
            notes.push(format!("by the policy in force now it verifies; when it came it was refused: {} ({})", self.detail, self.reason.code()));
            told["verdict"] = "accept".into();
        } else {
            told["verdict"] = "reject".into();
        }
        let body = if self.whole { Some(self.request.body.len()) } else { None };
        told["request"] = json!({
            "form": "the gate", "method": self.request.method.as_str(), "url": self.url(), "headers": self.request.headers.len(), "body_bytes": body,
            "body_sha256": self.whole.then(|| super::sha256(&self.request.body)), "notes": notes,
        });
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn request(body: &str) -> Request {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer s3cret"));
        headers.insert("x-hub-signature-256", HeaderValue::from_static("sha256=5161"));
        headers.insert("x-github-event", HeaderValue::from_static("push"));
        Request { method: Method::POST, base: "https://h".into(), target: "/a?token=s3cret".into(), headers, body: Bytes::from(body.to_owned()).into() }
    }

    fn keep(store: &Refused, id: &str, route: &str, reason: Reason, body: &str) {
        let why = Reject::new(reason, "because");
        let route: Arc<str> = route.into();
        let client = IpAddr::from([192, 0, 2, 1]);
        store.keep(Refusal {
            id: id.into(),
            route: &route,
            client,
            received_ms: 0,
            why: &why,
            observed: false,
            request: request(body),
            whole: true,
            knows_url: true,
        });
    }

    #[test]
    fn a_flood_does_not_push_out_the_rare() {
        let store = Refused::default();
        keep(&store, "none", "a", Reason::SignatureMissing, "");
        assert!(store.room().is_none() && store.list(0).is_empty(), "off without settings");
        store.configure(Settings { refused: 5, max_body: 10 });
        assert_eq!(store.room(), Some(10));
        keep(&store, "rare", "a", Reason::SignatureMismatch, "x");
        for n in 0..50 {
            keep(&store, &format!("flood {n}"), "b", Reason::SignatureMissing, "");
        }
        let ids: Vec<String> = store.list(0).iter().map(|kept| kept.id.clone()).collect();
        assert_eq!(ids, ["rare", "flood 46", "flood 47", "flood 48", "flood 49"]);
        assert_eq!((store.list(49).len(), *store.subscribe().borrow()), (2, 51));
        store.configure(Settings { refused: 1, max_body: 10 });
        assert_eq!(store.list(0).len(), 1);
        store.configure(Settings::default());
        assert!(store.list(0).is_empty() && store.lock().bytes == 0);
    }

    #[test]
    fn all_together_are_bounded() {
        let store = Refused::default();
        store.configure(Settings { refused: 200, max_body: 1 << 20 });
        let body = "x".repeat(1 << 20);
        for n in 0..40 {
            keep(&store, &n.to_string(), "a", Reason::SignatureMismatch, &body);
        }
        assert!(store.lock().bytes <= TOTAL, "{}", store.lock().bytes);
        assert_eq!(store.list(0).last().map(|kept| kept.id.clone()), Some("39".into()));
    }

    #[test]
    fn what_is_shown_holds_no_credential_and_no_signature() {
        let catalogue = crate::verify::Catalogue::shipped();
        let secrets = [crate::secret::Secret::new("#1", b"0123456789abcdef".to_vec(), None)];
        let params = Default::default();
        let plan = Plan::new(catalogue.definition("github").expect("a preset"), &crate::verify::Means::new(&secrets, &params)).expect("a plan");
        let store = Refused::default();
        store.configure(Settings { refused: 1, max_body: 10 });
        keep(&store, "id", "a", Reason::SignatureMismatch, "{}");
        let kept = store.get("id").expect("it is kept");
        for detail in [kept.detail(Some(&plan)), kept.detail(None)] {
            let text = detail.to_string();
            assert!(!text.contains("s3cret") && !text.contains("5161"), "{text}");
        }
        let detail = kept.detail(Some(&plan));
        assert_eq!((detail["body"].as_str(), detail["url"].as_str()), (Some("{}"), Some("https://h/a?token")));
        assert!(detail.to_string().contains("[\"x-github-event\",\"push\"]"));
    }

    #[test]
    fn settings_are_read() {
        let check = |text: &str, want: (usize, usize), problems: usize| {
            let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
            let table = reader.parse();
            let root = reader.root(&table);
            let settings = read(&root);
            root.finish();
            assert_eq!(((settings.refused, settings.max_body), reader.problems().len()), (want, problems), "{text}: {:?}", reader.problems());
        };
        check("", (0, 0), 0);
        check("capture = false", (0, 0), 0);
        check("capture = true", (20, 65536), 0);
        check("capture = { refused = 5 }", (5, 65536), 0);
        check("capture = { refused = 20, max_body = \"128KiB\" }", (20, 131_072), 0);
        check("capture = { refused = 1000 }", (20, 65536), 1);
        check("capture = { max_body = \"2MiB\" }", (20, 2 << 20), 1);
        check("capture = { refussed = 1 }", (20, 65536), 1);
    }
}
