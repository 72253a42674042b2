//! One call of a filter, for `benches/filter.rs`.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    clock::Clock,
    event::Event,
    observe::metrics::{Metrics, RouteMetrics},
    problem::Source,
    section::{Inputs, Reader},
};

/// One filter, and an event as GitHub sends it, to be sent through it again and again.
pub struct FilterCall {
    chain: Vec<Arc<super::Filter>>,
    event: Event,
    metrics: RouteMetrics,
}

impl FilterCall {
    /// `policy` is the text of a `[filters.NAME]` table whose component is named `filter.wasm`.
    pub fn new(component: &[u8], policy: &str, body: &[u8]) -> Result<Self, String> {
        let inputs = Inputs::memory(&[("KEY", "a key for the bench")], &[("filter.wasm", component)]);
        let reader = Reader::new(Source { name: "bench.toml".into(), text: policy.into() }, inputs);
        let table = reader.parse();
        let settings = super::read("bench", reader.root(&table)).ok_or_else(|| format!("{:?}", reader.problems()))?;
        let metrics = Metrics::new("bench");
        let engine = super::Engine::new(None);
        let filter = super::Filter::load(&engine, &settings, Clock::system(), &metrics).map_err(|fault| fault.to_string())?;
        Ok(Self { chain: vec![filter], event: event(body), metrics: metrics.route::<&str>("bench", "github", &[]) })
    }

    /// One event through the filter; the length of the body that comes out.
    pub async fn run(&self) -> Result<usize, String> {
        let applied = super::apply(&self.chain, self.event.clone(), &|_| true, &self.metrics).await.map_err(|reject| reject.to_string())?;
        Ok(applied.event.body.len())
    }

    /// What a run costs before the filter is called: the copy of the event.
    pub fn copy(&self) -> usize {
        self.event.clone().headers.len()
    }
}

fn event(body: &[u8]) -> Event {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "hooks.example.com"),
        ("user-agent", "GitHub-Hookshot/044aadd"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("content-length", "1024"),
        ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("x-github-event", "push"),
        ("x-github-hook-id", "292430182"),
        ("x-github-hook-installation-target-id", "79929171"),
        ("x-github-hook-installation-target-type", "repository"),
        ("x-hub-signature", "sha1=7d38cdd689735b008b3c702edd92eea23791c5f6"),
        ("x-hub-signature-256", "sha256=d57c68ca6f92289e6987922ff26938930f6e66a2d161ef06abdf1859230aa23c"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Event {
        secret_label: Some("#1".into()),
        delivery_id: Some("72d3162e-cc78-11e3-81ab-4c9367dc0958".into()),
        host: Some("hooks.example.com".into()),
        headers,
        ..Event::sample(body.to_vec())
    }
}
