//! `hooklatch verify`: judges one captured request, or case files, without a socket.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::json;

use super::{BAD, PolicyArgs, USAGE, complain, say};
use crate::{
    clock::Clock,
    event::Chunks,
    problem::Source,
    secret::Secret,
    section::{Inputs, Reader},
    verify::{
        Catalogue,
        cases::{self, Expect, Request},
        explain::{Question, explain},
    },
};

/// Judge a captured request or case files offline
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch verify github --request captured.http --secret env:GITHUB_SECRET
  hooklatch verify stripe --request - --secret file:stripe.secret --at 2026-11-24T10:00:00Z < captured.http
  hooklatch verify --cases tests/vectors/github.json

A request file is raw HTTP: the request line, the headers, an empty line, the body byte for byte.
A case's verdict is a JSON line: {\"id\",\"expect\",\"got\",\"reason\"}. Exit code 1: not verified, or a case went wrong.")]
pub(crate) struct VerifyArgs {
    /// The provider whose requests these are
    #[arg(required_unless_present = "cases")]
    provider: Option<String>,
    /// A captured request, raw HTTP; `-` for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "cases", conflicts_with = "cases")]
    request: Option<PathBuf>,
    /// `env:NAME`, `file:PATH` or `literal:TEXT`; several during a rotation
    #[arg(long = "secret", value_name = "SECRET", required_unless_present = "cases", conflicts_with = "cases")]
    secrets: Vec<String>,
    /// What the provider needs configured beside the secret
    #[arg(long = "param", value_name = "NAME=VALUE", conflicts_with = "cases")]
    params: Vec<String>,
    /// When to judge it: Unix seconds or RFC 3339; now, if absent
    #[arg(long, value_name = "TIME", conflicts_with = "cases")]
    at: Option<String>,
    /// Scheme and host that the provider was given; https and the Host header, if absent
    #[arg(long, value_name = "URL", conflicts_with = "cases")]
    public_url: Option<String>,
    /// Files of cases, each with its own secrets and time
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "provider")]
    cases: Vec<PathBuf>,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &VerifyArgs) -> ExitCode {
    let catalogue = match catalogue(policy) {
        Ok(catalogue) => catalogue,
        Err(code) => return code,
    };
    let outcome = if args.cases.is_empty() { one(&catalogue, args) } else { all(&catalogue, &args.cases) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(BAD),
        Err(why) => {
            complain(&why);
            ExitCode::from(USAGE)
        }
    }
}

/// The shipped presets, and a policy's own providers where one is named.
pub(super) fn catalogue(policy: &PolicyArgs) -> Result<Catalogue, ExitCode> {
    let Some(path) = &policy.config else { return Ok(Catalogue::shipped()) };
    let text = fs::read_to_string(path).map_err(|why| {
        complain(&format!("{} cannot be read: {why}", path.display()));
        ExitCode::from(USAGE)
    })?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let reader = Reader::new(Source { name: path.display().to_string(), text }, Inputs::system(base, PathBuf::new()));
    let table = reader.parse();
    let catalogue = Catalogue::read(&reader.root(&table));
    if reader.failed() {
        anstream::eprint!("{}", reader.source.render(&reader.problems(), false));
        return Err(ExitCode::from(USAGE));
    }
    Ok(catalogue)
}

fn all(catalogue: &Catalogue, files: &[PathBuf]) -> Result<bool, String> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut judged, mut right) = (0_usize, 0_usize);
    for path in files {
        let text = fs::read(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))?;
        let cases = cases::read(&text).map_err(|why| format!("{} is not a file of cases: {why}", path.display()))?;
        for case in cases {
            let (got, reason) = match case.judge(catalogue) {
                Ok(Ok(_)) => (Expect::Accept.code(), "verified".to_owned()),
                Ok(Err(why)) => (Expect::Reject.code(), why.reason.code().to_owned()),
                Err(why) => ("error", why.0),
            };
            judged += 1;
            right += usize::from(got == case.expect.code());
            let line = json!({ "id": case.id, "expect": case.expect.code(), "got": got, "reason": reason });
            writeln!(out, "{line}").map_err(|why| format!("the verdicts cannot be written: {why}"))?;
        }
    }
    out.flush().map_err(|why| format!("the verdicts cannot be written: {why}"))?;
    eprintln!("{right} of {judged} cases are right");
    Ok(right == judged)
}

fn one(catalogue: &Catalogue, args: &VerifyArgs) -> Result<bool, String> {
    let name = args.provider.as_deref().unwrap_or_default();
    let definition = catalogue.definition(name).ok_or_else(|| format!("there is no provider `{name}`; {}", catalogue.hint(name)))?;
    let secrets = secrets(&args.secrets)?;
    let params = pairs(&args.params, "--param")?;
    let path = args.request.as_deref().unwrap_or(Path::new("-"));
    let (request, mut notes) = captured(&read(path)?, args.public_url.as_deref())?;
    let now_ms = match &args.at {
        Some(text) => time(text)?,
        None => Clock::system().now().wall_ms,
    };
    let explanation = explain(&Question { catalogue, definition, secrets: &secrets, params: &params, request: &request, now_ms })?;
    notes.extend(explanation.findings);
    let good = explanation.verdict.is_ok();
    if args.json {
        let line = match &explanation.verdict {
            Ok(signed) => json!({
                "verdict": "accept", "proves": signed.verification.code(), "secret": signed.secret.as_deref(), "delivery_id": signed.delivery_id, "event_type": signed.event_type,
                "timestamp_ms": signed.timestamp_ms, "replay_key": signed.replay.map(|key| key.to_string()), "notes": notes,
            }),
            Err(why) => json!({ "verdict": "reject", "reason": why.reason.code(), "detail": why.detail, "notes": notes }),
        };
        say(&format!("{line}"));
        return Ok(good);
    }
    let bold = anstyle::Style::new().bold();
    match &explanation.verdict {
        Ok(signed) => {
            say(&format!("{bold}verified{bold:#}: {name}, by secret {}", signed.secret.as_deref().unwrap_or("-")));
            say(&format!("  proves       {}", signed.verification.code()));
            say(&format!("  delivery id  {}", signed.delivery_id.as_deref().unwrap_or("-")));
            say(&format!("  event type   {}", signed.event_type.as_deref().unwrap_or("-")));
            say(&format!("  replay key   {}", signed.replay.map_or_else(|| "-".to_owned(), |key| key.to_string())));
        }
        Err(why) => say(&format!("{bold}not verified{bold:#}: {} ({})", why.detail, why.reason.code())),
    }
    match (good, notes.is_empty()) {
        (_, false) => notes.iter().for_each(|note| say(&format!("  - {note}"))),
        (false, true) => say("  - none of the usual mistakes fits: is it the secret of this very endpoint, and are these the bytes that were sent?"),
        (true, true) => {}
    }
    Ok(good)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        return io::stdin().read_to_end(&mut bytes).map(|_| bytes).map_err(|why| format!("standard input cannot be read: {why}"));
    }
    fs::read(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))
}

/// Secrets of the command line, in the forms of the policy file.
pub(super) fn secrets(texts: &[String]) -> Result<Vec<Secret>, String> {
    texts.iter().enumerate().map(|(at, text)| secret(text).map(|bytes| Secret::new(format!("#{}", at + 1), bytes, None))).collect()
}

fn secret(text: &str) -> Result<Vec<u8>, String> {
    let bytes = match text.split_once(':') {
        Some(("env", name)) => std::env::var(name).map_err(|_| format!("the environment variable {name} is not set"))?.into_bytes(),
        Some(("file", name)) => {
            let mut bytes = fs::read(name).map_err(|why| format!("the secret's file {name} cannot be read: {why}"))?;
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
                if bytes.last() == Some(&b'\r') {
                    bytes.pop();
                }
            }
            bytes
        }
        Some(("literal", value)) => value.as_bytes().to_vec(),
        _ => return Err("a secret is `env:NAME`, `file:PATH` or `literal:TEXT`".to_owned()),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("the secret is empty or blank".to_owned());
    }
    Ok(bytes)
}

pub(super) fn pairs(texts: &[String], option: &str) -> Result<BTreeMap<String, String>, String> {
    let split = |text: &String| {
        text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| format!("{option} {text}: write it like NAME=VALUE"))
    };
    texts.iter().map(split).collect()
}

/// Unix seconds or RFC 3339, as Unix milliseconds.
pub(super) fn time(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(1000).ok_or_else(|| format!("--at {text} is out of range"));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    at.map(|at| at.unix_timestamp() * 1000).map_err(|_| format!("--at {text}: write it in Unix seconds, or like 2026-11-24T10:00:00Z"))
}

/// A raw HTTP request, and what is odd about how it was captured.
fn captured(bytes: &[u8], public_url: Option<&str>) -> Result<(Request, Vec<String>), String> {
    let mut notes = Vec::new();
    let mut rest = bytes;
    let mut line = || -> Option<&[u8]> {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let (line, after) = rest.split_at(end);
        rest = &after[1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    };
    let first = line().and_then(|line| std::str::from_utf8(line).ok()).ok_or("the request file has no request line such as `POST /hooks HTTP/1.1`")?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{first}` is not a request line"))?;
    let mut headers = HeaderMap::new();
    loop {
        let line = line().ok_or("the headers do not end: an empty line is due before the body")?;
        if line.is_empty() {
            break;
        }
        let at = line.iter().position(|b| *b == b':').ok_or_else(|| format!("`{}` is not a header", String::from_utf8_lossy(line)))?;
        let name = HeaderName::from_bytes(&line[..at]).map_err(|_| format!("`{}` is not the name of a header", String::from_utf8_lossy(&line[..at])))?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).map_err(|_| format!("the value of `{name}` cannot stand in a header"))?;
        headers.append(name, value);
    }
    let mut body = rest;
    if headers.get(header::TRANSFER_ENCODING).is_some() {
        notes.push("the request was sent in chunks; the body of the file is taken as the bytes without the chunks' framing".to_owned());
    } else if let Some(length) = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok()) {
        match body.len().checked_sub(length) {
            Some(0) => {}
            Some(more) => {
                notes.push(format!("the file has {more} bytes after the body's Content-Length; they are left out"));
                body = &body[..length];
            }
            None => notes.push(format!("the file has {} bytes of a body of {length}: it was cut, or its line ends were changed", body.len())),
        }
    }
    let (own_base, target) = match cases::split_url(target) {
        Some((base, target)) => (Some(base.to_owned()), target),
        None => (None, target),
    };
    let base = match (public_url, own_base) {
        (Some(url), _) => cases::split_url(url).map(|(base, _)| base.to_owned()).ok_or_else(|| format!("--public-url {url} is not a URL"))?,
        (None, Some(base)) => base,
        (None, None) => format!("https://{}", headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("localhost")),
    };
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((Request { method, base, target, headers, body: Chunks::from(Bytes::copy_from_slice(body)) }, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_requests_are_read_byte_for_byte() {
        let (request, notes) = captured(b"POST /a?b=1 HTTP/1.1\r\nHost: h\r\nX-A:  v \r\nContent-Length: 3\r\n\r\na\r\n", None).expect("a request");
        assert_eq!((&*request.base, &*request.target, request.method), ("https://h", "/a?b=1", Method::POST));
        assert_eq!((request.headers["x-a"].as_bytes(), &request.body.to_bytes()[..]), (&b"v"[..], &b"a\r\n"[..]));
        assert!(notes.is_empty());
        let (request, notes) = captured(b"POST / HTTP/1.1\nHost: h\nContent-Length: 2\n\n{}\n", Some("http://x:8/y")).expect("a request");
        assert_eq!((&*request.base, &request.body.to_bytes()[..], notes.len()), ("http://x:8", &b"{}"[..], 1));
        for bad in [&b""[..], b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nnonsense\r\n\r\n", b"\xff\n\n", b"POST / HTTP/1.1\r\nA B: c\r\n\r\n"] {
            assert!(captured(bad, None).is_err());
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(time("1760000000"), Ok(1_760_000_000_000));
        assert_eq!(time("2025-10-09T08:53:20Z"), Ok(1_760_000_000_000));
        assert!(time("soon").is_err());
    }
}
