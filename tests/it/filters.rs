//! The shipped filters in the way of real events.

use crate::support::{
    client::{Client, Post, Protocol},
    gate::{Gate, Setup},
    receiver::Receiver,
    tools,
};

fn component(name: &str) -> String {
    tools::root().join(format!("filters/{name}/{name}.wasm")).display().to_string()
}

async fn redacting(receiver: &Receiver) -> Gate {
    let policy = format!(
        r#"
[filters.redact]
component = "{}"
config = {{ fields = ["/customer/email", {{ pointer = "/card", action = "remove" }}, {{ pointer = "/name", action = "hash" }}] }}
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
filters = ["redact"]
deliver = "{}"
"#,
        component("redact"),
        receiver.url("/hooks")
    );
    Setup::new(policy).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn redact_changes_what_it_names_and_nothing_else() {
    let receiver = Receiver::start().await;
    let gate = redacting(&receiver).await;
    let body = "{ \"a\": 1.0,\"card\":\"4111\", \"customer\":{\"email\" : \"ann@example.org\",\"x\":\"\\u00e9\"} , \"name\":\"Ann\"}";
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let text = format!("{body}{}", if protocol == Protocol::Http1 { "" } else { " " });
        let answer = Client::connect(&gate, protocol).await.send(&Post::github(text)).await;
        assert_eq!(answer.status, 200, "{answer:?}\n{}", gate.log());
        let seen = receiver.seen().pop().expect("forwarded");
        let got = tools::text(&seen.body);
        assert!(got.contains("\"email\" : \"[redacted]\",\"x\":\"\\u00e9\"") && got.contains("\"a\": 1.0"), "{got}");
        assert!(!got.contains("4111") && !got.contains("card") && !got.contains("ann@") && !got.contains("\"Ann\""), "{got}");
        assert!(got.contains("\"name\":\"sha256:"), "{got}");
        assert_eq!(seen.header("content-length"), seen.body.len().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_refuses_and_the_retry_runs_it_again() {
    let receiver = Receiver::start().await;
    let gate = redacting(&receiver).await;
    let first = Post::github("this is not JSON").send(&gate).await;
    let second = Post::github("this is not JSON").send(&gate).await;
    for answer in [&first, &second] {
        assert_eq!(answer.verdict(), (500, "filter_failed".to_owned()), "{answer:?}");
    }
    assert_eq!(first.event_id(), second.event_id());
    assert_eq!(receiver.count(), 0);
    assert_eq!(Post::github("{}").send(&gate).await.status, 200, "the next call is clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn route_by_event_chooses_among_the_routes_own_destinations() {
    let (ci, bus) = (Receiver::start().await, Receiver::start().await);
    let policy = format!(
        r#"
[filters.by-event]
component = "{}"
config = {{ table = {{ push = "ci", "issues*" = "bus", ping = [] }}, default = "bus" }}
[destinations.ci]
url = "{}"
[destinations.bus]
url = "{}"
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
filters = ["by-event"]
deliver = [{{ to = "ci", mode = "proxy" }}, {{ to = "bus", mode = "proxy", required = false }}]
acknowledge = {{ status = 202 }}
"#,
        component("route-by-event"),
        ci.url("/"),
        bus.url("/")
    );
    let gate = Setup::new(policy).start().await;
    for (n, (event, counts)) in [("push", (1, 0)), ("issues", (1, 1)), ("ping", (1, 1)), ("star", (1, 2))].into_iter().enumerate() {
        let mut post = Post::github(format!("{{\"n\":{n}}}"));
        post.headers.retain(|(name, _)| name != "x-github-event");
        let answer = post.header("x-github-event", event).send(&gate).await;
        assert!(answer.status.is_success(), "{event}: {answer:?}\n{}", gate.log());
        ci.arrived(counts.0).await;
        bus.arrived(counts.1).await;
        assert_eq!((ci.count(), bus.count()), counts, "{event}");
    }
    let audit = gate.audited(4).await;
    assert_eq!(audit[2]["outcome"], "dropped", "{audit:?}");
}
