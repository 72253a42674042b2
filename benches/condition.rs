//! What a condition costs, without the network: `cargo bench --bench condition`. Every run is one event with a fresh scope.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hooklatch::bench::ConditionCall;

/// A push of about `size` bytes.
fn push(size: usize) -> Vec<u8> {
    let mut text = String::from("{\"ref\":\"refs/heads/main\",\"repository\":{\"id\":7},\"commits\":[");
    let mut number = 0;
    while text.len() + 80 < size {
        if number > 0 {
            text.push(',');
        }
        text.push_str(&format!("{{\"id\":\"{number:040x}\",\"message\":\"fix\"}}"));
        number += 1;
    }
    text.push_str("]}");
    text.into_bytes()
}

fn condition(c: &mut Criterion) {
    let mut group = c.benchmark_group("condition");
    for (name, condition) in [
        ("event only", "event.type == 'push' && event.verified == 'content'"),
        ("header and address", "headers['content-type'] == 'application/json' && client.ip.startsWith('192.0.2.')"),
        ("body field", "event.type == 'push' && body.ref == 'refs/heads/main'"),
        ("every commit", "body.commits.all(c, c.message == 'fix')"),
        ("pattern", "body.ref.matches('^refs/heads/(main|release/.*)$')"),
    ] {
        for size in [1 << 10, 80 << 10] {
            let call = ConditionCall::new(condition, &push(size));
            assert!(call.run(), "{condition}");
            group.bench_function(BenchmarkId::new(name, format!("{size} B")), |b| b.iter(|| call.run()));
        }
    }
    group.finish();
}

criterion_group!(benches, condition);
criterion_main!(benches);
