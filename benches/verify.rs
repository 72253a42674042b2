//! What verifying costs, without the network: `cargo bench --bench verify`. Scenarios are named after preset, body and secrets.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hooklatch::bench::{Verify, json_check, json_find};

/// A JSON body of about `size` bytes.
fn body(size: usize) -> Vec<u8> {
    let mut text = String::from("{\"id\":\"evt_1\",\"type\":\"push\",\"items\":[");
    let mut number = 0;
    while text.len() + 80 < size {
        if number > 0 {
            text.push(',');
        }
        text.push_str(&format!("{{\"sha\":\"{number:040x}\",\"message\":\"caf\u{e9} \\\"q\\\"\"}}"));
        number += 1;
    }
    text.push_str("]}");
    text.into_bytes()
}

fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    for (provider, size, secrets) in [
        ("github", 1 << 10, 1),
        ("github", 1 << 10, 3),
        ("github", 100 << 10, 1),
        ("github", 1 << 20, 1),
        // A scheme each: HMAC with a time, Standard Webhooks, HMAC over the URL, plain digest, canonical request, token, basic …
        ("stripe", 1 << 10, 1),
        ("stripe", 100 << 10, 1),
        ("standardwebhooks", 1 << 10, 1),
        ("standardwebhooks", 100 << 10, 1),
        ("square", 1 << 10, 1),
        ("square", 100 << 10, 1),
        ("cloudinary", 1 << 10, 1),
        ("cloudinary", 100 << 10, 1),
        ("contentful", 1 << 10, 1),
        ("contentful", 100 << 10, 1),
        ("gitlab", 1 << 10, 1),
        ("gitlab", 100 << 10, 1),
        // … and JSON Web Token, Ed25519, ECDSA, RSA.
        ("netlify", 1 << 10, 1),
        ("netlify", 100 << 10, 1),
        ("discord", 1 << 10, 1),
        ("discord", 100 << 10, 1),
        ("sendgrid", 1 << 10, 1),
        ("sendgrid", 100 << 10, 1),
        ("wise", 1 << 10, 1),
        ("wise", 100 << 10, 1),
    ] {
        let scenario = Verify::new(provider, &body(size), secrets);
        assert!(scenario.run());
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new(provider, format!("{size} B, {secrets} secrets")), |b| b.iter(|| scenario.run()));
    }
    group.finish();
}

fn json(c: &mut Criterion) {
    let mut group = c.benchmark_group("json");
    for size in [1 << 10, 1 << 16] {
        let text = body(size);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("check", size), |b| b.iter(|| json_check(&text, false)));
        group.bench_function(BenchmarkId::new("check, unique keys", size), |b| b.iter(|| json_check(&text, true)));
        group.bench_function(BenchmarkId::new("find two", size), |b| b.iter(|| json_find(&text, ["/id", "/type"])));
    }
    group.finish();
}

criterion_group!(benches, verify, json);
criterion_main!(benches);
