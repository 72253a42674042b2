//! Observe instead of enforce, limits on verified facts, codings, endings without a delivery.

use std::io::Write;

use crate::support::{
    client::Post,
    gate::{Gate, Setup},
    receiver::Receiver,
    tools,
};

async fn sum(gate: &Gate, prefix: &str) -> f64 {
    let metrics = gate.metrics().await;
    metrics.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observed_route_lets_forgeries_on_as_unverified_and_counts_them() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "enforce = false").start().await;
    for n in 1..=2 {
        let forged = Post::new("/github", "{\"n\":1}").header("x-hub-signature-256", &format!("sha256={}", "0".repeat(64)));
        let answer = forged.send(&gate).await;
        assert_eq!((answer.status.as_u16(), answer.header("hooklatch-duplicate")), (200, ""), "{answer:?}");
        let seen = receiver.arrived(n).await;
        assert_eq!(seen[n - 1].header("hooklatch-verified"), "none");
    }
    assert_eq!(gate.metric("hooklatch_would_refuse_total{route=\"github\",reason=\"signature_mismatch\"}").await, 2.0, "{}", gate.metrics().await);
    let audit = gate.audited(2).await;
    assert_eq!(audit[0]["would_refuse"][0], "signature_mismatch", "{audit:?}");
    // The genuine event was not claimed by the forgery of the same body.
    let genuine = Post::github("{\"n\":1}").send(&gate).await;
    assert_eq!((genuine.status.as_u16(), genuine.header("hooklatch-duplicate")), (200, ""));
    assert_eq!(receiver.seen()[2].header("hooklatch-verified"), "content");
    // Sizes are enforced all the same.
    let large = Post::new("/github", vec![b'x'; 30 << 20]).send(&gate).await;
    assert_eq!(large.verdict(), (413, "body_too_large".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_guard_can_be_observed() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "allow_ips = [\"192.0.2.0/24\"]\nenforce = { default = true, allow_ips = false }").start().await;
    let answer = Post::github("{}").send(&gate).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(receiver.seen()[0].header("hooklatch-verified"), "content");
    assert_eq!(sum(&gate, "hooklatch_would_refuse_total{route=\"github\",reason=\"ip_not_allowed\"").await, 1.0);
    assert_eq!(Post::new("/github", "{}").send(&gate).await.status, 401, "the others are enforced");
}

#[tokio::test(flavor = "multi_thread")]
async fn observed_limits_let_no_flood_of_forgeries_through() {
    let receiver = Receiver::start().await;
    let route = "verify_failures = { rate = \"1/h\" }\nenforce = { default = true, rate_limit = false }";
    let gate = Setup::github(&receiver, route).start().await;
    for n in 0..4 {
        let forged = Post::new("/github", format!("{{\"n\":{n}}}")).header("x-hub-signature-256", &format!("sha256={}", "0".repeat(64)));
        assert_eq!(forged.send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()), "forgery {n}");
    }
    assert!(receiver.seen().is_empty());
    assert_eq!(sum(&gate, "hooklatch_would_refuse_total{route=\"github\",reason=\"rate_limited\"").await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_on_verified_facts_count_only_what_was_verified() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "rate_limit = [{ per = \"json:/tenant\", rate = \"1/h\" }]").start().await;
    for n in 0..3 {
        let forged = Post { body: format!("{{\"tenant\":\"a\",\"n\":{n}}}").into(), ..Post::github("{}") };
        assert_eq!(forged.send(&gate).await.status, 401);
    }
    let mut statuses = Vec::new();
    for (n, tenant) in ["a", "a", "b"].iter().enumerate() {
        statuses.push(Post::github(format!("{{\"tenant\":\"{tenant}\",\"m\":{n}}}")).send(&gate).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 200], "forgeries spent a tenant's budget, or tenants share one");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_checked_inflated_and_forwarded_as_they_came() {
    let receiver = Receiver::start().await;
    let route = "validate = { content_types = [\"application/json\"], schema = \"schema.json\", decode = [\"gzip\"] }";
    let gate = Setup::github(&receiver, route).file("schema.json", r#"{"type":"object","required":["ref"]}"#).start().await;
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).and_then(|()| encoder.finish()).expect("memory takes it")
    };
    let good = gzip(br#"{"ref":"x"}"#);
    let bomb = gzip(&vec![b' '; 64 << 20]);
    for (what, body, coding, verdict) in [
        ("good", good.clone(), "gzip", (200, "")),
        ("not what the schema says", gzip(b"{}"), "gzip", (422, "schema_invalid")),
        ("no gzip", b"{\"ref\":1}".to_vec(), "gzip", (400, "bad_request")),
        ("another coding", gzip(br#"{"ref":"y"}"#), "br", (415, "content_encoding")),
        ("two codings", gzip(br#"{"ref":"z"}"#), "gzip, gzip", (415, "content_encoding")),
    ] {
        let answer = Post::github(body).header("content-encoding", coding).send(&gate).await;
        assert!(
            answer.verdict() == (verdict.0, verdict.1.to_owned()) || (what == "no gzip" && matches!(answer.status.as_u16(), 400 | 415)),
            "{what}: {answer:?}"
        );
    }
    let before = gate.memory();
    let answer = Post::github(bomb).header("content-encoding", "gzip").send(&gate).await;
    assert!(matches!(answer.status.as_u16(), 400 | 413 | 415), "a bomb: {answer:?}");
    assert!(gate.memory().saturating_sub(before) < 40 << 10, "a bomb was inflated whole");
    let seen = receiver.seen();
    assert_eq!((seen.len(), &seen[0].body, seen[0].header("content-encoding")), (1, &good, "gzip"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_no_destination_wants_are_acknowledged_or_refused() {
    let receiver = Receiver::start().await;
    for (unmatched, status, reason) in [("drop", 202, ""), ("reject", 503, "no_destination")] {
        let policy = format!(
            "[destinations.out]\nurl = \"{}\"\n[routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\n\
             deliver = [{{ when = \"event.type == 'star'\", to = \"out\", mode = \"proxy\" }}]\nunmatched = \"{unmatched}\"\nacknowledge = {{ status = 202, body = \"thanks\", content_type = \"text/plain\" }}\n",
            receiver.url("/")
        );
        let gate = Setup::new(policy).start().await;
        let answer = Post::github("{}").send(&gate).await;
        assert_eq!(answer.verdict(), (status, reason.to_owned()), "{answer:?}");
        if status == 202 {
            assert_eq!((&answer.body[..], answer.header("content-type")), (&b"thanks"[..], "text/plain"));
        }
    }
    assert_eq!(receiver.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inspector_keeps_what_arrived() {
    let policy = "[routes.github]\npath = \"/github\"\nverify = { provider = \"github\", secret = \"env:GITHUB_SECRET\" }\ndeliver = \"builtin:inspector\"\n";
    let gate = Setup::new(policy).start().await;
    let answer = Post::github("{\"seen\":\"in the inspector\"}").send(&gate).await;
    assert!(answer.status.is_success(), "{answer:?}\n{}", gate.log());
    let token = format!("Authorization: Bearer {}\r\n", crate::support::gate::ADMIN_TOKEN);
    let list = gate.admin("/api/v1/inspector/events", &token).await;
    assert!(list.status == 200 && tools::text(&list.body).contains(&answer.event_id()), "{list:?}");
    let one = gate.admin(&format!("/api/v1/inspector/events/{}", answer.event_id()), &token).await;
    assert!(one.status == 200 && tools::text(&one.body).contains("in the inspector"), "{}", tools::text(&one.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_that_the_contract_gives() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    assert_eq!(Post::github("{}").send(&gate).await.status, 200);
    Post::github("{}").send(&gate).await;
    Post::new("/github", "{}").send(&gate).await;
    let metrics = gate.metrics().await;
    for line in [
        "hooklatch_build_info{",
        "hooklatch_requests_total{route=\"github\",outcome=\"forwarded\"} 1",
        "hooklatch_requests_total{route=\"github\",outcome=\"duplicate\"} 1",
        "hooklatch_request_duration_seconds_bucket{",
        "hooklatch_request_duration_seconds_count{route=\"github\"}",
        "hooklatch_refusals_total{route=\"github\",reason=\"signature_missing\"} 1",
        "hooklatch_verify_total{route=\"github\",provider=\"github\",secret=\"#1\",result=\"ok\"}",
        "hooklatch_secret_last_used_timestamp_seconds{route=\"github\",secret=\"#1\"}",
        "hooklatch_replay_total{route=\"github\",",
        "hooklatch_connections",
        "hooklatch_buffered_bytes",
        "hooklatch_delivery_attempts_total{destination=",
        "hooklatch_delivery_duration_seconds_count{destination=",
        "hooklatch_config_reloads_total{result=\"ok\"}",
        "hooklatch_config_last_reload_success_timestamp_seconds",
        "hooklatch_certificate_expiry_timestamp_seconds{name=",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "no {line} in\n{metrics}");
    }
}
