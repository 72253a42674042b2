//! Published address ranges: fetched over real TLS, followed, guarded, kept on disk, pinned by the lock file.

use std::sync::{Arc, Mutex};

use crate::support::{
    client::Post,
    gate::{Gate, Setup},
    origin::Origin,
    receiver::{Act, Receiver, Seen},
    tools, until,
};

/// An answer with an ETag that names its body; 304 to who has it.
fn list(seen: &Seen, body: &str) -> Act {
    let tag = format!("\"{}\"", body.replace(['[', ']', '{', '}', ',', '"'], ""));
    if seen.header("if-none-match") == tag {
        return Act::Raw(format!("HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\nContent-Length: 0\r\n\r\n").into_bytes());
    }
    Act::Raw(format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

fn policy(receiver: &Receiver, page: &Origin, shipped: &str) -> String {
    format!(
        "[providers.acme]\nscheme = \"token\"\nsignature = {{ header = \"X-Token\" }}\nip_ranges = {{ url = \"{}\", json = \"/hooks\"{shipped} }}\n\
         [routes.acme]\npath = \"/acme\"\nverify = {{ provider = \"acme\", secret = \"env:GITHUB_SECRET\" }}\nallow_ips = [\"provider:acme\"]\ndeliver = \"{}\"\n",
        page.url("/ranges"),
        receiver.url("/hooks")
    )
}

async fn verdict(gate: &Gate) -> u16 {
    Post::new("/acme", "{}").header("x-token", crate::support::sign::SECRET).send(gate).await.status.as_u16()
}

async fn becomes(gate: &Gate, what: &str, status: u16) {
    until(what, || async { (verdict(gate).await == status).then_some(()) }).await;
}

const FAR: &str = "{\"hooks\":[\"192.0.2.0/24\"]}";
const NEAR: &str = "{\"hooks\":[\"127.0.0.1\",\"::1\"]}";

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_followed_guarded_and_kept() {
    let body = Arc::new(Mutex::new(FAR.to_owned()));
    let served = body.clone();
    let page = Origin::start(move |seen| list(seen, &served.lock().expect("no panic"))).await;
    let receiver = Receiver::start().await;
    let set = |text: &str| text.clone_into(&mut body.lock().expect("no panic"));
    let setup = Setup::new(policy(&receiver, &page, ", list = [\"192.0.2.1\"]"))
        .server("ip_ranges = { refresh = \"1s\", ca = \"page.pem\" }")
        .file("page.pem", page.ca.pem());
    let mut gate = setup.start().await;
    assert_eq!(verdict(&gate).await, 403, "the shipped list does not hold this address");

    // A new list takes effect without a reload; an unchanged one is not sent again.
    set(NEAR);
    becomes(&gate, "the new list", 200).await;
    let asked = page.inner.count();
    until("a look with the page's mark", || async { page.inner.seen().iter().skip(asked).any(|seen| seen.has("if-none-match")).then_some(()) }).await;
    assert_eq!(verdict(&gate).await, 200);

    // What is empty, unreadable, too wide or too much is not believed, and that is said.
    let many: Vec<String> = (0..64).map(|i| format!("\"192.0.2.{i}\"")).collect();
    for (text, why) in [
        ("{\"hooks\":[]}".to_owned(), "the list is empty"),
        ("<html>".to_owned(), "not JSON"),
        ("{\"hooks\":[\"0.0.0.0/0\"]}".to_owned(), "wider than any sender's network"),
        (format!("{{\"hooks\":[{}]}}", many.join(",")), "from 2 networks to 64"),
    ] {
        set(&text);
        until(why, || async { gate.log().contains(why).then_some(()) }).await;
        assert_eq!(verdict(&gate).await, 200, "{why}");
    }
    let metrics = gate.metrics().await;
    assert!(metrics.contains("hooklatch_ip_ranges_age_seconds{provider=\"acme\"}"), "{metrics}");

    // The next start knows what was fetched, though the page is gone.
    set("gone");
    gate.kill();
    gate.restart().await;
    assert_eq!(verdict(&gate).await, 200, "the cache holds the list");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_is_written_read_and_reviewed() {
    let body = Arc::new(Mutex::new(NEAR.to_owned()));
    let served = body.clone();
    let page = Origin::start(move |seen| list(seen, &served.lock().expect("no panic"))).await;
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("page.pem"), page.ca.pem()).expect("written");
    let text = format!("[server]\nip_ranges = {{ refresh = false, ca = \"page.pem\" }}\n{}", policy(&receiver, &page, ""));
    std::fs::write(file("policy.toml"), &text).expect("written");
    let run = |args: &[&str]| {
        let mut command = tools::hooklatch(args);
        command.current_dir(folder.path()).env("GITHUB_SECRET", crate::support::sign::SECRET).env("NO_COLOR", "1").env("STATE_DIRECTORY", file("state"));
        let out = tools::run(&mut command, b"");
        (out.status.code(), format!("{}{}", tools::text(&out.stdout), tools::text(&out.stderr)))
    };
    // Nothing is shipped: the policy says what to do.
    let (code, said) = run(&["check", "--config", "policy.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("hooklatch providers --lock"), "{said}");

    let (code, said) = run(&["providers", "--lock", "--config", "policy.toml"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("acme: 2 networks") && said.contains("+ 127.0.0.1/32"), "{said}");
    let locked = std::fs::read_to_string(file("hooklatch.lock")).expect("the lock file");
    assert!(locked.contains("  \"127.0.0.1/32\",\n"), "{locked}");
    assert_eq!(run(&["check", "--config", "policy.toml"]).0, Some(0));

    // A review sees what another lock changes.
    std::fs::create_dir(file("old")).expect("a folder");
    std::fs::write(file("old/policy.toml"), &text).expect("written");
    std::fs::write(file("old/page.pem"), page.ca.pem()).expect("written");
    std::fs::write(file("old/hooklatch.lock"), locked.replace("127.0.0.1/32", "192.0.2.0/24")).expect("written");
    let (code, said) = run(&["check", "--config", "policy.toml", "--against", "old/policy.toml"]);
    assert_eq!(code, Some(0), "{said}");
    for line in ["~ published ranges.acme", "    - \"192.0.2.0/24\"", "    + \"127.0.0.1/32\""] {
        assert!(said.contains(line), "{line}: {said}");
    }

    // A page that fails leaves what was locked.
    "nothing".clone_into(&mut body.lock().expect("no panic"));
    let (code, said) = run(&["providers", "--lock", "--config", "policy.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("what was locked before stays"), "{said}");
    assert_eq!(std::fs::read_to_string(file("hooklatch.lock")).expect("the lock file"), locked);
}

#[test]
fn the_catalogue_is_searched() {
    let run = |args: &[&str]| tools::output(&mut tools::hooklatch(args), b"");
    let found = run(&["providers", "pay"]);
    assert!(found.contains("razorpay") && found.contains("paystack") && !found.contains("github"), "{found}");
    let shown = run(&["providers", "twitter"]);
    assert!(shown.starts_with("[x]") && shown.contains("provider = \"x\""), "{shown}");
    let all: serde_json::Value = serde_json::from_str(&run(&["providers", "--json"])).expect("JSON");
    assert!(all.as_array().is_some_and(|all| all.len() > 100));
}
