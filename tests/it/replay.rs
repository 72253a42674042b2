//! The replay record: copies, retries, branches, hang-ups and restarts.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::{
    client::{Answer, Post},
    gate::{Gate, Setup},
    hold::Hold,
    receiver::{Act, Receiver},
    sign, until,
    wire::Wire,
};

const EVENT: &str = r#"{"ref":"refs/heads/main","after":"6113728f27ae82c7b1a177c8d03f9e96e0adf246"}"#;

/// A stored answer: what the first got, marked, and nothing forwarded for it.
fn assert_duplicate(answer: &Answer, first: &Answer) {
    assert_eq!((answer.status, &answer.body), (first.status, &first.body), "{answer:?}");
    assert_eq!(answer.header("hooklatch-duplicate"), "true", "{answer:?}");
    assert_eq!(answer.event_id(), first.event_id());
    assert!(first.header("hooklatch-duplicate").is_empty(), "{first:?}");
}

/// Sends `count` copies on connections of their own; their tasks end with the answers.
fn copies(gate: &std::sync::Arc<Gate>, count: usize) -> JoinSet<Answer> {
    let mut set = JoinSet::new();
    for n in 0..count {
        let gate = gate.clone();
        let post = Post::github(EVENT).header("x-github-delivery", &format!("00000000-0000-4000-8000-{n:012}"));
        set.spawn(async move { post.send(&gate).await });
    }
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_copies_at_once_one_is_forwarded_and_the_others_refused() {
    let hold = Hold::shut();
    let door = hold.clone();
    let receiver = Receiver::acting(move |_| Act::after(&door, Act::Answer(200, "stored"))).await;
    let gate = std::sync::Arc::new(Setup::github(&receiver, "").start().await);
    let mut set = copies(&gate, 50);
    for _ in 0..49 {
        let answer = set.join_next().await.expect("49 end before the receiver answers").expect("no panic");
        assert_eq!(answer.verdict(), (409, "in_flight".to_owned()), "{answer:?}");
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    }
    assert_eq!(receiver.arrived(1).await.len(), 1);
    hold.open();
    let first = set.join_next().await.expect("one waits for the receiver").expect("no panic");
    assert_eq!((first.status.as_u16(), &first.body[..]), (200, &b"stored"[..]));
    for _ in 0..3 {
        assert_duplicate(&Post::github(EVENT).send(&gate).await, &first);
    }
    assert_eq!(receiver.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_flight_can_wait_for_the_first_answer() {
    let hold = Hold::shut();
    let door = hold.clone();
    let receiver = Receiver::acting(move |_| Act::after(&door, Act::Answer(200, "stored"))).await;
    let gate = std::sync::Arc::new(Setup::github(&receiver, "replay = { on_in_flight = \"wait\" }").start().await);
    let mut set = copies(&gate, 20);
    receiver.arrived(1).await;
    hold.open();
    let mut fresh = 0;
    while let Some(answer) = set.join_next().await {
        let answer = answer.expect("no panic");
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"stored"[..]), "{answer:?}");
        fresh += usize::from(answer.header("hooklatch-duplicate").is_empty());
    }
    assert_eq!((fresh, receiver.count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_can_be_refused() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "replay = { on_duplicate = \"reject\" }").start().await;
    assert_eq!(Post::github(EVENT).send(&gate).await.status, 200);
    let again = Post::github(EVENT).send(&gate).await;
    assert_eq!(again.verdict(), (409, "duplicate".to_owned()));
    assert_eq!(receiver.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_of_a_failed_delivery_is_delivered_with_the_same_event_id() {
    let receiver = Receiver::acting(|seen| if seen.nth < 2 { Act::Answer(503, "not yet") } else { Act::Answer(200, "ok") }).await;
    let gate = Setup::github(&receiver, "").start().await;
    let first = Post::github(EVENT).send(&gate).await;
    let second = Post::github(EVENT).send(&gate).await;
    let third = Post::github(EVENT).send(&gate).await;
    assert_eq!([first.status.as_u16(), second.status.as_u16(), third.status.as_u16()], [503, 503, 200]);
    let seen = receiver.arrived(3).await;
    for answer in [&first, &second, &third] {
        assert_eq!(answer.event_id(), first.event_id());
    }
    for (n, seen) in seen.iter().enumerate() {
        assert_eq!(seen.header("hooklatch-event-id"), first.event_id());
        assert_eq!(seen.header("hooklatch-attempt"), (n + 1).to_string(), "each retry counts on");
    }
    assert_duplicate(&Post::github(EVENT).send(&gate).await, &third);
    assert_eq!(receiver.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_over_a_restart() {
    let receiver = Receiver::acting(|seen| if seen.nth < 3 { Act::Answer(503, "not yet") } else { Act::Answer(200, "ok") }).await;
    let mut gate = Setup::github(&receiver, "").state("persist_within = \"0s\"").start().await;
    for _ in 0..2 {
        assert_eq!(Post::github(EVENT).send(&gate).await.status, 503);
        assert_eq!(Post::github(EVENT).send(&gate).await.status.is_success(), receiver.count() > 3);
        gate.kill();
        gate.restart().await;
    }
    let attempts: Vec<String> = receiver.seen().iter().map(|seen| seen.header("hooklatch-attempt").to_owned()).collect();
    assert_eq!(attempts, ["1", "2", "3", "4"]);
}

/// Two branches: `main` decides the answer, `side` does not.
fn branches(main: &Receiver, side: &Receiver) -> Setup {
    Setup::new(format!(
        r#"
[destinations.main]
url = "{}"
[destinations.side]
url = "{}"
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = [{{ to = "main", mode = "proxy" }}, {{ to = "side", mode = "proxy", required = false }}]
"#,
        main.url("/main"),
        side.url("/side")
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_runs_only_the_branch_that_failed() {
    let hold = Hold::shut();
    let door = hold.clone();
    let main = Receiver::acting(move |seen| Act::after(&door, if seen.nth == 0 { Act::Answer(500, "no") } else { Act::Answer(200, "ok") })).await;
    let side = Receiver::start().await;
    let gate = branches(&main, &side).start().await;
    let post = Post::github(EVENT);
    let sending = post.send(&gate);
    let opening = async {
        side.arrived(1).await;
        main.arrived(1).await;
        // The side branch has ended when its attempt is counted; only then may the other fail.
        until("the side branch's end", || async {
            gate.metrics()
                .await
                .lines()
                .any(|line| line.starts_with("hooklatch_delivery_attempts_total{destination=\"side\"") && !line.ends_with(" 0"))
                .then_some(())
        })
        .await;
        hold.open();
    };
    let (first, ()) = tokio::join!(sending, opening);
    assert_eq!(first.status, 500);
    let second = Post::github(EVENT).send(&gate).await;
    assert_eq!((second.status.as_u16(), second.event_id()), (200, first.event_id()));
    assert_eq!((main.count(), side.count()), (2, 1));
    assert_duplicate(&Post::github(EVENT).send(&gate).await, &second);
    assert_eq!((main.count(), side.count()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_branch_never_decides_the_answer() {
    let main = Receiver::start().await;
    let side = Receiver::acting(|_| Act::Answer(500, "no")).await;
    let gate = branches(&main, &side).start().await;
    let first = Post::github(EVENT).send(&gate).await;
    assert_eq!(first.status, 200);
    side.arrived(1).await;
    assert_duplicate(&Post::github(EVENT).send(&gate).await, &first);
    assert_eq!(main.count(), 1);
}

/// Sends a request whose sender hangs up after a second while the receiver works on for two more.
async fn hang_up(gate: &Gate, receiver: &Receiver, hold: &Hold) {
    let (name, signature) = sign::github(EVENT.as_bytes());
    let mut wire = Wire::connect(gate.address()).await;
    let head = format!("POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{name}: {signature}\r\n\r\n", EVENT.len());
    wire.send(format!("{head}{EVENT}").as_bytes()).await;
    receiver.arrived(1).await;
    // Real waits: a gate that gives up when its sender does needs the time to do so.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(wire);
    tokio::time::sleep(Duration::from_secs(2)).await;
    hold.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_does_not_cancel_the_delivery() {
    let hold = Hold::shut();
    let door = hold.clone();
    let receiver = Receiver::acting(move |_| Act::after(&door, Act::Answer(200, "done"))).await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    hang_up(&gate, &receiver, &hold).await;
    let again = until("the record to be done", || async { Some(Post::github(EVENT).send(&gate).await).filter(|answer| answer.status != 409) }).await;
    assert_eq!((again.status.as_u16(), again.header("hooklatch-duplicate"), &again.body[..]), (200, "true", &b"done"[..]));
    assert_eq!(receiver.count(), 1);
    assert_eq!(receiver.seen()[0].header("hooklatch-event-id"), again.event_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn done_events_stay_done_after_kill_9() {
    let receiver = Receiver::start().await;
    let mut gate = Setup::github(&receiver, "").state("persist_within = \"0s\"").start().await;
    let first = Post::github(EVENT).send(&gate).await;
    assert_eq!(first.status, 200);
    gate.kill();
    gate.restart().await;
    assert_duplicate(&Post::github(EVENT).send(&gate).await, &first);
    assert_eq!(receiver.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn done_events_stay_done_after_an_orderly_restart() {
    let receiver = Receiver::start().await;
    let mut gate = Setup::github(&receiver, "").start().await;
    let first = Post::github(EVENT).send(&gate).await;
    assert_eq!(first.status, 200);
    gate.signal("TERM");
    assert!(gate.exit().await.success(), "{}", gate.log());
    gate.restart().await;
    assert_duplicate(&Post::github(EVENT).send(&gate).await, &first);
    assert_eq!(receiver.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_events_keep_their_id_after_kill_9() {
    let receiver = Receiver::acting(|seen| if seen.nth == 0 { Act::Answer(500, "no") } else { Act::Answer(200, "ok") }).await;
    let mut gate = Setup::github(&receiver, "").state("persist_within = \"0s\"").start().await;
    let first = Post::github(EVENT).send(&gate).await;
    assert_eq!(first.status, 500);
    gate.kill();
    gate.restart().await;
    let second = Post::github(EVENT).send(&gate).await;
    assert_eq!((second.status.as_u16(), second.event_id()), (200, first.event_id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_flight_at_kill_9_is_delivered_by_its_retry() {
    let receiver = Receiver::acting(|seen| if seen.nth == 0 { Act::Hang } else { Act::Answer(200, "ok") }).await;
    let mut gate = Setup::github(&receiver, "").plain().start().await;
    let (name, signature) = sign::github(EVENT.as_bytes());
    let mut wire = Wire::connect(gate.address()).await;
    wire.send(format!("POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{name}: {signature}\r\n\r\n{EVENT}", EVENT.len()).as_bytes()).await;
    receiver.arrived(1).await;
    gate.kill();
    gate.restart().await;
    assert_eq!(Post::github(EVENT).send(&gate).await.status, 200);
    assert_eq!(receiver.count(), 2);
}

/// Alertmanager signs nothing and sends equal bodies on purpose: every one of them goes through.
#[tokio::test(flavor = "multi_thread")]
async fn equal_bodies_of_a_provider_without_replay_key_all_pass() {
    let receiver = Receiver::start().await;
    let gate = Setup::new(format!(
        "[routes.alerts]\npath = \"/alerts\"\nverify = {{ provider = \"alertmanager\", secret = \"literal:a-token-of-some-length\" }}\ndeliver = \"{}\"\n",
        receiver.url("/alerts")
    ))
    .start()
    .await;
    for _ in 0..3 {
        let answer = Post::new("/alerts", "{}").header("authorization", "Bearer a-token-of-some-length").send(&gate).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(receiver.count(), 3);
}
