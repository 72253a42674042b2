//! Fetching: once for all who ask, not again too soon, the last good document kept.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quick_cache::sync::Cache;
use rand::RngExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{
    Found, Settings,
    document::{Document, Form},
};
use crate::{
    clock::{Clock, Mono},
    fetch::{Ask, Client},
    observe::metrics::{KeysFetched, KeysMetrics, Metrics},
};

/// How many documents one source keeps: tokens, certificates, single keys.
const MOST_DOCUMENTS: usize = 1024;
/// The largest document.
const MAX_BYTES: usize = 512 << 10;
/// How long a document counts as fresh where its answer does not say, and the bounds of what an answer may say.
const FRESH: Duration = Duration::from_secs(3600);
const FRESH_LEAST: Duration = Duration::from_secs(300);
const FRESH_MOST: Duration = Duration::from_secs(24 * 3600);
/// How long a stale one is still used while its source cannot be asked.
const LAST_GOOD: Duration = Duration::from_secs(24 * 3600);
/// How long an introspected token counts: that an active one was revoked is seen after this, that an unknown one was made after that.
const TOKEN_ACTIVE: Duration = Duration::from_secs(60);
const TOKEN_INACTIVE: Duration = Duration::from_secs(10);
/// The pause before a place is asked again for an id that it did not have.
const AGAIN: Duration = Duration::from_secs(5);
/// The pause after a failure: doubled with each, up to the most.
const FAILED_LEAST: Duration = Duration::from_secs(1);
const FAILED_MOST: Duration = Duration::from_secs(60);
/// Fetches of ids that requests name, in one minute: a flood of made-up ids must not become a flood of fetches.
const MOST_FETCHES: u32 = 120;
const WINDOW: Duration = Duration::from_secs(60);

/// One place, connected.
pub(super) struct Remote {
    settings: Settings,
    client: Client,
    dir: Option<PathBuf>,
    clock: Clock,
    metrics: KeysMetrics,
    slots: Cache<[u8; 32], Arc<Slot>>,
    window: Mutex<(Mono, u32)>,
}

/// One document and how it came.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    /// One fetch at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    document: Option<Arc<Document>>,
    etag: Option<HeaderValue>,
    fresh_until: Mono,
    usable_until: Mono,
    /// The end of the last fetch, whatever came of it.
    tried: Option<Mono>,
    failures: u32,
    why: Option<String>,
    /// Whether the disk was looked at.
    looked: bool,
}

impl State {
    /// The document, while it may be used.
    fn usable(&self, now: Mono) -> Option<&Arc<Document>> {
        self.document.as_ref().filter(|_| now < self.usable_until)
    }

    /// Whether the place may be asked now.
    fn may_try(&self, now: Mono) -> bool {
        let pause = match self.failures {
            0 => AGAIN,
            n => FAILED_LEAST.saturating_mul(1 << n.min(7).saturating_sub(1)).min(FAILED_MOST),
        };
        self.tried.is_none_or(|tried| now.since(tried) >= pause)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    pub(super) fn open(settings: Settings, dir: Option<PathBuf>, clock: Clock, metrics: &Metrics) -> Result<Arc<Self>, String> {
        let metrics = metrics.keys(&settings.name);
        let client = Client::new(&settings.tls)?;
        let dir = dir.filter(|_| settings.form != Form::Introspection);
        let set = settings.form == Form::Set;
        let remote = Arc::new(Self { settings, client, dir, clock, metrics, slots: Cache::new(MOST_DOCUMENTS), window: Mutex::default() });
        if set && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // The first fetch is its too: the start never waits for the network.
            runtime.spawn(keep_fresh(Arc::downgrade(&remote)));
        }
        Ok(remote)
    }

    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    /// An id may be a token: only its digest is kept.
    fn slot(&self, id: &str) -> Arc<Slot> {
        let key: [u8; 32] = Sha256::digest(id.as_bytes()).into();
        self.slots.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(Arc::default())).unwrap_or_default()
    }

    pub(super) fn find(&self, id: &str) -> Found {
        let slot = self.slot(id);
        let state = lock(&slot.state);
        match (state.usable(self.clock.mono()), &state.why) {
            (Some(document), _) => Found::Known(document.clone()),
            (None, Some(why)) => Found::Unavailable(format!("{}: {why}", self.settings.name)),
            (None, None) if state.tried.is_some() => Found::Absent,
            (None, None) => Found::Unavailable(format!("{} was not asked yet", self.settings.name)),
        }
    }

    /// Whether the document at hand does not serve and the place may be asked for another.
    pub(super) fn lacks(&self, id: &str, serves: &dyn Fn(&Document) -> bool) -> bool {
        let slot = self.slot(id);
        let state = lock(&slot.state);
        let now = self.clock.mono();
        let serving = state.usable(now).is_some_and(|document| serves(document));
        // What is not a set is asked for again by the first who comes after it went stale.
        let stale = self.settings.form != Form::Set && now >= state.fresh_until;
        (!serving || stale) && state.may_try(now)
    }

    /// Asks the place, unless another does or just did.
    pub(super) async fn fetch(&self, id: &str) {
        let slot = self.slot(id);
        let before = lock(&slot.state).tried;
        let _turn = slot.turn.lock().await;
        if lock(&slot.state).tried != before {
            return;
        }
        if !std::mem::replace(&mut lock(&slot.state).looked, true) && self.recall(&slot, id).await {
            return;
        }
        if !self.may_spend(id) {
            let mut state = lock(&slot.state);
            state.tried = Some(self.clock.mono());
            state.why = Some("too many documents were asked for within a minute".to_owned());
            return;
        }
        let etag = lock(&slot.state).etag.clone();
        let fetched = self.ask(id, etag).await;
        let (result, kept) = self.take(&slot, fetched);
        if let Some((body, fresh)) = kept {
            self.keep(id, &body, fresh).await;
        }
        self.metrics.fetched(result);
    }

    /// Notes what came of a fetch; what is to be kept on disk.
    fn take(&self, slot: &Slot, fetched: Result<Answer, String>) -> (KeysFetched, Option<(Bytes, Duration)>) {
        let now = self.clock.mono();
        let mut state = lock(&slot.state);
        state.tried = Some(now);
        match fetched {
            Ok(Answer::Document { document, body, etag, fresh }) => {
                state.set(Arc::new(document), now, fresh, self.settings.form);
                state.etag = etag;
                (KeysFetched::Ok, Some((body, fresh)))
            }
            Ok(Answer::Unchanged { fresh }) => {
                if let Some(document) = state.document.clone() {
                    state.set(document, now, fresh, self.settings.form);
                }
                (KeysFetched::Unchanged, None)
            }
            Ok(Answer::Absent) => {
                (state.document, state.why, state.failures) = (None, None, 0);
                (KeysFetched::Absent, None)
            }
            Err(why) => {
                state.failures = state.failures.saturating_add(1);
                warn!(source = &*self.settings.name, why, "keys could not be fetched");
                state.why = Some(why);
                (KeysFetched::Failed, None)
            }
        }
    }

    /// A flood of ids is cut; a set is one document, which nobody can multiply.
    fn may_spend(&self, id: &str) -> bool {
        if id.is_empty() {
            return true;
        }
        let now = self.clock.mono();
        let mut window = lock(&self.window);
        if now.since(window.0) >= WINDOW {
            *window = (now, 0);
        }
        window.1 += 1;
        window.1 <= MOST_FETCHES
    }

    async fn ask(&self, id: &str, etag: Option<HeaderValue>) -> Result<Answer, String> {
        let settings = &self.settings;
        let mut request = settings.request(id)?;
        if let Some(etag) = etag {
            request.headers.insert(header::IF_NONE_MATCH, etag);
        }
        let body = Bytes::from(std::mem::take(&mut *request.body));
        let ask = Ask { url: &request.url, method: request.method, headers: request.headers, body, max_bytes: MAX_BYTES, timeout: settings.timeout };
        let fetched = self.client.fetch(ask).await.map_err(|why| why.to_string())?;
        let fresh = freshness(&fetched.headers);
        match fetched.status {
            StatusCode::NOT_MODIFIED => Ok(Answer::Unchanged { fresh }),
            StatusCode::NOT_FOUND | StatusCode::GONE if settings.form != Form::Set => Ok(Answer::Absent),
            status if status.is_success() => {
                let document = Document::read(settings.form, settings.pointer.as_ref(), id, &fetched.body)?;
                let etag = fetched.headers.get(header::ETAG).cloned();
                Ok(Answer::Document { document, body: fetched.body, etag, fresh })
            }
            status => Err(format!("the answer's status is {status}")),
        }
    }

    fn file(&self, id: &str) -> Option<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(self.settings.fingerprint());
        hash.update(id.as_bytes());
        Some(self.dir.as_ref()?.join(format!("{}.json", HEXLOWER.encode(&hash.finalize()[..16]))))
    }

    /// Writes the document where the next start finds it. Its loss costs a fetch, so that a failure is only told.
    async fn keep(&self, id: &str, body: &[u8], fresh: Duration) {
        let Some(path) = self.file(id) else { return };
        let now = self.clock.now().wall_ms;
        let fresh_ms = i64::try_from(fresh.as_millis()).unwrap_or(i64::MAX);
        let text = json!({ "source": &*self.settings.name, "fetched_ms": now, "fresh_ms": fresh_ms, "body_base64": BASE64.encode(body) }).to_string();
        let written = tokio::task::spawn_blocking(move || {
            let dir = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(dir)?;
            let aside = path.with_extension("new");
            std::fs::write(&aside, text)?;
            std::fs::rename(&aside, &path)
        });
        if let Ok(Err(why)) = written.await {
            warn!(source = &*self.settings.name, %why, "fetched keys could not be kept on disk");
        }
    }

    /// Takes the last good document from the disk; true where it is still fresh.
    async fn recall(&self, slot: &Slot, id: &str) -> bool {
        let Some(path) = self.file(id) else { return false };
        let Ok(text) = tokio::fs::read(path).await else { return false };
        let Ok(kept) = serde_json::from_slice::<Value>(&text) else { return false };
        let number = |name: &str| kept.get(name).and_then(Value::as_i64);
        let (Some(fetched), Some(fresh), Some(body)) =
            (number("fetched_ms"), number("fresh_ms"), kept.get("body_base64").and_then(Value::as_str).and_then(|text| BASE64.decode(text.as_bytes()).ok()))
        else {
            return false;
        };
        let Ok(document) = Document::read(self.settings.form, self.settings.pointer.as_ref(), id, &body) else { return false };
        let now = self.clock.now();
        let age = now.wall_ms.saturating_sub(fetched);
        let left = |span: i64| Duration::from_millis(u64::try_from(span.saturating_sub(age)).unwrap_or(0));
        let usable = left(fresh.saturating_add(i64::try_from(LAST_GOOD.as_millis()).unwrap_or(i64::MAX)));
        if age < 0 || usable.is_zero() {
            return false;
        }
        let mut state = lock(&slot.state);
        state.set(Arc::new(document), now.mono, left(fresh).min(FRESH_MOST), self.settings.form);
        state.usable_until = now.mono.plus(usable);
        if !left(fresh).is_zero() {
            // As good as fetched now: those who wait for it need not ask again.
            state.tried = Some(now.mono);
        }
        info!(source = &*self.settings.name, age_s = age / 1000, "keys were taken from the disk");
        !left(fresh).is_zero()
    }

    /// How long until a set is due again; a tenth before it goes stale, not all sources at once.
    fn due(&self) -> Duration {
        let slot = self.slot("");
        let state = lock(&slot.state);
        let now = self.clock.mono();
        let part = rand::rng().random_range(0.8..0.95);
        if state.failures > 0 {
            return FAILED_LEAST.saturating_mul(1 << state.failures.min(9)).min(Duration::from_secs(300)).mul_f64(part);
        }
        state.fresh_until.since(now).mul_f64(part).max(FAILED_LEAST)
    }
}

enum Answer {
    Document { document: Document, body: Bytes, etag: Option<HeaderValue>, fresh: Duration },
    Unchanged { fresh: Duration },
    Absent,
}

impl State {
    fn set(&mut self, document: Arc<Document>, now: Mono, fresh: Duration, form: Form) {
        let (fresh, usable) = match (form, &*document) {
            (Form::Introspection, Document::Token(Some(_))) => (TOKEN_ACTIVE, TOKEN_ACTIVE),
            (Form::Introspection, _) => (TOKEN_INACTIVE, TOKEN_INACTIVE),
            _ => (fresh, fresh + LAST_GOOD),
        };
        (self.fresh_until, self.usable_until) = (now.plus(fresh), now.plus(usable));
        (self.why, self.failures) = (None, 0);
        self.document = Some(document);
    }
}

/// How long an answer may be kept, by its `Cache-Control: max-age`.
fn freshness(headers: &HeaderMap) -> Duration {
    let stated = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).find_map(|part| {
        let (name, seconds) = part.trim().split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| seconds.trim_matches('"').parse().ok())?
    });
    stated.map_or(FRESH, Duration::from_secs).clamp(FRESH_LEAST, FRESH_MOST)
}

/// Asks for a set whenever it is due, until nobody uses it any more.
async fn keep_fresh(remote: Weak<Remote>) {
    loop {
        let wait = {
            let Some(remote) = remote.upgrade() else { return };
            remote.fetch("").await;
            remote.due()
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_long_it_is_fresh() {
        fn check(value: Option<&'static str>, seconds: u64) {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(value));
            }
            assert_eq!(freshness(&headers).as_secs(), seconds, "{value:?}");
        }
        check(None, 3600);
        check(Some("public, max-age=7200, must-revalidate"), 7200);
        check(Some("Max-Age=\"600\""), 600);
        check(Some("max-age=1"), 300);
        check(Some("max-age=99999999"), 86400);
        check(Some("no-store"), 3600);
        check(Some("max-age=soon"), 3600);
    }

    #[test]
    fn a_place_is_not_asked_too_soon() {
        fn check(failures: u32, since_s: u64, may: bool) {
            let tried = Mono(5_000_000_000);
            let state = State { tried: Some(tried), failures, ..State::default() };
            assert_eq!(state.may_try(tried.plus(Duration::from_secs(since_s))), may, "{failures} failures, {since_s} s");
        }
        check(0, 4, false);
        check(0, 5, true);
        check(1, 0, false);
        check(1, 1, true);
        check(3, 3, false);
        check(3, 4, true);
        check(40, 59, false);
        check(40, 60, true);
        assert!(State::default().may_try(Mono(0)));
    }
}
