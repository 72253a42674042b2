//! What one event costs in the filters that are shipped: a fresh instance, the call, what comes back.
//!
//!     cargo bench --bench filter
//!
//! Targets at 1 KB: `redact` at most 60 µs, `route-by-event` at most 20 µs.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hooklatch::bench::FilterCall;

const REDACT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/redact/redact.wasm");
const ROUTE_BY_EVENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/route-by-event/route-by-event.wasm");

/// A push of about `size` bytes with an address in every commit.
fn push(size: usize) -> Vec<u8> {
    let mut body = br#"{"ref":"refs/heads/main","repository":{"id":1,"name":"demo","full_name":"octo/demo"},"pusher":{"name":"octo","email":"octo@example.com"},"commits":["#.to_vec();
    let mut n = 0;
    while body.len() + 200 < size || n == 0 {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(
            format!(r#"{{"id":"{n:040x}","message":"a change that has a message of some length","author":{{"name":"Octo Cat","email":"octo@example.com"}},"added":["src/{n}.rs"],"distinct":true}}"#).as_bytes(),
        );
        n += 1;
    }
    body.extend_from_slice(b"]}");
    body
}

fn filters(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let masking = r#"component = "filter.wasm"
config = { fields = ["/pusher/email", "/commits/*/author/email"] }"#;
    let hashing = r#"component = "filter.wasm"
config = { fields = ["/pusher/email"], action = "hash", key = "env:KEY" }
allow = { secrets = ["env:KEY"] }"#;
    let routing = r#"component = "filter.wasm"
config = { table = { push = "ci", "pull_request*" = ["ci", "review"], ping = [] }, default = "bus" }"#;
    let mut group = criterion.benchmark_group("filter");
    for (name, component, policy, size) in [
        ("redact/mask/1KB", REDACT, masking.to_owned(), 1 << 10),
        ("redact/mask/1KB/reuse", REDACT, format!("{masking}\nreuse = 1000000"), 1 << 10),
        ("redact/hash/1KB", REDACT, hashing.to_owned(), 1 << 10),
        ("redact/mask/10KB", REDACT, masking.to_owned(), 10 << 10),
        ("redact/mask/100KB", REDACT, masking.to_owned(), 100 << 10),
        ("route-by-event/1KB", ROUTE_BY_EVENT, routing.to_owned(), 1 << 10),
        ("route-by-event/100KB", ROUTE_BY_EVENT, routing.to_owned(), 100 << 10),
        ("route-by-event/1KB/reuse", ROUTE_BY_EVENT, format!("{routing}\nreuse = 1000000"), 1 << 10),
    ] {
        let body = push(size);
        let component = std::fs::read(component).expect("the component is committed");
        let call = FilterCall::new(&component, &policy, &body).expect("the filter loads");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| runtime.block_on(call.run()).expect("the filter passes")));
        if name == "redact/mask/1KB" {
            group.bench_function("copy of the event/1KB", |bencher| bencher.iter(|| call.copy()));
        }
    }
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
