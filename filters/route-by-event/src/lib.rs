//! A hooklatch filter that picks destinations by event type, from a table in its config. It never sees the body.

// A file and no dependency: where that lies would decide the component's bytes.
#[path = "../../arena/src/lib.rs"]
mod arena;

mod table;

use std::sync::Once;

use table::{Config, Way};

wit_bindgen::generate!({ path: "../../wit", world: "filter" });

use exports::hooklatch::filter::handler::{Description, Event, Guest, Outcome};
use hooklatch::filter::types::{BodyNeed, Changes};
use hooklatch::filter::{config, log};

/// Room for the events of every day, without growing the instance's memory.
#[cfg(target_family = "wasm")]
#[global_allocator]
static ALLOCATOR: arena::Arena<{ 64 << 10 }> = arena::Arena::new();

struct RouteByEvent;
export!(RouteByEvent);

impl Guest for RouteByEvent {
    fn describe() -> Description {
        Description {
            name: "route-by-event".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Picks destinations by event type.".into(),
            body: BodyNeed::None,
            stateless: true,
            config_schema: Some(include_str!("config.schema.json").into()),
        }
    }

    fn handle(event: Event) -> Result<Outcome, String> {
        log_panics();
        let destinations = match Config::read(&config::get())?.way(event.event_type.as_deref()) {
            Way::To(names) => Some(names),
            Way::AsThePolicySays => None,
            Way::Nowhere => {
                let kind = event.event_type.as_deref().unwrap_or("none");
                return Ok(Outcome::Drop(Some(format!("the table sends events of type {kind} nowhere"))));
            }
        };
        Ok(Outcome::Pass(Changes {
            body: None,
            set_headers: Vec::new(),
            remove_headers: Vec::new(),
            destinations,
            order_key: None,
            event_type: None,
            annotations: Vec::new(),
        }))
    }
}

/// Without this a panic is a bare `unreachable` to whoever looks for the mistake.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|info| log::log(log::Level::Error, &info.to_string()))));
}
