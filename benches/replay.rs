//! What remembering one event costs: the claim and the record of a fresh event, the answer for a copy.
//!
//!     cargo bench --bench replay
//!
//! Targets: 3 µs on the request path of a fresh event; beside it, for the writer's batches at 30,000 events/s, 2 µs of the process's CPU.
//! The store lies in the system's folder for temporary files (`TMPDIR`): its disk decides what `sync` takes.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hooklatch::bench::Replay;

fn replay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(1));
    let folder = tempfile::tempdir().expect("a folder");
    {
        let store = Replay::new(folder.path(), Duration::from_millis(10));
        let mut key = 0;
        group.bench_function("fresh", |bencher| {
            bencher.iter(|| {
                key += 1;
                assert!(runtime.block_on(store.run(black_box(key))));
            });
        });
        group.bench_function("copy", |bencher| bencher.iter(|| assert!(!runtime.block_on(store.run(black_box(key))))));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let store = Replay::new(folder.path(), Duration::ZERO);
    let mut key = 0;
    group.bench_function("fresh, synced", |bencher| {
        bencher.iter(|| {
            key += 1;
            assert!(runtime.block_on(store.run(black_box(key))));
        });
    });
    group.finish();
}

/// The whole process's CPU at a steady rate, in ticks of 10 ms: the writer's share is in it, and the pacing's own is taken off.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn paced(_: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    for rate in [1_000, 10_000, 30_000_u64] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Replay::new(folder.path(), Duration::from_millis(10));
        let mut key = 0;
        let mut measure = |work: bool| {
            let (begin, cpu) = (Instant::now(), cpu());
            let mut done = 0;
            while begin.elapsed() < Duration::from_secs(4) {
                std::thread::sleep(Duration::from_millis(1));
                let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
                while done < due {
                    done += 1;
                    key += 1;
                    if work {
                        runtime.block_on(store.run(key));
                    }
                }
            }
            ((cpu_since(cpu)).as_secs_f64() * 1e6 / done as f64, done)
        };
        let (idle, _) = measure(false);
        let before = store.commits();
        let (busy, done) = measure(true);
        println!(
            "replay/paced: {rate} events/s: {:.2} µs of CPU an event, {:.0} events a sync",
            busy - idle,
            done as f64 / (store.commits() - before).max(1) as f64
        );
    }
}

/// User and system time of this process, where the system shows it.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn cpu_since(before: Duration) -> Duration {
    cpu().saturating_sub(before)
}

criterion_group!(benches, replay, paced);
criterion_main!(benches);
