//! Secrets, and signatures that would be accepted, stand nowhere but in the policy's sources and on the wire.

use crate::support::{
    client::Post,
    gate::{ADMIN_TOKEN, Setup},
    receiver::{Act, Receiver},
    sign, tools,
};

const TOKEN: &str = "token-7Jh3kQp0aZ81";
const PASSWORD: &str = "password-Lw93nVx2";
const LITERAL: &str = "literal-Qm47TzRb55";
const FROM_FILE: &str = "from-a-file-Nk28sDf1";
const IN_URL: &str = "in-the-url-Bp60yGc4";
const BEARER: &str = "a-callers-own-bearer-Xe19";

/// The secrets as they stand, in base64 and in hexadecimal.
fn needles() -> Vec<(String, String)> {
    let secrets = [sign::SECRET, TOKEN, PASSWORD, LITERAL, FROM_FILE, IN_URL, ADMIN_TOKEN, BEARER];
    let mut all = Vec::new();
    for secret in secrets {
        all.push((secret.to_owned(), secret.to_owned()));
        all.push((secret.to_owned(), data_encoding::HEXLOWER.encode(secret.as_bytes())));
        // Without the last characters, which padding and neighbours change; and as part of `user:password`.
        for text in [secret.to_owned(), format!("hooks:{secret}")] {
            let coded = data_encoding::BASE64_NOPAD.encode(text.as_bytes());
            all.push((secret.to_owned(), coded[..coded.len() - 2].to_owned()));
        }
    }
    all
}

fn sweep(place: &str, text: &str, more: &[String]) {
    for (secret, needle) in needles() {
        assert!(!text.contains(&needle), "{secret:?} stands in {place} as {needle:?}:\n{text}");
    }
    for needle in more {
        assert!(!text.contains(needle), "an expected MAC stands in {place}: {needle}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stand_in_no_log_audit_metric_answer_or_page() {
    let receiver = Receiver::acting(|seen| if seen.header("x-fail").is_empty() { Act::Answer(200, "ok") } else { Act::Close }).await;
    let policy = format!(
        r#"
[destinations.out]
url = "{url}"
[destinations.closed]
url = "http://hooks:{IN_URL}@127.0.0.1:9/x"
timeout = "1s"
[routes.github]
path = "/github"
verify = {{ provider = "github", secrets = ["env:GITHUB_SECRET", {{ from = "literal:{LITERAL}", label = "old" }}, "file:secret.txt"] }}
deliver = [{{ to = "out", mode = "proxy" }}, {{ to = "closed", mode = "proxy", required = false }}]
[routes.inspected]
path = "/inspected"
verify = {{ provider = "alertmanager", secret = "literal:{TOKEN}" }}
deliver = "builtin:inspector"
[routes.basic]
path = "/basic"
verify = {{ provider = "postmark", secret = "literal:hooks:{PASSWORD}" }}
deliver = "out"
"#,
        url = receiver.url("/")
    );
    // A destination's URL may or may not carry a password; where it is refused, the refusal must not show it either.
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    std::fs::write(dir.path().join("secret.txt"), FROM_FILE).expect("the folder is ours");
    std::fs::write(dir.path().join("p.toml"), &policy).expect("the folder is ours");
    let check = tools::run(tools::hooklatch(["check", "--config", "p.toml"]).current_dir(dir.path()).env("GITHUB_SECRET", sign::SECRET), b"");
    let said = tools::text(&check.stdout) + &tools::text(&check.stderr);
    sweep("the output of check", &said, &[]);
    let policy = if check.status.success() { policy } else { policy.replace(&format!("hooks:{IN_URL}@"), "") };

    let gate = Setup::new(policy).file("secret.txt", FROM_FILE).env("RUST_LOG", "trace").start().await;
    let mut macs = Vec::new();
    let mut answers = Vec::new();
    for (n, secret) in [sign::SECRET, LITERAL, FROM_FILE].iter().enumerate() {
        let body = format!("{{\"n\":{n}}}");
        let (name, value) = sign::github_with(secret, body.as_bytes());
        let post = Post::new("/github", body.clone()).header("authorization", &format!("Bearer {BEARER}"));
        // Forged: what the gate expects must not come back, nor be written down.
        answers.push(post.clone().header(name, &format!("sha256={}", "0".repeat(64))).send(&gate).await);
        answers.push(post.clone().header(name, &value[..60]).send(&gate).await);
        answers.push(post.clone().header(name, &value).header("x-fail", if n == 0 { "1" } else { "" }).send(&gate).await);
        answers.push(post.header(name, &value).send(&gate).await);
        macs.push(value[7..].to_owned());
        let raw = data_encoding::HEXLOWER.decode(&value.as_bytes()[7..]).expect("our own hexadecimal");
        macs.push(data_encoding::BASE64_NOPAD.encode(&raw));
    }
    for value in [format!("Bearer {TOKEN}"), format!("Bearer {TOKEN}x"), format!("Token {TOKEN}")] {
        answers.push(Post::new("/inspected", "{}").header("authorization", &value).send(&gate).await);
    }
    for user in [format!("hooks:{PASSWORD}"), format!("hooks:{PASSWORD}x"), format!("other:{PASSWORD}")] {
        let coded = data_encoding::BASE64.encode(user.as_bytes());
        answers.push(Post::new("/basic", "{}").header("authorization", &format!("Basic {coded}")).send(&gate).await);
    }
    // Credentials where they do not belong: in a query, in a path.
    answers.push(Post::github("{}").to(&format!("/github?access_token={BEARER}")).send(&gate).await);
    for answer in &answers {
        sweep("an answer", &format!("{answer:?}{}", tools::text(&answer.body)), &macs);
    }
    assert!(answers.iter().any(|answer| answer.status == 200), "{answers:?}\n{}", gate.log());

    let broken = format!(
        "[routes.x]\npath = 1\nverify = {{ provider = \"github\", secret = \"literal:{LITERAL}\", sercet = \"literal:{TOKEN}\" }}\ndeliver = \"http://u:{IN_URL}@h:x/\"\n"
    );
    gate.rewrite(&broken);
    gate.reload("refused").await;

    sweep("the metrics", &gate.metrics().await, &macs);
    let token = format!("Authorization: Bearer {ADMIN_TOKEN}\r\n");
    for path in ["/", "/readyz", "/healthz", "/api/v1/status", "/api/v1/policy", "/api/v1/decisions", "/api/v1/inspector/events"] {
        let reply = gate.admin(path, &token).await;
        let text = format!("{}{}", reply.head, tools::text(&reply.body));
        sweep(path, &text, &macs);
        if path == "/api/v1/inspector/events" {
            let events: serde_json::Value = serde_json::from_slice(&reply.body).expect("the API answers in JSON");
            let id = events.to_string().split('"').find(|text| text.len() == 36 && text.matches('-').count() == 4).expect("an event with its id").to_owned();
            let reply = gate.admin(&format!("/api/v1/inspector/events/{id}"), &token).await;
            assert_eq!(reply.status, 200);
            sweep("an inspected event", &tools::text(&reply.body), &macs);
        }
    }
    sweep("the log", &gate.log(), &macs);
    sweep("the audit lines", &gate.audited(answers.len()).await.iter().map(ToString::to_string).collect::<String>(), &macs);
}

/// A policy that is wrong right beside its secrets is shown without them.
#[test]
fn problems_of_a_policy_show_no_secret() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for (n, verify) in [
        format!("{{ provider = \"github\", secret = \"literal:{LITERAL}\", secrets = [\"literal:{TOKEN}\"] }}"),
        format!("{{ provider = \"github\", secret = [\"literal:{LITERAL}\"] }}"),
        format!("{{ provider = \"gihub\", secret = \"literal:{LITERAL}\" }}"),
        format!("{{ provider = \"github\", secret = \"{LITERAL}\" }}"),
        format!("{{ provider = \"github\", secrets = [{{ from = \"literal:{LITERAL}\", label = 3 }}] }}"),
        format!("{{ provider = \"standardwebhooks\", secret = \"literal:{LITERAL}\" }}"),
        format!("{{ provider = \"github\", secret = \"literal:{LITERAL} }}"),
        format!("{{ provider = \"postmark\", secret = \"literal:{PASSWORD}\" }}"),
    ]
    .iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{n}.toml"));
        std::fs::write(&path, format!("[routes.a]\npath = \"/a\"\nverify = {verify}\ndeliver = \"http://u:{IN_URL}@127.0.0.1:1/\"\n"))
            .expect("the folder is ours");
        for more in [&[][..], &["--json"]] {
            let out = tools::run(tools::hooklatch(["check".as_ref(), "--config".as_ref(), path.as_os_str()]).args(more), b"");
            let said = tools::text(&out.stdout) + &tools::text(&out.stderr);
            assert!(matches!(out.status.code(), Some(0..=2)), "{verify}: {said}");
            sweep(&format!("check of {verify}"), &said, &[]);
        }
    }
}
