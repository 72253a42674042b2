//! A filter that misbehaves: `config = { do = "NAME" }` says how, `describe = "NAME"` how already when loaded.
//! For the tests of hooklatch's filter room only.

use std::cell::RefCell;
use std::hint::black_box;

wit_bindgen::generate!({ path: "../../../wit", world: "filter" });

use exports::hooklatch::filter::handler::{Description, Event, Guest, Outcome};
use hooklatch::filter::types::{BodyNeed, Changes, Emission, Header, HostError, Rejection, Response};
use hooklatch::filter::{clock, config, crypto, http, kv, log, metrics, random};

struct Hostile;
export!(Hostile);

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Guest for Hostile {
    fn describe() -> Description {
        let config = config::get();
        match setting(&config, "describe").as_str() {
            "loop" => spin(),
            "panic" => fail(),
            _ => {}
        }
        let schema = setting(&config, "schema");
        Description {
            name: match setting(&config, "describe").as_str() {
                "long-name" => "n".repeat(100_000),
                _ => "hostile".into(),
            },
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Misbehaves as its config says.".into(),
            body: if setting(&config, "body") == "none" { BodyNeed::None } else { BodyNeed::Full },
            stateless: setting(&config, "stateless") == "yes",
            config_schema: match schema.as_str() {
                "" => None,
                "closed" => Some(r#"{"type":"object","properties":{"schema":{},"do":{"enum":["pass"]}},"additionalProperties":false}"#.into()),
                other => Some(other.into()),
            },
        }
    }

    fn handle(event: Event) -> Result<Outcome, String> {
        let config = config::get();
        let what = setting(&config, "do");
        // A `do` of `by-body` lets one loaded filter behave differently from call to call.
        let what = if what == "by-body" { String::from_utf8_lossy(&event.body).into_owned() } else { what };
        let (what, argument) = what.split_once(':').unwrap_or((&what, ""));
        act(what, argument, event)
    }
}

fn act(what: &str, argument: &str, event: Event) -> Result<Outcome, String> {
    match what {
        "" | "pass" => pass(),
        "body-length" => annotate("length", &event.body.len().to_string()),
        "echo" => with(|changes| {
            changes.annotations = vec![
                ("id".into(), event.id.clone()),
                ("type".into(), event.event_type.clone().unwrap_or_default()),
                ("ip".into(), event.client_ip.clone()),
                ("path".into(), event.path.clone()),
            ];
            for header in &event.headers {
                changes.annotations.push((format!("header {}", header.name), header.value.clone()));
            }
        }),
        "append" => with(|changes| changes.body = Some([&event.body[..], argument.as_bytes()].concat())),
        "empty-body" => with(|changes| changes.body = Some(Vec::new())),
        "set-header" => with(|changes| {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            changes.set_headers = vec![Header { name: name.into(), value: value.into() }];
        }),
        "remove-header" => with(|changes| changes.remove_headers = vec![argument.into()]),
        "retype" => with(|changes| changes.event_type = Some(argument.into())),
        "order" => with(|changes| changes.order_key = Some(argument.into())),
        "destinations" => with(|changes| {
            changes.destinations = Some(argument.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect());
        }),

        "drop" => Ok(Outcome::Drop(Some("not wanted".into()))),
        "reject" => Ok(Outcome::Reject(Rejection { status: number(argument) as u16, reason: "no".into() })),
        "respond" => Ok(Outcome::Respond(Response {
            status: number(argument) as u16,
            headers: vec![Header { name: "content-type".into(), value: "text/plain".into() }],
            body: b"hello".to_vec(),
        })),
        "respond-header" => {
            Ok(Outcome::Respond(Response { status: 200, headers: vec![Header { name: argument.into(), value: "1".into() }], body: Vec::new() }))
        }
        "emit" => Ok(Outcome::Emit((0..number(argument)).map(|n| Emission { suffix: n.to_string(), changes: nothing() }).collect())),
        "err" => Err("the filter says so".into()),
        "long-err" => Err("x".repeat(1_000_000)),

        "loop" => spin(),
        "hoard" => loop {
            KEPT.with_borrow_mut(|kept| kept.push(black_box(vec![1_u8; 1 << 20])));
        },
        "panic" => fail(),
        "trap" => unreachable(),
        "recurse" => Err(recurse(1).to_string()),
        "output" => with(|changes| changes.body = Some(vec![b'x'; number(argument)])),
        "headers" => with(|changes| {
            changes.set_headers = (0..number(argument)).map(|n| Header { name: format!("x-{n}"), value: "1".into() }).collect();
        }),
        "removals" => with(|changes| changes.remove_headers = vec![String::new(); number(argument)]),
        "annotations" => with(|changes| {
            changes.annotations = (0..number(argument)).map(|n| (n.to_string(), "1".into())).collect();
        }),
        "destination-list" => with(|changes| changes.destinations = Some(vec!["bus".into(); number(argument)])),
        "long-string" => with(|changes| changes.event_type = Some("x".repeat(number(argument)))),
        "log" => {
            for n in 0..number(argument) {
                log::log(log::Level::Info, &format!("line {n} {}", "x".repeat(10_000)));
            }
            pass()
        }
        "metrics" => {
            for n in 0..number(argument) {
                metrics::count(&format!("name_{n}"), 1);
            }
            metrics::count("Not A Name", 1);
            metrics::count("calls", 2);
            metrics::observe("size", 0.5);
            pass()
        }

        "clock" => annotate("now", &clock::now_ms().to_string()),
        "random" => answer(random::bytes(number(argument) as u32).map(|bytes| bytes.len().to_string())),
        "digest" => answer(crypto::digest(crypto::Algorithm::Sha256, argument.as_bytes()).map(|it| hex(&it))),
        "hmac" => answer(crypto::hmac(crypto::Algorithm::Sha256, argument, b"data").map(|it| hex(&it))),
        "verify" => answer(
            crypto::hmac(crypto::Algorithm::Sha1, argument, b"data")
                .and_then(|mac| crypto::verify(crypto::Algorithm::Sha1, argument, b"data", &mac).map(|it| it.to_string())),
        ),
        "http" => answer(
            http::send(&http::Request { method: "GET".into(), url: "https://example.com/".into(), headers: Vec::new(), body: Vec::new(), timeout_ms: None })
                .map(|response| response.status.to_string()),
        ),
        "kv-get" => answer(kv::get(argument).map(|value| format!("{value:?}"))),
        "kv-set" => answer(kv::set(argument, b"value", None).map(|()| "set".into())),
        "kv-delete" => answer(kv::delete(argument).map(|there| there.to_string())),
        "kv-add" => answer(kv::increment(argument, 1, Some(60_000)).map(|sum| sum.to_string())),
        "kv-swap" => answer(kv::compare_and_set(argument, None, b"first", None).map(|done| done.to_string())),
        "kv-fill" => {
            let value = vec![0_u8; number(argument)];
            for n in 0_u32.. {
                if let Err(why) = kv::set(&n.to_string(), &value, None) {
                    return annotate("answer", &text(&why));
                }
            }
            pass()
        }

        // What one call leaves in its memory, and a search for it in a later one. The text is put together only
        // here, so that it does not stand in the component's own data.
        "remember" => {
            let secret = secret();
            KEPT.with_borrow_mut(|kept| kept.extend((0..200).map(|_| secret.repeat(100))));
            pass()
        }
        "look" => annotate("found", &found(&secret()).to_string()),
        other => Err(format!("no such behaviour: {other}")),
    }
}

/// The text of a member of the flat JSON object `config`; enough for what the tests write.
fn setting(config: &str, name: &str) -> String {
    let Some((_, rest)) = config.split_once(&format!("\"{name}\":")) else { return String::new() };
    let Some(rest) = rest.trim_start().strip_prefix('"') else { return String::new() };
    let mut value = String::new();
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    value
}

fn number(argument: &str) -> usize {
    argument.parse().unwrap_or(0)
}

fn nothing() -> Changes {
    Changes { body: None, set_headers: Vec::new(), remove_headers: Vec::new(), destinations: None, order_key: None, event_type: None, annotations: Vec::new() }
}

fn pass() -> Result<Outcome, String> {
    Ok(Outcome::Pass(nothing()))
}

fn with(change: impl FnOnce(&mut Changes)) -> Result<Outcome, String> {
    let mut changes = nothing();
    change(&mut changes);
    Ok(Outcome::Pass(changes))
}

fn annotate(name: &str, value: &str) -> Result<Outcome, String> {
    with(|changes| changes.annotations = vec![(name.into(), value.into())])
}

fn answer(result: Result<String, HostError>) -> Result<Outcome, String> {
    annotate("answer", &result.unwrap_or_else(|why| text(&why)))
}

fn text(why: &HostError) -> String {
    match why {
        HostError::NotGranted(text) => format!("not granted: {text}"),
        HostError::Invalid(text) => format!("invalid: {text}"),
        HostError::Full(text) => format!("full: {text}"),
        HostError::Unavailable(text) => format!("unavailable: {text}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[inline(never)]
fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

#[inline(never)]
fn fail() -> ! {
    panic!("the filter panics on purpose")
}

#[inline(never)]
fn unreachable() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "that is the behaviour")]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1)) + depth)
}

fn secret() -> Vec<u8> {
    b"tiuQ mI terces".iter().rev().copied().collect()
}

/// Counts `needle` in the instance's whole memory, less the copies that this search itself makes.
fn found(needle: &[u8]) -> usize {
    #[cfg(target_arch = "wasm32")]
    {
        let own = needle.as_ptr() as usize;
        let end = core::arch::wasm32::memory_size(0) * 65536;
        let mut count = 0;
        let mut at = 1;
        while at + needle.len() <= end {
            let same = at != own
                && (0..needle.len()).all(|n| {
                    // SAFETY: `at + n` is below the end of the linear memory, and every byte there may be read.
                    let byte = unsafe { core::ptr::read_volatile((at + n) as *const u8) };
                    byte == needle[n]
                });
            count += usize::from(same);
            at += 1;
        }
        count
    }
    #[cfg(not(target_arch = "wasm32"))]
    needle.len()
}
