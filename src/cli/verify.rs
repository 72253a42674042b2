//! `hooklatch verify`: judges one captured request, or case files, without a socket.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::{BAD, PolicyArgs, USAGE, complain, say, send};
use crate::{
    capture::{self, Captured, Reading},
    clock::Clock,
    config,
    event::Chunks,
    keys::{Document, Given, Source as KeySource},
    problem::Source,
    secret::Secret,
    section::{Inputs, Reader},
    verify::{
        Catalogue, Definition, Means,
        cases::{self, Expect, Request},
        explain::{Explanation, Other, Question, explain},
        public_key::{self, Trusted},
    },
};

/// Judge a captured request, a refused event of a running gate, or case files
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch verify github --request captured.http --secret env:GITHUB_SECRET
  hooklatch verify stripe --request - --secret file:stripe.secret --now 2026-11-24T10:00:00Z < captured.http
  hooklatch verify twilio --request browser.har --entry 3 --secret env:TWILIO_TOKEN --url https://hooks.example.com/sms
  hooklatch verify shopify --request curl.txt --secret env:SHOPIFY_SECRET
  hooklatch verify --config hooklatch.toml --route github --request captured.http
  hooklatch verify --event 01938f3e-7b1c-7000-8000-0123456789ab --admin http://127.0.0.1:9900 --token env:HOOKLATCH_ADMIN_TOKEN
  hooklatch verify --cases tests/vectors/github.json

A request file is raw HTTP (the request line, the headers, an empty line, the body byte for byte), a HAR file, or a curl command.
A case's verdict is a JSON line: {\"id\",\"expect\",\"got\",\"reason\"}. docs/verify.md lists what is found out.
Exit code 0: verified; 1: not verified, or a case went wrong; 2: wrong usage.")]
pub(crate) struct VerifyArgs {
    /// The provider whose request this is
    #[arg(required_unless_present_any = ["cases", "event", "route"])]
    provider: Option<String>,
    /// A captured request: raw HTTP, a HAR file or a curl command; `-` for standard input
    #[arg(long, value_name = "FILE", required_unless_present_any = ["cases", "event"], conflicts_with_all = ["cases", "event"])]
    request: Option<PathBuf>,
    /// The entry of a HAR file, from 1
    #[arg(long, value_name = "N", requires = "request")]
    entry: Option<usize>,
    /// `env:NAME`, `file:PATH` or `literal:TEXT`; several during a rotation
    #[arg(long = "secret", value_name = "SECRET", conflicts_with = "cases")]
    secrets: Vec<String>,
    /// What the provider needs configured beside the secret
    #[arg(long = "param", value_name = "NAME=VALUE", conflicts_with = "cases")]
    params: Vec<String>,
    /// The sender's public key or key set: a file of PEM, JWK or JWKS, or the key's text
    #[arg(long = "public-key", value_name = "FILE", conflicts_with = "cases")]
    public_key: Option<String>,
    /// The URL that the provider was given; the capture's own, or https and its Host header, if absent
    #[arg(long, value_name = "URL", alias = "public-url", conflicts_with = "cases")]
    url: Option<String>,
    /// When to judge it: Unix seconds or RFC 3339; now, if absent
    #[arg(long, value_name = "TIME", alias = "at", conflicts_with = "cases")]
    now: Option<String>,
    /// Verify as this route of the policy does, and try the secrets of its other routes
    #[arg(long, value_name = "NAME", conflicts_with_all = ["cases", "event", "provider"])]
    route: Option<String>,
    /// An event of a running gate, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["cases", "provider", "secrets", "params", "public_key", "url", "now"])]
    event: Option<String>,
    /// The gate's admin address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9900", requires = "event")]
    admin: String,
    /// The admin token: `env:NAME` or `file:PATH`
    #[arg(long, value_name = "SECRET", default_value = "env:HOOKLATCH_ADMIN_TOKEN", requires = "event")]
    token: String,
    /// A CA file to trust for the admin address instead of the system's
    #[arg(long, value_name = "FILE", requires = "event")]
    cacert: Option<PathBuf>,
    /// Files of cases, each with its own secrets and time
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "provider")]
    cases: Vec<PathBuf>,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &VerifyArgs) -> ExitCode {
    let outcome = if let Some(id) = &args.event {
        asked(id, args)
    } else if args.route.is_some() {
        by_route(policy, args)
    } else {
        match catalogue(policy) {
            Ok(catalogue) if args.cases.is_empty() => one(&catalogue, args),
            Ok(catalogue) => all(&catalogue, &args.cases),
            Err(code) => return code,
        }
    };
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
    let (public_keys, keys) = public_keys(args)?;
    if secrets.is_empty() && definition.needs_secret(keys.is_some()) {
        return Err(format!("`{name}` is verified with a secret: name it with --secret env:NAME or --secret file:PATH"));
    }
    let params = pairs(&args.params, "--param")?;
    let means = Means { public_keys: &public_keys, keys: keys.as_ref(), ..Means::new(&secrets, &params) };
    judge(args, catalogue, definition, means, &[], None)
}

/// Verifies as a route of the policy does.
fn by_route(policy: &PolicyArgs, args: &VerifyArgs) -> Result<bool, String> {
    let path = policy.find()?;
    let read = config::load(&path)?;
    let Some(config) = read.config else {
        return Err(format!("{} has errors: `hooklatch check --config {}` says which", path.display(), path.display()));
    };
    let name = args.route.as_deref().unwrap_or_default();
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    let route =
        config.routes.iter().find(|route| route.name == name).ok_or_else(|| format!("there is no route `{name}`; the policy has {}", names.join(", ")))?;
    let definition = route.verify.definition().ok_or_else(|| format!("the route `{name}` has `verify = \"none\"`: anybody may send"))?;
    let given = secrets(&args.secrets)?;
    let (public_keys, keys) = public_keys(args)?;
    let params = pairs(&args.params, "--param")?;
    let mut means = route.verify.means();
    if !given.is_empty() {
        means.secrets = &given;
    }
    if !params.is_empty() {
        means.params = &params;
    }
    if !public_keys.is_empty() {
        means.public_keys = &public_keys;
    }
    means.keys = keys.as_ref().or(means.keys);
    let others: Vec<Other> = config
        .routes
        .iter()
        .filter(|other| other.name != name && !other.verify.is_none())
        .map(|other| Other { what: format!("the route `{}`", other.name), secrets: other.verify.means().secrets.to_vec() })
        .collect();
    judge(args, &config.catalogue, definition, means, &others, config.public_url.as_deref())
}

fn judge(
    args: &VerifyArgs,
    catalogue: &Catalogue,
    definition: &std::sync::Arc<Definition>,
    means: Means<'_>,
    others: &[Other],
    public_url: Option<&str>,
) -> Result<bool, String> {
    let path = args.request.as_deref().unwrap_or(Path::new("-"));
    let bytes = read(path)?;
    let base = path.parent().filter(|_| path != Path::new("-")).unwrap_or(Path::new(""));
    let file = |name: &str| {
        // As the command's own directory first, then beside the file that holds the command.
        fs::read(name).or_else(|_| fs::read(base.join(name))).map_err(|why| format!("{name}, which the command names, cannot be read: {why}"))
    };
    let captured = capture::read(&bytes, &Reading { entry: args.entry, url: args.url.as_deref().or(public_url), file: &file })?;
    let now_ms = match &args.now {
        Some(text) => time(text)?,
        None => Clock::system().now().wall_ms,
    };
    let question = Question { catalogue, definition, means, others, request: &captured.request, now_ms, knows_url: captured.knows_url, live: false };
    let explanation = explain(&question)?;
    let good = explanation.verdict.is_ok();
    let told = told(&definition.name, &captured, &explanation);
    if args.json {
        say(&format!("{told}"));
    } else {
        show(&told);
    }
    Ok(good)
}

/// The explanation as it is printed, and as `--json` writes it.
fn told(provider: &str, captured: &Captured, explanation: &Explanation) -> Value {
    let mut told = explanation.as_json();
    let request = &captured.request;
    told["provider"] = provider.into();
    told["request"] = json!({
        "form": captured.form.name(), "method": request.method.as_str(), "url": format!("{}{}", request.base, request.target),
        "headers": request.headers.len(), "body_bytes": request.body.len(), "body_sha256": capture::sha256(&request.body), "notes": captured.notes,
    });
    told
}

/// Prints an explanation for people; what a gate tells has the same form.
fn show(told: &Value) {
    let bold = anstyle::Style::new().bold();
    let dim = anstyle::Style::new().dimmed();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let line = |name: &str, value: &str| say(&format!("  {dim}{name:<13}{dim:#} {value}"));
    if told["verdict"] == "accept" {
        let by = if told["secret"].is_null() { String::new() } else { format!(", by secret {}", text(&told["secret"])) };
        say(&format!("{bold}verified{bold:#}: {}{by}", text(&told["provider"])));
        line("proves", &text(&told["proves"]));
        line("replay key", &text(&told["replay_key"]));
    } else {
        say(&format!("{bold}not verified{bold:#}: {} ({})", text(&told["detail"]), text(&told["reason"])));
    }
    let request = &told["request"];
    if request.is_object() {
        let form = request["form"].as_str().map(|form| format!(", read from {form}")).unwrap_or_default();
        line("request", &format!("{} {}{form}", text(&request["method"]), text(&request["url"])));
        line("body", &format!("{} bytes, SHA-256 {}", text(&request["body_bytes"]), text(&request["body_sha256"])));
    }
    if told["scheme"].as_str().is_some_and(|scheme| !scheme.is_empty()) {
        line("scheme", &text(&told["scheme"]));
    }
    for read in told["read"].as_array().into_iter().flatten() {
        line(read["what"].as_str().unwrap_or_default(), &text(&read["where"]));
    }
    for signed in told["signed"].as_array().into_iter().flatten() {
        line("signed", &text(&signed["text"]));
        let digest = signed["sha256"].as_str().map_or_else(|| "the secret is part of it".to_owned(), |digest| format!("SHA-256 {digest}"));
        line("", &format!("{} bytes, {digest}", text(&signed["bytes"])));
    }
    let findings: Vec<&Value> = told["findings"].as_array().into_iter().flatten().collect();
    if !findings.is_empty() {
        let title = match (told["verdict"] == "accept", findings.iter().any(|finding| finding["certain"] == true)) {
            (true, _) => "Note:",
            (false, true) => "What is wrong:",
            (false, false) => "What may be wrong:",
        };
        say(&format!("\n{bold}{title}{bold:#}"));
        for finding in findings {
            let cause = if told["verdict"] == "accept" { String::new() } else { format!(" {dim}({}){dim:#}", text(&finding["cause"])) };
            say(&format!("  - {}{cause}", text(&finding["text"])));
        }
    }
    let notes: Vec<&Value> = request["notes"].as_array().into_iter().chain(told["notes"].as_array()).flatten().collect();
    if !notes.is_empty() {
        say(&format!("\n{bold}Of the capture:{bold:#}"));
        notes.into_iter().for_each(|note| say(&format!("  - {}", text(note))));
    }
}

/// Asks a running gate what it knows of an event.
fn asked(id: &str, args: &VerifyArgs) -> Result<bool, String> {
    if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(format!("`{}` is not an event's id", id.escape_debug()));
    }
    let (base, _) = cases::split_url(&args.admin).ok_or_else(|| format!("--admin {} is not a URL: write it like http://127.0.0.1:9900", args.admin))?;
    let token = secret(&args.token)?;
    let mut headers = HeaderMap::new();
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat()).map_err(|_| "the admin token cannot stand in a header")?;
    value.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, value);
    let target = format!("/api/v1/explanations/{id}");
    let request = Request { method: Method::GET, base: base.to_owned(), target, headers, body: Chunks::default() };
    let tls = send::tls(args.cacert.as_deref(), false, base.starts_with("https:"))?;
    let (status, body) = send::once(&request, tls, Duration::from_secs(30)).map_err(|why| format!("the gate at {base}: {why}"))?;
    let told: Value = serde_json::from_slice(&body)
        .map_err(|_| format!("the gate at {base} answered {status} with something that is no JSON: is that its admin address?"))?;
    match status.as_u16() {
        200 => {}
        401 => return Err(format!("the gate at {base} does not take this token")),
        _ => return Err(format!("the gate at {base}: {}", told["error"].as_str().unwrap_or("it answered with an error"))),
    }
    if args.json {
        say(&format!("{told}"));
    } else {
        show(&told);
    }
    Ok(told["verdict"] == "accept")
}

/// The keys of --public-key: those of schemes that sign by a key pair, and what tokens with claims are verified by.
fn public_keys(args: &VerifyArgs) -> Result<(Vec<Trusted>, Option<Given>), String> {
    let Some(text) = args.public_key.as_deref() else { return Ok((Vec::new(), None)) };
    let bytes = match fs::read(text) {
        Ok(bytes) => bytes,
        Err(why) if why.kind() == io::ErrorKind::NotFound => text.as_bytes().to_vec(),
        Err(why) => return Err(format!("--public-key {text} cannot be read: {why}")),
    };
    let wrong = |why: String| format!("--public-key: there is no file of that name, and it is no key: {why}");
    let document = match serde_json::from_slice::<Value>(&bytes) {
        Ok(_) => Document::read(crate::keys::Form::Set, None, "", &bytes).map_err(wrong)?,
        Err(_) => Document::Keys(public_key::parse(&bytes).map_err(wrong)?),
    };
    let trust = |(at, key): (usize, &public_key::PublicKey)| Trusted { label: format!("#{}", at + 1).into(), not_after: None, key: key.clone() };
    let trusted = document.keys().iter().enumerate().take(16).map(trust).collect();
    Ok((trusted, Some(Given::Fixed(KeySource::fixed([(String::new(), document)])))))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let most = capture::LIMIT as u64 + 1; // one more than may be, so that too much is noticed
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        return io::stdin().take(most).read_to_end(&mut bytes).map(|_| bytes).map_err(|why| format!("standard input cannot be read: {why}"));
    }
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|why| format!("{} cannot be read: {why}", path.display()))
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
        return seconds.checked_mul(1000).ok_or_else(|| format!("--now {text} is out of range"));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    at.map(|at| at.unix_timestamp() * 1000).map_err(|_| format!("--now {text}: write it in Unix seconds, or like 2026-11-24T10:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(time("1760000000"), Ok(1_760_000_000_000));
        assert_eq!(time("2025-10-09T08:53:20Z"), Ok(1_760_000_000_000));
        assert!(time("soon").is_err());
    }
}
