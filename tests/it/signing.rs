//! What the gate signs for receivers, judged by a second gate and by a provider's own library.

use std::time::Duration;

use crate::support::{
    client::Post,
    gate::{Gate, Setup},
    receiver::{Act, Receiver},
    sign, tools, until,
};

const EVENT: &str = "{ \"id\": \"evt_1\",\n  \"type\": \"push\", \"name\": \"Zoë\" }\n";
const INNER: &str = "the secret between gate and receiver";

/// A GitHub route that delivers to a destination which is signed for; `sign` is its value.
fn policy(url: &str, sign: &str, more: &str) -> String {
    format!(
        "[routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\ndeliver = \"inner\"\n{more}\n\
         [destinations.inner]\nurl = \"{url}\"\nsign = {sign}\n"
    )
}

/// A second gate whose routes verify what the first one signs, one for each of these providers.
async fn inner_gate(receiver: &Receiver, providers: &[&str]) -> Gate {
    let route = |name: &&str| {
        format!(
            "[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"{name}\", secret = \"env:INNER_SECRET\" }}\nquery = [\"tenant\"]\ndeliver = \"{}\"\n",
            receiver.url("/end")
        )
    };
    Setup::new(providers.iter().map(route).collect::<String>()).plain().env("INNER_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_gate_accepts_what_the_first_signs() {
    const PROVIDERS: &[&str] = &[
        "github",
        "stripe",
        "slack",
        "standardwebhooks",
        "svix",
        "square",
        "twilio",
        "hubspot",
        "orb",
        "recurly",
        "docusign",
        "gitlab",
        "pagerduty",
        "workos",
    ];
    let receiver = Receiver::start().await;
    let inner = inner_gate(&receiver, PROVIDERS).await;
    for (nth, name) in PROVIDERS.iter().enumerate() {
        let url = format!("http://{}/{name}", inner.address());
        let text = policy(&url, &format!("{{ provider = \"{name}\", secret = \"env:INNER_SECRET\" }}"), "query = [\"tenant\"]");
        let outer = Setup::new(text).env("INNER_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").start().await;
        let answer = Post::github(EVENT).to("/github?tenant=7").send(&outer).await;
        assert_eq!(answer.status.as_u16(), 200, "{name}: {answer:?} {:?}", inner.audit().last());
        let seen = receiver.arrived(nth + 1).await;
        assert_eq!(seen[nth].body, EVENT.as_bytes(), "{name}");
        assert!(seen[nth].target.starts_with("/end?tenant=7"), "{name}: {}", seen[nth].target);
        if matches!(*name, "standardwebhooks" | "svix") {
            let id = if *name == "svix" { "svix-id" } else { "webhook-id" };
            assert_eq!(seen[nth].header(id), answer.event_id(), "{name}");
        }
        for text in [outer.log(), format!("{:?}", outer.audit())] {
            assert!(!text.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "{name}");
        }
    }
}

/// GitHub's own library takes what was signed with the other secret, and not what the sender signed.
#[tokio::test(flavor = "multi_thread")]
async fn githubs_library_accepts_what_the_gate_signs() {
    let receiver = Receiver::start().await;
    let text = policy(&receiver.url("/hooks"), "{ provider = \"github\", secret = \"file:inner\" }", "");
    let gate = Setup::new(text).file("inner", format!("{INNER}\n")).start().await;
    let legacy = "sha1=0000000000000000000000000000000000000000";
    assert_eq!(Post::github(EVENT).header("x-hub-signature", legacy).header("x-github-delivery", "d-1").send(&gate).await.status, 200);
    let seen = &receiver.arrived(1).await[0];
    assert!(!seen.has("x-hub-signature"), "made with the provider's secret");
    assert_eq!((seen.header("x-github-event"), seen.header("x-github-delivery")), ("push", "d-1"));
    let judged = |secret: &str| {
        let given = seen.header("x-hub-signature-256");
        tools::output(tools::node("verify.mjs").args([secret, given]), &seen.body).trim().to_owned()
    };
    assert_eq!((judged(INNER), judged(sign::SECRET)), ("true".to_owned(), "false".to_owned()));
}

/// The copy after a failure is signed anew, under the same id; a secret that changed signs from then on.
#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_signed_with_the_secret_of_the_day() {
    let receiver = Receiver::acting(|seen| if seen.nth == 0 { Act::Answer(503, "later") } else { Act::Answer(200, "ok") }).await;
    let text = policy(&receiver.url("/hooks"), "{ provider = \"standardwebhooks\", secret = \"file:inner\" }", "");
    let gate = Setup::new(text).file("inner", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").start().await;
    assert_eq!(Post::github(EVENT).send(&gate).await.status, 503);
    tokio::time::sleep(Duration::from_millis(1100)).await; // the next second: times are signed in seconds
    let answer = Post::github(EVENT).send(&gate).await;
    assert_eq!(answer.status, 200);
    let reloads = "hooklatch_config_reloads_total{result=\"ok\"}";
    let before = gate.metric(reloads).await;
    gate.write("inner", "whsec_C2FtZSBzZWNyZXQsIGJ1dCBhbm90aGVyIG9uZSE=");
    until("the new secret", || async { (gate.metric(reloads).await > before).then_some(()) }).await;
    assert_eq!(Post::github(format!("{EVENT} ")).send(&gate).await.status, 200);

    let seen = receiver.arrived(3).await;
    let right = |secret: &str, at: usize| {
        let (id, time) = (seen[at].header("webhook-id"), seen[at].header("webhook-timestamp"));
        let headers = sign::python("standardwebhooks", secret, time.parse().expect("seconds"), id, &seen[at].body);
        headers.iter().any(|(name, value)| name == "webhook-signature" && value == seen[at].header("webhook-signature"))
    };
    let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FtZSBzZWNyZXQsIGJ1dCBhbm90aGVyIG9uZSE=");
    assert_eq!([right(old, 0), right(old, 1), right(old, 2)], [true, true, false]);
    assert!(right(new, 2));
    assert_eq!(seen[0].header("webhook-id"), seen[1].header("webhook-id"));
    assert_eq!(seen[0].header("webhook-id"), answer.event_id());
    assert_ne!(seen[0].header("webhook-timestamp"), seen[1].header("webhook-timestamp"));
}

/// What a filter left is what is signed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_changed_is_signed() {
    let receiver = Receiver::start().await;
    let inner = inner_gate(&receiver, &["stripe"]).await;
    let component = tools::root().join("filters/redact/redact.wasm");
    let text = policy(&format!("http://{}/stripe", inner.address()), "{ provider = \"stripe\", secret = \"env:INNER_SECRET\" }", "filters = [\"redact\"]")
        + &format!("[filters.redact]\ncomponent = \"{}\"\nconfig = {{ fields = [\"/name\"] }}\n", component.display());
    let outer = Setup::new(text).env("INNER_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").start().await;
    let answer = Post::github(EVENT).send(&outer).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = String::from_utf8(receiver.arrived(1).await[0].body.clone()).expect("text");
    assert!(!body.contains("Zoë") && body.contains("evt_1"), "{body}");
}

/// The words of the warnings, on a terminal and for machines; `--strict` fails on them.
#[test]
fn warnings_have_words_and_strict_fails_on_them() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("policy.toml");
    let route = "verify = { provider = \"github\", secret = \"env:S\" }\ndeliver = \"http://127.0.0.1:1/\"\n";
    std::fs::write(&path, format!("[routes.a]\npath = \"/a\"\n{route}[routes.b]\npath = \"/b\"\n{route}")).expect("the folder is ours");
    let check = |more: &[&str]| {
        let mut command = tools::hooklatch(["check", "--config"]);
        tools::run(command.arg(&path).args(more).env("S", "a secret of the tests, long enough").env("NO_COLOR", "1"), b"")
    };
    let plain = check(&[]);
    assert_eq!(plain.status.code(), Some(0));
    assert!(tools::text(&plain.stdout).contains("warning[shared-secret]"), "{}", tools::text(&plain.stdout));
    assert_eq!(check(&["--strict"]).status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&check(&["--json"]).stdout).expect("JSON");
    assert_eq!(json["problems"][0]["code"], "shared-secret");
}
