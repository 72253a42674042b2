//! All that a filter can reach: log, config, metrics and clock always; kv, random and the keyed crypto by the policy's word.
//! The rest of the interface answers with an error that its author can read.

use std::{sync::Arc, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt as _;
use sha2::Digest;
use wasmtime::{ResourceLimiter, component::HasData, format_err};

use super::{
    bindings::hooklatch::filter::{clock, config, crypto, http, kv, log, metrics, random, types},
    engine::TABLE_ELEMENTS,
    fault::Limit,
    kv::{KEY_BYTES, KvError, NAMESPACE_BYTES, Operation, Reply, VALUE_BYTES},
    load::Shared,
};
use types::HostError;

use crate::secret::Secret;

/// Lines one call may log.
const LOG_LINES: u32 = 64;
/// Longest line, in bytes; longer ones are cut.
const LOG_BYTES: usize = 4 << 10;
/// Most random bytes of one request.
const RANDOM_BYTES: u32 = 4096;
/// Longest time to live: values that are to stay have none.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// What a store holds: the instance's limits, and the call it is in.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) route: Arc<str>,
    pub(super) event: String,
    /// Slices left of the guest's own time.
    pub(super) slices: u32,
    /// Ticks that it has met.
    pub(super) ticks: u32,
    /// The limit that ended the call, where the trap does not say.
    pub(super) hit: Option<Limit>,
    memory: usize,
    log_lines: u32,
}

impl Call {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let slices = shared.slices();
        Self { shared, route: "".into(), event: String::new(), slices, ticks: 0, hit: None, memory: 0, log_lines: 0 }
    }

    /// Begins an event; in a fresh instance, with what instantiation has left of the guest's time.
    pub(super) fn begin(&mut self, route: &Arc<str>, event: &str) {
        self.route = route.clone();
        event.clone_into(&mut self.event);
        self.ticks = 0;
        self.hit = None;
        self.log_lines = 0;
    }

    fn granted(&self, granted: bool, what: &str, key: &str) -> Result<(), HostError> {
        if granted {
            return Ok(());
        }
        Err(HostError::NotGranted(format!("filter `{}` is not granted {what}: add `allow = {{ {key} }}` to it in the policy", self.shared.name())))
    }

    fn secret(&self, name: &str) -> Result<&[u8], HostError> {
        let secrets = &self.shared.allow().secrets;
        let now = self.shared.clock.now().wall_ms;
        let counts = |secret: &Secret| secret.not_after().is_none_or(|end| now <= end);
        let found = secrets.iter().find(|(known, secret)| known == name && counts(secret)).map(|(_, secret)| secret.expose());
        found.ok_or_else(|| {
            let name = clean(name, 64);
            HostError::NotGranted(format!("filter `{}` is not granted the secret `{name}`: name it in `allow.secrets` in the policy", self.shared.name()))
        })
    }
}

/// Ties the interfaces to [`Call`].
pub(super) struct Host;

impl HasData for Host {
    type Data<'a> = &'a mut Call;
}

/// All memories of the instance count together; a growth past a limit ends the call instead of being reported to the guest.
impl ResourceLimiter for Call {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        if total as u64 > self.shared.memory() {
            self.hit = Some(Limit::Memory(self.shared.memory()));
            return Err(format_err!("out of memory"));
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS {
            return Err(format_err!("a table of more than {TABLE_ELEMENTS} entries"));
        }
        Ok(true)
    }
}

impl types::Host for Call {}

impl log::Host for Call {
    fn log(&mut self, level: log::Level, message: String) {
        self.log_lines += 1;
        if self.log_lines > LOG_LINES {
            if self.log_lines == LOG_LINES + 1 {
                tracing::warn!(filter = self.shared.name(), route = %self.route, event = self.event, "further log lines of this call are dropped");
            }
            return;
        }
        let (filter, route, event, message) = (self.shared.name(), &self.route, &self.event, clean(&message, LOG_BYTES));
        match level {
            log::Level::Trace => tracing::trace!(filter, %route, event, "{message}"),
            log::Level::Debug => tracing::debug!(filter, %route, event, "{message}"),
            log::Level::Info => tracing::info!(filter, %route, event, "{message}"),
            log::Level::Warn => tracing::warn!(filter, %route, event, "{message}"),
            log::Level::Error => tracing::error!(filter, %route, event, "{message}"),
        }
    }
}

impl config::Host for Call {
    fn get(&mut self) -> String {
        self.shared.config().to_owned()
    }
}

impl metrics::Host for Call {
    fn count(&mut self, name: String, by: u64) {
        if !self.shared.metrics.guest_count(&name, by) {
            self.shared.metrics.error("metric");
        }
    }

    fn observe(&mut self, name: String, value: f64) {
        if !self.shared.metrics.guest_observe(&name, value) {
            self.shared.metrics.error("metric");
        }
    }
}

impl clock::Host for Call {
    fn now_ms(&mut self) -> u64 {
        u64::try_from(self.shared.clock.now().wall_ms).unwrap_or(0)
    }
}

impl random::Host for Call {
    fn bytes(&mut self, count: u32) -> Result<Vec<u8>, HostError> {
        self.granted(self.shared.allow().random, "random bytes", "random = true")?;
        if count > RANDOM_BYTES {
            return Err(HostError::Invalid(format!("{count} random bytes at once: at most {RANDOM_BYTES}")));
        }
        let mut bytes = vec![0; count as usize];
        rand::rng().fill(&mut bytes[..]);
        Ok(bytes)
    }
}

impl kv::Host for Call {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, HostError> {
        match self.kv(key, Operation::Get).await? {
            Reply::Value(value) => Ok(value),
            Reply::Done(_) | Reply::Sum(_) => Err(mismatch()),
        }
    }

    async fn set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), HostError> {
        self.kv(key, Operation::Set { value: bounded(value)?, ttl: ttl(ttl_ms) }).await.map(drop)
    }

    async fn delete(&mut self, key: String) -> Result<bool, HostError> {
        self.kv(key, Operation::Delete).await.and_then(done)
    }

    async fn increment(&mut self, key: String, by: i64, ttl_ms: Option<u64>) -> Result<i64, HostError> {
        match self.kv(key, Operation::Increment { by, ttl: ttl(ttl_ms) }).await? {
            Reply::Sum(sum) => Ok(sum),
            Reply::Done(_) | Reply::Value(_) => Err(mismatch()),
        }
    }

    async fn compare_and_set(&mut self, key: String, expected: Option<Vec<u8>>, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<bool, HostError> {
        self.kv(key, Operation::Swap { expected, value: bounded(value)?, ttl: ttl(ttl_ms) }).await.and_then(done)
    }
}

impl Call {
    async fn kv(&mut self, key: String, operation: Operation) -> Result<Reply, HostError> {
        self.granted(self.shared.allow().kv, "the key-value store", "kv = true")?;
        if key.is_empty() || key.len() > KEY_BYTES {
            return Err(HostError::Invalid(format!("a key of {} bytes: 1 to {KEY_BYTES} are allowed", key.len())));
        }
        let shared = self.shared.clone();
        let now = shared.clock.now();
        shared.engine.0.kv.run(shared.name(), key, operation, now).await.map_err(|error| match error {
            KvError::NotANumber => HostError::Invalid("the value is not a whole number, or the sum does not fit in 64 bits".into()),
            KvError::Full => HostError::Full(format!("the namespace holds at most {NAMESPACE_BYTES} bytes: use `ttl-ms`, or delete something")),
            KvError::Unavailable(why) => HostError::Unavailable(why),
        })
    }
}

fn bounded(value: Vec<u8>) -> Result<Vec<u8>, HostError> {
    if value.len() > VALUE_BYTES {
        return Err(HostError::Invalid(format!("a value of {} bytes: at most {VALUE_BYTES}", value.len())));
    }
    Ok(value)
}

fn ttl(ms: Option<u64>) -> Option<Duration> {
    ms.map(|ms| Duration::from_millis(ms).min(TTL_MAX))
}

fn done(reply: Reply) -> Result<bool, HostError> {
    match reply {
        Reply::Done(done) => Ok(done),
        Reply::Value(_) | Reply::Sum(_) => Err(mismatch()),
    }
}

fn mismatch() -> HostError {
    HostError::Unavailable("the store answered another question".into())
}

impl crypto::Host for Call {
    fn digest(&mut self, algorithm: crypto::Algorithm, data: Vec<u8>) -> Result<Vec<u8>, HostError> {
        Ok(match algorithm {
            crypto::Algorithm::Sha1 => sha1::Sha1::digest(data).to_vec(),
            crypto::Algorithm::Sha256 => sha2::Sha256::digest(data).to_vec(),
            crypto::Algorithm::Sha384 => sha2::Sha384::digest(data).to_vec(),
            crypto::Algorithm::Sha512 => sha2::Sha512::digest(data).to_vec(),
        })
    }

    fn hmac(&mut self, algorithm: crypto::Algorithm, secret: String, data: Vec<u8>) -> Result<Vec<u8>, HostError> {
        let key = self.secret(&secret)?;
        Ok(match algorithm {
            crypto::Algorithm::Sha1 => mac::<Hmac<sha1::Sha1>>(key, &data)?.finalize().into_bytes().to_vec(),
            crypto::Algorithm::Sha256 => mac::<Hmac<sha2::Sha256>>(key, &data)?.finalize().into_bytes().to_vec(),
            crypto::Algorithm::Sha384 => mac::<Hmac<sha2::Sha384>>(key, &data)?.finalize().into_bytes().to_vec(),
            crypto::Algorithm::Sha512 => mac::<Hmac<sha2::Sha512>>(key, &data)?.finalize().into_bytes().to_vec(),
        })
    }

    fn verify(&mut self, algorithm: crypto::Algorithm, secret: String, data: Vec<u8>, given: Vec<u8>) -> Result<bool, HostError> {
        let key = self.secret(&secret)?;
        Ok(match algorithm {
            crypto::Algorithm::Sha1 => mac::<Hmac<sha1::Sha1>>(key, &data)?.verify_slice(&given).is_ok(),
            crypto::Algorithm::Sha256 => mac::<Hmac<sha2::Sha256>>(key, &data)?.verify_slice(&given).is_ok(),
            crypto::Algorithm::Sha384 => mac::<Hmac<sha2::Sha384>>(key, &data)?.verify_slice(&given).is_ok(),
            crypto::Algorithm::Sha512 => mac::<Hmac<sha2::Sha512>>(key, &data)?.verify_slice(&given).is_ok(),
        })
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], data: &[u8]) -> Result<M, HostError> {
    let mut mac = <M as KeyInit>::new_from_slice(key).map_err(|_| HostError::Invalid("the secret does not fit the algorithm".into()))?;
    mac.update(data);
    Ok(mac)
}

impl http::Host for Call {
    fn send(&mut self, _request: http::Request) -> Result<types::Response, HostError> {
        Err(HostError::NotGranted("requests of filters are not built yet".into()))
    }
}

/// A guest's text, fit for a line: cut at a character, control characters escaped.
pub(super) fn clean(text: &str, max: usize) -> String {
    let cut = &text[..text.floor_char_boundary(max)];
    if !cut.contains(char::is_control) && cut.len() == text.len() {
        return text.to_owned();
    }
    let mut line = String::with_capacity(cut.len() + 1);
    for character in cut.chars() {
        match character {
            '\t' => line.push(character),
            control if control.is_control() => line.extend(control.escape_default()),
            other => line.push(other),
        }
    }
    if cut.len() < text.len() {
        line.push('…');
    }
    line
}
