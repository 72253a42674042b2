//! A hooklatch filter that removes, masks or hashes parts of a JSON body and leaves every other byte as it was.
//!
//! `rules` reads the policy's `config`, `edit` walks the body. Both are plain Rust: `cargo test` runs them natively.

// A file and no dependency: where that lies would decide the component's bytes.
#[path = "../../arena/src/lib.rs"]
mod arena;

mod edit;
mod rules;

use std::sync::Once;

use rules::{NotJson, Rules};

wit_bindgen::generate!({ path: "../../wit", world: "filter" });

use exports::hooklatch::filter::handler::{Description, Event, Guest, Outcome};
use hooklatch::filter::types::{BodyNeed, Changes, HostError};
use hooklatch::filter::{config, crypto, log};

/// Room for the events of every day, without growing the instance's memory.
#[cfg(target_family = "wasm")]
#[global_allocator]
static ALLOCATOR: arena::Arena<{ 64 << 10 }> = arena::Arena::new();

struct Redact;
export!(Redact);

impl Guest for Redact {
    fn describe() -> Description {
        Description {
            name: "redact".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Removes, masks or hashes parts of a JSON body; every other byte stays as it was.".into(),
            body: BodyNeed::Full,
            stateless: true,
            config_schema: Some(include_str!("config.schema.json").into()),
        }
    }

    fn handle(event: Event) -> Result<Outcome, String> {
        log_panics();
        let rules = Rules::read(&config::get())?;
        let body = match edit::redact(&event.body, &rules, &hash) {
            Ok(body) => body,
            Err(edit::Error::NotJson { .. }) if rules.not_json == NotJson::Pass => None,
            Err(error) => return Err(error.to_string()),
        };
        Ok(Outcome::Pass(Changes {
            body,
            set_headers: Vec::new(),
            remove_headers: Vec::new(),
            destinations: None,
            order_key: None,
            event_type: None,
            annotations: Vec::new(),
        }))
    }
}

/// SHA-256 by the host, under the secret of that name if there is one: the key never comes in here.
fn hash(key: Option<&str>, data: &[u8]) -> Result<Vec<u8>, String> {
    let digest = match key {
        Some(name) => crypto::hmac(crypto::Algorithm::Sha256, name, data),
        None => crypto::digest(crypto::Algorithm::Sha256, data),
    };
    digest.map_err(|error| match error {
        HostError::NotGranted(text) | HostError::Invalid(text) | HostError::Full(text) | HostError::Unavailable(text) => text,
    })
}

/// Without this a panic is a bare `unreachable` to whoever looks for the mistake.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|info| log::log(log::Level::Error, &info.to_string()))));
}
