//! The room as a whole, with the two filters that are shipped and one that misbehaves (`tests/filters/hostile`).

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderMap, HeaderValue};
use uuid::Uuid;

use super::{
    Applied, Engine, Fault, Filter, Settings, Verdict,
    fault::{Cause, Limit},
    kv::{Kv, KvError, Operation, Reply},
    read,
};
use crate::{
    clock::{Clock, Now},
    event::{Chunks, Event, EventId},
    observe::metrics::{Metrics, RouteMetrics},
    problem::Source,
    reject::{Extra, Reason, Reject},
    section::{Inputs, Reader},
};

const HOSTILE: &[u8] = include_bytes!("../../tests/filters/hostile.wasm");
const REDACT: &[u8] = include_bytes!("../../filters/redact/redact.wasm");
const ROUTE_BY_EVENT: &[u8] = include_bytes!("../../filters/route-by-event/route-by-event.wasm");

/// One engine for all tests, as in the program, with a cache that outlives them.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(Some(std::env::temp_dir().join("hooklatch-tests-cwasm"))));

static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Metrics::new("test"));

fn route() -> RouteMetrics {
    METRICS.route::<&str>("r", "github", &[])
}

fn settings_of(name: &str, policy: &str, files: &[(&str, &[u8])]) -> Settings {
    let inputs = Inputs::memory(&[("KEY", "geheim")], files);
    let reader = Reader::new(Source { name: "test.toml".into(), text: policy.into() }, inputs);
    let table = reader.parse();
    let settings = read(name, reader.root(&table));
    assert!(!reader.failed(), "{:?}", reader.problems());
    settings.expect("a policy without errors is read")
}

fn settings(name: &str, policy: &str) -> Settings {
    settings_of(name, policy, &[("hostile.wasm", HOSTILE), ("redact.wasm", REDACT), ("route-by-event.wasm", ROUTE_BY_EVENT)])
}

fn load(engine: &Engine, settings: &Settings) -> Result<Arc<Filter>, Fault> {
    Filter::load(engine, settings, Clock::hand(1_700_000_000_000), &METRICS)
}

/// A filter named after its policy, so that no two tests share a kv namespace.
fn filter(policy: &str) -> Arc<Filter> {
    load(&ENGINE, &settings(policy, policy)).expect("the filter loads")
}

/// The misbehaving filter, whose behaviour each body names.
fn hostile(more: &str) -> Arc<Filter> {
    filter(&format!("component = \"hostile.wasm\"\nconfig = {{ do = \"by-body\" }}\n{more}"))
}

fn event(body: &str) -> Event {
    let mut headers = HeaderMap::new();
    headers.append("x-one", HeaderValue::from_static("1"));
    headers.append("x-two", HeaderValue::from_static("a"));
    headers.append("x-two", HeaderValue::from_static("b"));
    headers.append("authorization", HeaderValue::from_static("Bearer geheim"));
    headers.append("x-latin", HeaderValue::from_bytes(b"\xe4").expect("a legal value"));
    let mut token = HeaderValue::from_static("geheim");
    token.set_sensitive(true);
    headers.append("x-token", token);
    Event {
        id: EventId(Uuid::from_u128(7)),
        route: "r".into(),
        secret_label: Some("#1".into()),
        received_ms: 1_700_000_000_000,
        path: "/p".into(),
        headers,
        ..Event::sample(body.to_owned())
    }
}

/// A route that delivers to everybody but `nowhere`.
async fn apply(chain: &[Arc<Filter>], event: Event, metrics: &RouteMetrics) -> Result<Applied, Reject> {
    super::apply(chain, event, &|name| name != "nowhere", metrics).await
}

async fn run(filter: &Arc<Filter>, body: &str) -> Result<Applied, Reject> {
    apply(std::slice::from_ref(filter), event(body), &route()).await
}

async fn passed(filter: &Arc<Filter>, body: &str) -> Event {
    let applied = run(filter, body).await.unwrap_or_else(|why| panic!("{body}: {why}"));
    assert_eq!(applied.verdict, Verdict::Pass, "{body}");
    applied.event
}

/// The detail of the refusal that a failing filter ends in.
async fn failed(filter: &Arc<Filter>, body: &str) -> String {
    match run(filter, body).await {
        Err(reject) => {
            assert_eq!(reject.reason, Reason::FilterFailed, "{body}");
            reject.detail.into_owned()
        }
        Ok(applied) => panic!("{body}: {:?}", applied.verdict),
    }
}

/// The last note that the filter made of that name.
fn note(event: &Event, name: &str) -> String {
    let found = event.annotations.iter().rev().find(|(known, _)| known.ends_with(name));
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

async fn answer(filter: &Arc<Filter>, body: &str) -> String {
    note(&passed(filter, body).await, ".answer")
}

#[tokio::test]
async fn a_filter_sees_the_event_but_no_credentials() {
    let event = passed(&hostile(""), "echo").await;
    let seen: Vec<(&str, &str)> =
        event.annotations.iter().map(|(name, value)| (name.rsplit_once('.').map_or(name.as_str(), |(_, name)| name), value.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("id", "00000000-0000-0000-0000-000000000007"),
            ("type", "push"),
            ("ip", "192.0.2.1"),
            ("path", "/p"),
            ("header x-one", "1"),
            ("header x-two", "a"),
            ("header x-two", "b"),
            ("header authorization", "[masked]"),
            ("header x-token", "[masked]"),
        ]
    );
    assert_eq!(event.headers["authorization"], "Bearer geheim", "what a filter did not see goes on unchanged");
}

#[tokio::test]
async fn changes_are_made() {
    let filter = hostile("");
    assert_eq!(passed(&filter, "pass").await.body.to_bytes(), "pass");
    assert_eq!(passed(&filter, "append:!").await.body.to_bytes(), "append:!!");
    assert!(passed(&filter, "empty-body").await.body.is_empty());
    assert_eq!(passed(&filter, "set-header:X-Two=c").await.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["c"]);
    assert!(!passed(&filter, "remove-header:x-two").await.headers.contains_key("x-two"));
    assert_eq!(passed(&filter, "retype:pull").await.event_type.as_deref(), Some("pull"));
    assert_eq!(passed(&filter, "destinations:a,b").await.chosen, Some(vec!["a".into(), "b".into()]));
    assert_eq!(passed(&filter, "destinations:").await.chosen, Some(vec![]));
    assert_eq!(passed(&filter, "pass").await.chosen, None);
}

#[tokio::test]
async fn a_body_in_pieces_is_joined_only_for_a_filter_that_wants_it() {
    let mut pieces = Chunks::default();
    pieces.push("body-".into());
    pieces.push("length".into());
    for (need, length, count) in [("full", "11", 1), ("none", "0", 2)] {
        let filter = filter(&format!("component = \"hostile.wasm\"\nconfig = {{ do = \"body-length\", body = \"{need}\" }}"));
        let applied = apply(&[filter], Event { body: pieces.clone(), ..event("") }, &route()).await.expect("it passes");
        assert_eq!((note(&applied.event, ".length").as_str(), applied.event.body.pieces().count()), (length, count), "{need}");
    }
}

#[tokio::test]
async fn filters_run_in_order_and_the_first_end_counts() {
    let say = |what: &str| filter(&format!("component = \"hostile.wasm\"\nconfig = {{ do = \"{what}\" }}"));
    let chain = [say("append:1"), say("append:2"), say("body-length")];
    let applied = apply(&chain, event("x"), &route()).await.expect("it passes");
    assert_eq!((applied.event.body.to_bytes(), note(&applied.event, ".length")), (Bytes::from("x12"), "3".into()));

    let applied = apply(&[say("append:1"), say("drop"), say("trap")], event("x"), &route()).await.expect("a drop is no refusal");
    assert!(matches!(applied.verdict, Verdict::Drop { reason: Some(reason), .. } if reason == "not wanted"));

    let applied = apply(&[say("respond:201"), say("trap")], event("x"), &route()).await.expect("an answer is no refusal");
    let Verdict::Respond { answer, .. } = applied.verdict else { panic!("{:?}", applied.verdict) };
    assert_eq!((answer.status.as_u16(), answer.body, answer.headers.len()), (201, Bytes::from("hello"), 1));

    let reject = apply(&[say("reject:422"), say("trap")], event("x"), &route()).await.expect_err("it is refused");
    assert_eq!((reject.reason, reject.extra), (Reason::FilterRejected, Extra::Filter { status: 422, reason: "no".into() }));

    let applied = apply(&[], event("x"), &route()).await.expect("no filter, no end");
    assert_eq!(applied.verdict, Verdict::Pass);
}

#[tokio::test]
async fn outcomes_that_are_not_allowed_are_failures_of_the_filter() {
    let filter = hostile("");
    for (body, why) in [
        ("reject:200", "a rejection has a status of 400 to 499 or 503, not 200"),
        ("reject:500", "not 500"),
        ("respond:301", "an answer has a status of 200 to 299 or 400 to 599, not 301"),
        ("respond:99", "not 99"),
        ("respond-header:set-cookie", "`set-cookie` is not for filters to touch"),
        ("respond-header:Hooklatch-Duplicate", "`Hooklatch-Duplicate` is not for filters to touch"),
        ("set-header:hooklatch_verified=content", "`hooklatch_verified` is not for filters to touch"),
        ("set-header:content-length=1", "`content-length` is not for filters to touch"),
        ("set-header:transfer-encoding=chunked", "not for filters"),
        ("set-header:host=evil", "not for filters"),
        ("set-header:a b=1", "`a b` is no header name"),
        ("set-header:=1", "`` is no header name"),
        ("set-header:x=\r\nset-cookie: 1", "the value of `x` is none that a header field may have"),
        ("remove-header:connection", "`connection` is not for filters to touch"),
        ("headers:40000", "40000 set-headers: at most 128"),
        ("removals:40000", "40000 remove-headers: at most 128"),
        ("annotations:40000", "40000 annotations: at most 16"),
        ("destination-list:40000", "40000 destinations: at most 64"),
        ("destinations:bus,nowhere", "the route delivers to no `nowhere`: add it to the route's `deliver`, or change the filter"),
        ("long-string:1000", "1000 bytes of event-type or order-key: at most 256"),
        ("output:17000000", "17000000 bytes of body: at most 16777216"),
        ("emit:2", "`emit`, which needs the durable queue, is not built yet"),
    ] {
        let detail = failed(&filter, body).await;
        assert!(detail.contains(why), "{body}: {detail}");
        assert_eq!(passed(&filter, "pass").await.body.to_bytes(), "pass", "the call after {body}");
    }
    let applied = run(&filter, "emit:0").await.expect("no emission is a drop");
    assert!(matches!(applied.verdict, Verdict::Drop { .. }));
}

#[tokio::test]
async fn every_misbehaviour_ends_its_own_call_and_no_other() {
    let brief = hostile("cpu = \"30ms\"\ntimeout = \"60s\"");
    assert!(failed(&brief, "loop").await.contains("it computed longer than `cpu`, 30ms: raise it, or mend a loop"));
    passed(&brief, "pass").await;
    let filter = hostile("cpu = \"10s\"\ntimeout = \"60s\"\nmemory = \"64MiB\"");
    for (body, why) in [
        ("hoard", "it wanted more than `memory`, 64.0 MiB"),
        ("output:100000000", "it wanted more than `memory`, 64.0 MiB"),
        ("output:40000000", "it handed more than 16.0 MiB to the gate in one call"),
        ("panic", "it trapped: wasm trap: wasm `unreachable` instruction executed, in "),
        ("trap", "hostile::unreachable"),
        ("recurse", "it trapped: wasm trap: call stack exhausted, in hostile::recurse < hostile::recurse < "),
        ("err", "it failed: the filter says so"),
        ("unknown", "it failed: no such behaviour: unknown"),
    ] {
        let detail = failed(&filter, body).await;
        assert!(detail.contains(why), "{body}: {detail}");
        assert!(detail.len() < 2500 && !detail.contains("0x") && !detail.contains(".rs"), "{body}: {detail}");
        assert_eq!(passed(&filter, "pass").await.body.to_bytes(), "pass", "the call after {body}");
    }
    assert!(failed(&filter, "long-err").await.len() < 1000);
}

#[tokio::test(flavor = "current_thread")]
async fn healthy_calls_are_made_beside_a_looping_one() {
    let looping = hostile("cpu = \"10s\"\ntimeout = \"60s\"");
    let healthy = hostile("");
    let task = tokio::spawn({
        let looping = looping.clone();
        async move { run(&looping, "loop").await.is_ok() }
    });
    tokio::task::yield_now().await;
    for _ in 0..20 {
        passed(&healthy, "pass").await;
    }
    assert!(!task.is_finished(), "ten seconds of computing are not over");
    // The sender goes away: the call is dropped in the middle, and its instance is never entered again.
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    passed(&looping, "pass").await;
}

/// A store that never answers.
struct Never;

impl Kv for Never {
    fn run<'a>(&'a self, _: &'a str, _: String, _: Operation, _: Now) -> BoxFuture<'a, Result<Reply, KvError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn waiting_for_the_host_counts_to_wall_time() {
    let engine = Engine::with_kv(None, Arc::new(Never));
    let policy = "component = \"hostile.wasm\"\nconfig = { do = \"by-body\" }\ntimeout = \"20ms\"\nallow = { kv = true }";
    let filter = load(&engine, &settings("f", policy)).expect("the filter loads");
    assert_eq!(failed(&filter, "kv-get:a").await, "filter `f`: it took longer than `timeout`, 20ms");
    passed(&filter, "pass").await;
}

#[tokio::test]
async fn more_calls_than_the_pool_has_room_for_wait_their_turn() {
    let filter = hostile("timeout = \"60s\"");
    let calls = join_all((0..400).map(|_| passed(&filter, "pass"))).await;
    assert_eq!(calls.len(), 400);
}

#[tokio::test]
async fn nothing_of_one_call_can_be_read_in_another() {
    let (one, other) = (hostile(""), hostile("cpu = \"10s\"\ntimeout = \"60s\""));
    for _ in 0..5 {
        join_all((0..10).map(|_| passed(&one, "remember"))).await;
        assert_eq!(note(&passed(&other, "look").await, ".found"), "0");
    }
    // The search finds what is there: an instance that serves several events keeps its memory.
    let kept = filter("component = \"hostile.wasm\"\nconfig = { do = \"by-body\", stateless = \"yes\" }\ncpu = \"10s\"\ntimeout = \"60s\"\nreuse = 3");
    passed(&kept, "remember").await;
    assert_ne!(note(&passed(&kept, "look").await, ".found"), "0");
    passed(&kept, "pass").await;
    assert_eq!(note(&passed(&kept, "look").await, ".found"), "0", "after three events the instance is gone");
}

#[tokio::test]
async fn an_instance_that_failed_serves_nobody_again() {
    let filter = filter("component = \"hostile.wasm\"\nconfig = { do = \"by-body\", stateless = \"yes\" }\ncpu = \"10s\"\ntimeout = \"60s\"\nreuse = 100");
    for how in ["trap", "err", "reject:200"] {
        passed(&filter, "remember").await;
        assert_ne!(note(&passed(&filter, "look").await, ".found"), "0", "before {how}");
        failed(&filter, how).await;
        assert_eq!(note(&passed(&filter, "look").await, ".found"), "0", "after {how}");
    }
}

#[tokio::test]
async fn nothing_is_granted_unless_named() {
    let poor = hostile("");
    for (body, why) in [
        ("kv-get:a", "is not granted the key-value store: add `allow = { kv = true }` to it in the policy"),
        ("kv-set:a", "is not granted the key-value store"),
        ("kv-delete:a", "is not granted the key-value store"),
        ("kv-add:a", "is not granted the key-value store"),
        ("kv-swap:a", "is not granted the key-value store"),
        ("random:8", "is not granted random bytes: add `allow = { random = true }` to it in the policy"),
        ("hmac:env:KEY", "is not granted the secret `env:KEY`: name it in `allow.secrets` in the policy"),
        ("verify:env:KEY", "is not granted the secret `env:KEY`"),
        ("http", "not granted: requests of filters are not built yet"),
    ] {
        // The filter's name is its whole policy here, so the text is looked at before the gate cuts the note.
        let filter = load(&ENGINE, &settings("f", "component = \"hostile.wasm\"\nconfig = { do = \"by-body\" }")).expect("it loads");
        assert!(answer(&filter, body).await.contains(why), "{body}: {}", answer(&filter, body).await);
    }
    assert_eq!(answer(&poor, "digest:abc").await, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(note(&passed(&poor, "clock").await, ".now"), "1700000000000");
    let mut not_granted = poor.about().not_granted.clone();
    not_granted.sort_unstable();
    assert_eq!(not_granted, ["http", "kv", "random"]);
}

#[tokio::test]
async fn what_is_granted_works() {
    let rich = hostile("allow = { kv = true, random = true, secrets = [\"env:KEY\"] }\ncpu = \"10s\"\ntimeout = \"60s\"");
    assert_eq!(answer(&rich, "kv-get:a").await, "None");
    assert_eq!(answer(&rich, "kv-set:a").await, "set");
    assert_eq!(answer(&rich, "kv-get:a").await, "Some([118, 97, 108, 117, 101])");
    assert_eq!(answer(&rich, "kv-delete:a").await, "true");
    assert_eq!((answer(&rich, "kv-add:n").await, answer(&rich, "kv-add:n").await), ("1".into(), "2".into()));
    assert_eq!((answer(&rich, "kv-swap:s").await, answer(&rich, "kv-swap:s").await), ("true".into(), "false".into()));
    assert_eq!(answer(&rich, "kv-get:").await, "invalid: a key of 0 bytes: 1 to 256 are allowed");
    assert!(answer(&rich, "kv-fill:60000").await.starts_with("full: the namespace holds at most 1048576 bytes"));
    assert!(answer(&rich, "kv-fill:70000").await.starts_with("invalid: a value of 70000 bytes"));
    assert_eq!(answer(&rich, "random:8").await, "8");
    assert!(answer(&rich, "random:5000").await.starts_with("invalid: 5000 random bytes"));
    // printf data | openssl dgst -sha256 -hmac geheim
    assert_eq!(answer(&rich, "hmac:env:KEY").await, "e2eba53a259dc954ed88b03e9d857682b99bbba920838c41e3fb349f6f862606");
    assert_eq!(answer(&rich, "verify:env:KEY").await, "true");
    // Another filter has a namespace of its own.
    let other = hostile("allow = { kv = true }");
    assert_eq!(answer(&other, "kv-get:n").await, "None");
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut() {
    struct Counting(Arc<AtomicUsize>, Arc<AtomicUsize>);
    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Counting {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            struct Longest<'a>(&'a AtomicUsize);
            impl tracing::field::Visit for Longest<'_> {
                fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                    self.0.fetch_max(format!("{value:?}").len(), Ordering::SeqCst);
                }
            }
            if event.metadata().target() == "hooklatch::filter::host" {
                self.0.fetch_add(1, Ordering::SeqCst);
                event.record(&mut Longest(&self.1));
            }
        }
    }
    use tracing_subscriber::layer::SubscriberExt as _;
    let (lines, longest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let filter = hostile("cpu = \"10s\"\ntimeout = \"60s\"");
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(Counting(lines.clone(), longest.clone())));
    passed(&filter, "log:5000").await;
    drop(guard);
    assert_eq!(lines.load(Ordering::SeqCst), 65, "64 lines, and one that says so");
    assert!((4096..5000).contains(&longest.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn metrics_are_counted_within_bounds() {
    let metrics = Metrics::new("test");
    let policy = "component = \"hostile.wasm\"\nconfig = { do = \"by-body\" }\nquarantine = { faults = 1, within = \"1m\" }";
    let filter = Filter::load(&ENGINE, &settings("f", policy), Clock::hand(0), &metrics).expect("the filter loads");
    passed(&filter, "metrics:100").await;
    failed(&filter, "trap").await;
    let text = metrics.encode();
    assert_eq!(text.matches("hooklatch_filter_guest_total{").count(), 64, "{text}");
    for line in [
        "hooklatch_filter_guest_total{filter=\"f\",name=\"name_0\"} 1",
        "hooklatch_filter_errors_total{filter=\"f\",kind=\"metric\"} 38",
        "hooklatch_filter_errors_total{filter=\"f\",kind=\"trap\"} 1",
        "hooklatch_filter_quarantined{filter=\"f\"} 1",
        "hooklatch_filter_duration_seconds_count{filter=\"f\"} 2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_filter_is_called_only_when_its_condition_holds() {
    for (when, length) in [
        ("event.type == 'push'", "1"),
        ("event.type != 'push'", ""),
        ("body.a == 1", ""),
        ("1 / size(event.type) > 'a'", "1"), // cannot be evaluated: called
    ] {
        let filter = filter(&format!("component = \"hostile.wasm\"\nconfig = {{ do = \"body-length\" }}\nwhen = \"{when}\""));
        assert_eq!(note(&passed(&filter, "x").await, ".length"), length, "{when}");
    }
}

#[tokio::test]
async fn a_failing_filter_is_passed_over_or_left_out() {
    let skip = hostile("on_error = \"skip\"");
    assert_eq!(passed(&skip, "trap").await.body.to_bytes(), "trap", "on, as if the filter were not there");

    let clock = Clock::hand(0);
    let policy = "component = \"hostile.wasm\"\nconfig = { do = \"by-body\" }\nquarantine = { faults = 2, within = \"1m\" }";
    let filter = Filter::load(&ENGINE, &settings("f", policy), clock.clone(), &METRICS).expect("the filter loads");
    failed(&filter, "trap").await;
    passed(&filter, "pass").await;
    failed(&filter, "trap").await;
    assert_eq!(failed(&filter, "pass").await, "filter `f`: it failed too often and is not called for a while");
    clock.advance(Duration::from_secs(60));
    passed(&filter, "pass").await;
}

/// What is wrong with a filter shows when it is loaded.
#[test]
fn mistakes_show_at_load() {
    let check = |policy: &str, expected: &str| {
        let fault = load(&ENGINE, &settings("f", policy)).expect_err("it must not load");
        let text = fault.to_string();
        assert!(text.contains(expected), "{policy}: {text}");
        assert_eq!(fault.kind(), "load");
    };
    let config = |config: &str| format!("component = \"hostile.wasm\"\nconfig = {{ {config} }}");
    check(&config("describe = \"loop\""), "`describe` failed: it ");
    check(&config("describe = \"panic\""), "`describe` failed: it trapped: wasm trap: wasm `unreachable`");
    check(&config("describe = \"long-name\""), "`describe` failed: its texts are too long");
    check(&config("schema = \"{\""), "the config schema that it ships is not a JSON Schema: EOF");
    check(&config("schema = \"{\\\"type\\\":5}\""), "the config schema that it ships is not a JSON Schema: ");
    check(&config("schema = \"{\\\"$ref\\\":\\\"https://example.com/s\\\"}\""), "is not a JSON Schema: ");
    check(&config("schema = \"closed\", do = \"loop\""), "`config` does not fit the filter's schema: /do: the value is not one of");
    check(&config("schema = \"closed\", dont = \"pass\""), "config: Additional properties are not allowed ('dont' was unexpected)");
    check(&format!("{}\nreuse = 2", config("do = \"pass\"")), "it does not call itself stateless, so `reuse` must be 1");
    check("component = \"redact.wasm\"", "config: \"fields\" is a required property");
    check("component = \"redact.wasm\"\nconfig = { fields = [\"a\"] }", "/fields/0: the value does not match");
    check("component = \"route-by-event.wasm\"\nconfig = { table = { \"a*b\" = \"x\" } }", "does not match");
}

fn with_import(name: &[u8]) -> Vec<u8> {
    let old = b"hooklatch:filter/log@0.1.0";
    assert_eq!(name.len(), old.len(), "the component stays valid only if no length changes");
    let mut bytes = HOSTILE.to_vec();
    while let Some(at) = bytes.windows(old.len()).position(|window| window == old) {
        bytes[at..at + old.len()].copy_from_slice(name);
    }
    bytes
}

#[tokio::test]
async fn imports_are_judged() {
    let policy = "component = \"f.wasm\"\nconfig = { do = \"by-body\" }";
    let load = |bytes: &[u8]| load(&ENGINE, &settings_of("f", policy, &[("f.wasm", bytes)]));
    for (bytes, cause) in [
        (with_import(b"somebody:something/l@0.1.0"), Some("somebody:something/l@0.1.0")),
        (with_import(b"hooklatch:filter/gol@0.1.0"), Some("hooklatch:filter/gol@0.1.0")),
        (with_import(b"hooklatch:filter/log@0.2.0"), Some("hooklatch:filter/log@0.2.0")),
        (b"\0asm\x01\0\0\0".to_vec(), None),
        (HOSTILE[..5000].to_vec(), None),
        (b"not wasm".to_vec(), None),
    ] {
        match (load(&bytes).expect_err("it must not load").cause, cause) {
            (Cause::UnknownImport(found), Some(wanted)) => assert_eq!(found, wanted),
            (Cause::NotAFilter(_), None) => {}
            (other, wanted) => panic!("{other:?} instead of {wanted:?}"),
        }
    }
    // WASI is there to be imported, but whoever calls it traps.
    let filter = load(&with_import(b"wasi:something/logs@0.1.0!")[..]).err();
    assert!(filter.is_some(), "an exclamation mark is no version");
    let filter = load(&with_import(b"wasi:something/logs@0.1.10")).expect("wasi alone is no reason to refuse it");
    passed(&filter, "pass").await;
    assert!(failed(&filter, "log:1").await.contains("it trapped: unknown import: `wasi:something/logs@0.1.10#log` has not been defined"));
}

#[tokio::test]
async fn the_cache_is_used_and_not_believed_blindly() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("deep/cwasm");
    let settings = settings("f", "component = \"hostile.wasm\"\nconfig = { do = \"by-body\" }");
    let files = || {
        let entries = std::fs::read_dir(&cache).expect("the folder is there");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let engine = || Engine::new(Some(cache.clone()));
    load(&engine(), &settings).expect("it compiles");
    let [file] = &files()[..] else { panic!("one file: {:?}", files()) };
    let good = std::fs::read(file).expect("it can be read");

    // From the cache: a component that cannot be compiled loads all the same under the same digest.
    let broken = Settings { component: Arc::from(&b"broken"[..]), ..settings.clone() };
    passed(&load(&engine(), &broken).expect("the compiled form is there"), "pass").await;

    for spoil in [|bytes: &mut Vec<u8>| bytes.truncate(1000), |bytes: &mut Vec<u8>| bytes[5000] ^= 1, |bytes: &mut Vec<u8>| bytes.clear()] {
        let mut bytes = good.clone();
        spoil(&mut bytes);
        std::fs::write(file, &bytes).expect("it can be written");
        assert!(load(&engine(), &broken).is_err(), "a damaged file is not used");
        passed(&load(&engine(), &settings).expect("it is compiled anew"), "pass").await;
        assert_eq!(std::fs::read(file).expect("it can be read").len(), good.len(), "and kept");
    }

    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    assert!(load(&engine(), &broken).is_err(), "a folder that others may write is not believed");
}

#[tokio::test]
async fn redact_edits_the_body_in_place() {
    let body =
        "{\n  \"id\": 1.0e2,\n  \"customer\": { \"email\": \"a@example.com\", \"phone\": \"0123456789\" },\n  \"items\": [{ \"card\": 4111111111111234 }]\n}\n";
    let redact = filter(
        r#"component = "redact.wasm"
config = { fields = [{ pointer = "/customer/email", action = "hash", key = "env:KEY" }, { pointer = "/items/*/card", keep = 4 }, { pointer = "/customer/phone", action = "remove" }] }
allow = { secrets = ["env:KEY"] }"#,
    );
    // printf a@example.com | openssl dgst -sha256 -hmac geheim
    let hash = "hmac-sha256:2b69b545369f74171d533a28a921d03d52ec4b1b0cc2bd776682aee2e206ae67";
    let event = passed(&redact, body).await;
    let expected = body
        .replace("\"a@example.com\"", &format!("\"{hash}\""))
        .replace(", \"phone\": \"0123456789\"", "")
        .replace("4111111111111234", "\"************1234\"");
    assert_eq!(event.body.to_bytes(), expected.as_bytes());
    assert_eq!(passed(&redact, "{\"other\":1}").await.body.to_bytes(), "{\"other\":1}");
    assert!(
        failed(&redact, "a=b")
            .await
            .ends_with("it failed: the body is not JSON at byte 0, so nothing can be redacted in it: set `not_json = \"pass\"` to let such bodies through")
    );

    let no_key = filter("component = \"redact.wasm\"\nconfig = { fields = [{ pointer = \"/a\", action = \"hash\", key = \"env:KEY\" }] }");
    assert!(failed(&no_key, "{\"a\":1}").await.contains("is not granted the secret `env:KEY`"));
}

#[tokio::test]
async fn route_by_event_chooses() {
    let chooser = filter(
        "component = \"route-by-event.wasm\"\nconfig = { table = { push = \"ci\", \"pull_*\" = [\"ci\", \"review\"], ping = [] }, default = \"bus\" }\nreuse = 10",
    );
    for (kind, chosen) in [(Some("push"), &["ci"][..]), (Some("pull_request"), &["ci", "review"]), (Some("other"), &["bus"]), (None, &["bus"])] {
        let applied = apply(std::slice::from_ref(&chooser), Event { event_type: kind.map(Into::into), ..event("{}") }, &route()).await.expect("it passes");
        let chosen: Vec<String> = chosen.iter().map(|&name| name.into()).collect();
        assert_eq!(applied.event.chosen, Some(chosen), "{kind:?}");
    }
    let applied = apply(&[chooser], Event { event_type: Some("ping".into()), ..event("{}") }, &route()).await.expect("a drop is no refusal");
    assert!(matches!(applied.verdict, Verdict::Drop { reason: Some(reason), .. } if reason == "the table sends events of type ping nowhere"));
}

#[test]
fn limits_have_kinds() {
    for (limit, kind) in
        [(Limit::Cpu(Duration::ZERO), "cpu"), (Limit::Time(Duration::ZERO), "timeout"), (Limit::Memory(0), "memory"), (Limit::Output(0), "output")]
    {
        assert_eq!(Fault::new("f", Cause::Limit(limit)).kind(), kind);
    }
}
