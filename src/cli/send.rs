//! `hooklatch send`: signs payloads as a provider does, sends them, and says whether the answers were the ones that are due.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use uuid::Uuid;

use super::{BAD, PolicyArgs, USAGE, complain, say, verify};
use crate::{
    clock::Clock,
    event::{Chunks, Verification},
    secret::Secret,
    verify::{
        Definition, Means, Plan,
        cases::{self, Request},
        private_key::PrivateKey,
        public_key::Trusted,
        sign::{Wishes, sign},
    },
};

/// The most of an answer that is read and shown, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// The most requests of one run.
const MOST: u32 = 10_000_000;

/// Sign a payload as a provider does and send it
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --data push.json --event push
  hooklatch send stripe --url https://localhost:8443/stripe --secret literal:whsec_test --insecure
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --count 1000 --rate 50/s --concurrency 8
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --tamper signature
  hooklatch send stripe --url https://localhost:8443/stripe --secret env:STRIPE_SECRET --replay
  hooklatch send discord --url https://localhost:8443/discord --key ed25519.pem
  hooklatch send slack --url https://hooks.example.com/slack --secret file:slack.secret --dry-run > captured.http

What is due: 2xx; with --tamper a refusal (4xx); for the second copy of --replay a stored answer or a refusal, where the provider's
requests can be told apart. With --forge the exit code is that of the answer, 2xx or not.
Exit code 0: every answer was the one that is due; 1: one was not, or nobody answered; 2: wrong usage.")]
pub(crate) struct SendArgs {
    /// The provider to sign as
    provider: String,
    /// Where to send it
    #[arg(long)]
    url: String,
    /// `env:NAME`, `file:PATH` or `literal:TEXT`
    #[arg(long, value_name = "SECRET", required_unless_present_any = ["secret_env", "key"])]
    secret: Option<String>,
    /// The environment variable that holds the secret; the same as `--secret env:NAME`
    #[arg(long, value_name = "NAME", conflicts_with = "secret")]
    secret_env: Option<String>,
    /// A private key that you made, for providers that sign by a key pair: PEM, a JWK, or an Ed25519 seed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["secret", "secret_env"])]
    key: Option<PathBuf>,
    /// What the provider needs configured beside the secret
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// The payload: a file, `-` for standard input, or the text itself; a small one is made up for every request, if absent
    #[arg(long, visible_alias = "body", value_name = "FILE|-|TEXT")]
    data: Option<String>,
    /// The event type, written where the provider writes it
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// The delivery id; a new one for every request, if absent
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The provider's form, where it has several
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Another item of the signature header, where the provider has one
    #[arg(long = "field", value_name = "NAME=VALUE")]
    fields: Vec<String>,
    /// Another header
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Content type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    #[arg(long, default_value = "POST", value_name = "METHOD")]
    method: String,
    /// The signed time: Unix seconds or RFC 3339; now, if absent
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// The URL that the provider was given, where it is not --url: what is signed by providers that sign the URL
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// How many requests, each signed afresh
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    count: u32,
    /// How many requests are begun in a time, such as `50/s` or `600/m`; as many as go, if absent
    #[arg(long, value_name = "N/UNIT")]
    rate: Option<String>,
    /// How many requests are under way at once, each on a connection of its own that is kept
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Spoil every request after it was signed: it has to be refused
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "forge")]
    tamper: Option<Tamper>,
    /// Send every request twice, the same bytes: the second is a copy
    #[arg(long, conflicts_with_all = ["tamper", "forge"])]
    replay: bool,
    /// Send what must be refused: the payload is changed after it was signed, or the credential where nothing signs the payload
    #[arg(long)]
    forge: bool,
    /// A CA file to trust instead of the system's
    #[arg(long = "cacert", visible_alias = "ca", value_name = "FILE", conflicts_with = "insecure")]
    cacert: Option<PathBuf>,
    /// Believe any certificate
    #[arg(long)]
    insecure: bool,
    /// Seconds to wait for each answer
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
    /// Print the request as raw HTTP instead of sending it
    #[arg(long)]
    dry_run: bool,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

/// What is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tamper {
    /// One letter or digit of the payload
    Body,
    /// The signature or credential is made with another secret
    Signature,
    /// The signed time lies a day back: the signature is good, and stale
    Timestamp,
}

pub(crate) fn run(policy: &PolicyArgs, args: &SendArgs) -> ExitCode {
    match try_run(policy, args) {
        Ok(code) => code,
        Err(Some(why)) => {
            complain(&why);
            ExitCode::from(USAGE)
        }
        Err(None) => ExitCode::from(USAGE),
    }
}

/// `Err(None)` where the complaint was made already.
fn try_run(policy: &PolicyArgs, args: &SendArgs) -> Result<ExitCode, Option<String>> {
    let catalogue = verify::catalogue(policy).map_err(|_| None)?;
    let name = &args.provider;
    let definition = catalogue.definition(name).ok_or_else(|| format!("there is no provider `{name}`; {}", catalogue.hint(name)))?;
    let sender = Sender::new(args, definition)?;
    if args.dry_run {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        let request = sender.request()?;
        return Ok(if out.write_all(&raw(&request)).is_ok() { ExitCode::SUCCESS } else { ExitCode::from(USAGE) });
    }
    let tls = tls(args.cacert.as_deref(), args.insecure, args.url.starts_with("https:"))?;
    let pace = args.rate.as_deref().map(pace).transpose()?;
    // What cannot be signed is said before anything is sent.
    let first = sender.request()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|why| format!("no runtime: {why}"))?;
    if args.count == 1 && !args.replay {
        let most = Duration::from_secs(args.timeout);
        let answer =
            runtime.block_on(async { timeout(most, exchange(&first, tls)).await.unwrap_or_else(|_| Err(format!("no answer within {} s", args.timeout))) });
        return Ok(match answer {
            Ok(answer) => show(&answer, args),
            Err(why) => {
                complain(&format!("{}{}: {why}", first.base, first.target));
                ExitCode::from(BAD)
            }
        });
    }
    let tally = runtime.block_on(many(&sender, first, tls, pace))?;
    Ok(tally.show(args.json))
}

/// The time between two requests of a rate such as `50/s`.
fn pace(text: &str) -> Result<Duration, String> {
    let wrong = || format!("--rate {text}: write it like 50/s, 600/m or 1000/h");
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let span = match unit {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let count: f64 = count.trim().parse().map_err(|_| wrong())?;
    if !count.is_finite() || count <= 0.0 || count > 1e6 {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(span / count))
}

// -- signing --

/// Makes requests, each signed afresh.
struct Sender<'a> {
    args: &'a SendArgs,
    plan: Plan,
    /// The one that signs: another one's for a spoilt signature.
    secret: Secret,
    key: Option<Arc<PrivateKey>>,
    draft: Request,
    payload: Option<Vec<u8>>,
    fields: BTreeMap<String, String>,
    at_ms: Option<i64>,
    /// Whether the signature covers the payload in every form.
    covers: bool,
    /// Whether a copy can be told from its original.
    keyed: bool,
}

impl<'a> Sender<'a> {
    fn new(args: &'a SendArgs, definition: &Arc<Definition>) -> Result<Self, String> {
        let name = &args.provider;
        let source = args.secret.clone().or_else(|| args.secret_env.as_ref().map(|name| format!("env:{name}")));
        let mut secrets = verify::secrets(source.as_slice())?;
        let params = verify::pairs(&args.params, "--param")?;
        let (key, trusted) = private_key(args)?;
        let plan = Plan::new(definition, &Means { public_keys: &trusted, ..Means::new(&secrets, &params) });
        let plan = plan.map_err(|why| if key.is_some() { format!("--key does not serve `{name}`: {why}") } else { why })?;
        if key.is_some() && !plan.signs_by_key_pair() {
            return Err(format!("`{name}` does not sign by a key pair over a text of its own: --key is of no use for it"));
        }
        let (covers, keyed) = (plan.verification() == Verification::Content, plan.keys_replays());
        if args.tamper == Some(Tamper::Body) && !covers {
            return Err(format!("what `{name}` sends proves nothing about the payload, so a changed one is not refused: --tamper signature"));
        }
        if args.tamper == Some(Tamper::Timestamp) && plan.attempt_window().is_none() {
            return Err(format!("`{name}` signs no time that is judged, so an old one is not refused: --tamper body or signature"));
        }
        let wrong = args.tamper == Some(Tamper::Signature) || (args.forge && !covers);
        let plan = if let Some(secret) = secrets.first().filter(|_| wrong) {
            secrets = vec![Secret::new("#1", other_secret(secret.expose()), None)];
            Plan::new(definition, &Means::new(&secrets, &params))?
        } else {
            plan
        };
        let url = args.public_url.as_ref().unwrap_or(&args.url);
        let (base, target) = cases::split_url(url).ok_or_else(|| format!("`{url}` is not a URL: write it like https://localhost:8443/{name}"))?;
        let draft = Request {
            method: Method::from_bytes(args.method.as_bytes()).map_err(|_| format!("`{}` is not a method", args.method))?,
            base: base.to_owned(),
            target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
            headers: headers(args)?,
            body: Chunks::default(),
        };
        let at_ms = args.at.as_deref().map(verify::time).transpose()?;
        let payload = args.data.as_deref().map(payload).transpose()?;
        // A key pair shares no secret.
        let secret = secrets.pop().unwrap_or_else(|| Secret::new("#1", Vec::new(), None));
        Ok(Self { args, plan, secret, key, draft, payload, fields: verify::pairs(&args.fields, "--field")?, at_ms, covers, keyed })
    }

    /// A request as it goes out.
    fn request(&self) -> Result<Request, String> {
        let args = self.args;
        let mut now_ms = self.at_ms.unwrap_or_else(|| Clock::system().now().wall_ms);
        if args.tamper == Some(Tamper::Timestamp) {
            let window = self.plan.attempt_window().unwrap_or_default().as_millis();
            now_ms -= i64::try_from(window).unwrap_or(0).saturating_add(86_400_000);
        }
        let id = args.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        let wishes = Wishes { id, event_type: args.event.clone(), variant: args.variant.clone(), now_ms, fields: self.fields.clone(), key: self.key.clone() };
        // Without a payload a small one is made up, in the first form that the provider can sign.
        let mut outcome = Err("there is no payload".to_owned());
        // With a key pair a wrong signature is one over another payload: it has the right form, and no second key is needed.
        let swapped = self.key.is_some() && args.tamper == Some(Tamper::Signature);
        for (kind, body) in self.payloads() {
            let body = Bytes::from(body);
            let mut request = Request { body: Chunks::from(if swapped { forged(&body) } else { body.clone() }), ..self.draft.copy() };
            if !request.headers.contains_key(header::CONTENT_TYPE) {
                request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(&kind).map_err(|_| format!("`{kind}` is not a content type"))?);
            }
            let first = outcome.is_err();
            match sign(&self.plan, &self.secret, &mut request, &wishes) {
                Ok(()) => {
                    if swapped {
                        request.body = Chunks::from(body);
                    }
                    outcome = Ok(request);
                    break;
                }
                Err(why) if first => outcome = Err(why),
                Err(_) => {}
            }
        }
        let mut request = outcome?;
        if args.public_url.is_some() {
            // What signing put into the query (a digest of the body) stays; the rest is the place to send to.
            let (to, path) = cases::split_url(&args.url).ok_or_else(|| format!("`{}` is not a URL", args.url))?;
            let query = request.target.split_once('?').map(|(_, query)| query.to_owned());
            let path = path.split('?').next().filter(|path| !path.is_empty()).unwrap_or("/");
            request.target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
            request.base = to.to_owned();
        }
        if args.tamper == Some(Tamper::Body) || (args.forge && self.covers) {
            request.body = Chunks::from(forged(&request.body.to_bytes()));
        }
        Ok(request)
    }

    /// The payload and its content type; several to choose from where none was given.
    fn payloads(&self) -> Vec<(String, Vec<u8>)> {
        let kind = self.args.content_type.clone().unwrap_or_else(|| "application/json".to_owned());
        if let Some(payload) = &self.payload {
            return vec![(kind, payload.clone())];
        }
        let id = Uuid::now_v7().simple().to_string();
        let json = format!("{{\"id\":\"evt_{id}\",\"type\":\"test\",\"from\":\"hooklatch send\"}}");
        let form = format!("id=evt_{id}&type=test&from=hooklatch+send");
        vec![(kind, json.into_bytes()), ("application/x-www-form-urlencoded".to_owned(), form.into_bytes())]
    }
}

/// The key of --key, and its public one as a route would have it.
fn private_key(args: &SendArgs) -> Result<(Option<Arc<PrivateKey>>, Vec<Trusted>), String> {
    let Some(path) = &args.key else { return Ok((None, Vec::new())) };
    let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))?);
    let key = PrivateKey::parse(&bytes).map_err(|why| format!("{}: {why}", path.display()))?;
    let trusted = Trusted { label: "#1".into(), not_after: None, key: key.public()? };
    Ok((Some(Arc::new(key)), vec![trusted]))
}

fn headers(args: &SendArgs) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for text in &args.headers {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("-H {text}: write it like \"Name: value\""))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| format!("`{name}` is not the name of a header"))?;
        headers.append(name.clone(), HeaderValue::from_str(value.trim()).map_err(|_| format!("the value of `{name}` cannot stand in a header"))?);
    }
    if !headers.contains_key(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("hooklatch-send/", env!("CARGO_PKG_VERSION"))));
    }
    Ok(headers)
}

/// A secret of the same form that is another one: one letter or digit of it changed, so that base64 and hex stay what they are.
fn other_secret(secret: &[u8]) -> Vec<u8> {
    let mut bytes = secret.to_vec();
    // Not the last ones, which may hold bits that no decoding reads, and not a prefix such as `whsec_`.
    let at = bytes
        .len()
        .checked_sub(6)
        .and_then(|end| bytes[..end].iter().rposition(u8::is_ascii_alphanumeric))
        .or_else(|| bytes.iter().rposition(u8::is_ascii_alphanumeric));
    match at {
        Some(at) => bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' },
        None => bytes.push(b'0'),
    }
    bytes
}

/// A file's content, standard input, or the text itself where no such file is there.
fn payload(text: &str) -> Result<Vec<u8>, String> {
    if text == "-" {
        let mut bytes = Vec::new();
        return std::io::stdin().read_to_end(&mut bytes).map(|_| bytes).map_err(|why| format!("standard input cannot be read: {why}"));
    }
    if let Some(path) = text.strip_prefix('@') {
        return fs::read(path).map_err(|why| format!("{path} cannot be read: {why}"));
    }
    match fs::read(text) {
        Ok(bytes) => Ok(bytes),
        // A payload as text looks like one; anything else was meant as a file.
        Err(_) if text.starts_with(['{', '[', '"', '<']) || text.contains('=') || text.is_empty() => Ok(text.as_bytes().to_vec()),
        Err(why) => Err(format!("{text} cannot be read: {why}; as the payload itself it starts with `{{`, `[` or `<`, or holds a `=`")),
    }
}

// -- many --

/// What came of many requests.
#[derive(Default)]
struct Tally {
    sent: u32,
    as_due: u32,
    duplicates: u32,
    /// By status, and by reason where the answer has one.
    answers: BTreeMap<(u16, String), u32>,
    failures: BTreeMap<String, u32>,
    /// Microseconds, of answers.
    took: Vec<u64>,
    elapsed: Duration,
}

impl Tally {
    fn answer(&mut self, answer: &Answer, took: Duration, due: bool) {
        self.sent += 1;
        self.as_due += u32::from(due);
        self.duplicates += u32::from(answer.is_copy());
        *self.answers.entry((answer.status.as_u16(), answer.reason())).or_default() += 1;
        self.took.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn failure(&mut self, why: String) {
        self.sent += 1;
        let known = self.failures.len() < 20 || self.failures.contains_key(&why);
        *self.failures.entry(if known { why } else { "something else".to_owned() }).or_default() += 1;
    }

    /// The value that this share of all answers was not above, in milliseconds.
    fn percentile(&self, share: f64) -> f64 {
        let at = (self.took.len() as f64 * share).ceil() as usize;
        self.took.get(at.saturating_sub(1)).map_or(0.0, |us| *us as f64 / 1000.0)
    }

    fn show(mut self, machine: bool) -> ExitCode {
        self.took.sort_unstable();
        let good = self.as_due == self.sent;
        let code = if good { ExitCode::SUCCESS } else { ExitCode::from(BAD) };
        let seconds = self.elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { f64::from(self.sent) / seconds } else { 0.0 };
        let latency = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)].map(|(name, share)| (name, self.percentile(share)));
        if machine {
            let answers: Vec<Value> = self
                .answers
                .iter()
                .map(|((status, reason), count)| json!({ "status": status, "reason": (!reason.is_empty()).then_some(reason), "count": count }))
                .collect();
            let latency: serde_json::Map<String, Value> = latency.iter().map(|(name, ms)| ((*name).to_owned(), json!(ms))).collect();
            say(&format!(
                "{}",
                json!({
                    "sent": self.sent, "as_due": self.as_due, "duplicates": self.duplicates, "answers": answers, "failures": self.failures,
                    "latency_ms": latency, "elapsed_s": seconds, "rate_per_s": rate,
                })
            ));
            return code;
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["ANSWER", "REASON", "COUNT"]);
        for ((status, reason), count) in &self.answers {
            let text = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
            table.add_row([format!("{status} {text}"), if reason.is_empty() { "-".to_owned() } else { reason.clone() }, count.to_string()]);
        }
        for (why, count) in &self.failures {
            table.add_row(["none".to_owned(), why.clone(), count.to_string()]);
        }
        say(&format!("{table}"));
        let colour = if good { anstyle::AnsiColor::Green } else { anstyle::AnsiColor::Red };
        let style = colour.on_default().bold();
        let copies = if self.duplicates > 0 { format!(", {} of them copies with a stored answer", self.duplicates) } else { String::new() };
        say(&format!("\n{style}{} of {} as due{style:#}{copies}, in {seconds:.2} s ({rate:.1}/s)", self.as_due, self.sent));
        if !self.took.is_empty() {
            let line: Vec<String> = latency.iter().map(|(name, ms)| format!("{name} {ms:.1} ms")).collect();
            say(&format!("latency {}", line.join(", ")));
        }
        code
    }
}

/// What one connection after another works off.
struct Work<'a> {
    sender: &'a Sender<'a>,
    clock: Clock,
    next: Cell<u32>,
    tally: RefCell<Tally>,
    bar: Option<ProgressBar>,
    tls: Arc<rustls::ClientConfig>,
    /// The first request was made already, to see that it can be.
    first: Cell<Option<Request>>,
}

async fn many(sender: &Sender<'_>, first: Request, tls: rustls::ClientConfig, pace: Option<Duration>) -> Result<Tally, String> {
    let args = sender.args;
    let clock = Clock::system();
    let started = clock.now().mono;
    let bar = std::io::stderr().is_terminal().then(|| bar(args.count)).filter(|_| !args.json);
    let work =
        Rc::new(Work { sender, clock: clock.clone(), next: Cell::new(0), tally: RefCell::default(), bar, tls: Arc::new(tls), first: Cell::new(Some(first)) });
    let workers = (0..u32::from(args.concurrency).min(args.count)).map(|_| {
        let work = work.clone();
        async move {
            let mut link = None;
            loop {
                let number = work.next.get();
                if number == args.count {
                    return Ok(());
                }
                work.next.set(number + 1);
                if let Some(pace) = pace {
                    // By the plan, not by the one before: a slow answer is caught up with.
                    let due = started.plus(pace.saturating_mul(number));
                    tokio::time::sleep(due.since(work.clock.now().mono)).await;
                }
                work.one(&mut link).await?;
            }
        }
    });
    let done: Vec<Result<(), String>> = futures_util::future::join_all(workers).await;
    done.into_iter().collect::<Result<Vec<()>, String>>()?;
    if let Some(bar) = &work.bar {
        bar.finish_and_clear();
    }
    let mut tally = std::mem::take(&mut *work.tally.borrow_mut());
    tally.elapsed = clock.now().mono.since(started);
    Ok(tally)
}

fn bar(count: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(count));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}

impl Work<'_> {
    /// Makes, sends and weighs one request, and its copy with --replay.
    async fn one(&self, link: &mut Option<Link>) -> Result<(), String> {
        let request = match self.first.take() {
            Some(first) => first,
            None => self.sender.request()?,
        };
        let args = self.sender.args;
        for copy in 0..=u32::from(args.replay) {
            let begun = self.clock.now().mono;
            let most = Duration::from_secs(args.timeout);
            let answer = timeout(most, Link::ask(link, &request, &self.tls)).await.unwrap_or_else(|_| Err(format!("no answer within {} s", args.timeout)));
            let took = self.clock.now().mono.since(begun);
            let mut tally = self.tally.borrow_mut();
            match answer {
                Ok(answer) => {
                    let due = answer.is_due(args, copy > 0, self.sender.keyed);
                    tally.answer(&answer, took, due);
                }
                Err(why) => {
                    *link = None;
                    tally.failure(why);
                }
            }
            if let Some(bar) = &self.bar {
                let wrong = tally.sent - tally.as_due;
                if wrong > 0 {
                    bar.set_message(format!("{wrong} not as due"));
                }
            }
        }
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        Ok(())
    }
}

/// A connection that is kept between requests.
struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// One exchange, on the connection that is there or a new one. One that ended while it idled is replaced once.
    async fn ask(link: &mut Option<Link>, request: &Request, tls: &Arc<rustls::ClientConfig>) -> Result<Answer, String> {
        if let Some(open) = link.as_mut().filter(|open| !open.driver.is_finished())
            && open.sender.ready().await.is_ok()
        {
            match speak(&mut open.sender, request).await {
                Err(Broken::Before) => {}
                Err(Broken::Within(why)) => return Err(why),
                Ok(answer) => return Ok(answer),
            }
        }
        let fresh = link.insert(Link::open(request, tls).await?);
        match speak(&mut fresh.sender, request).await {
            Ok(answer) => Ok(answer),
            Err(Broken::Before) => Err("no answer: the connection ended".to_owned()),
            Err(Broken::Within(why)) => Err(why),
        }
    }

    async fn open(request: &Request, tls: &Arc<rustls::ClientConfig>) -> Result<Self, String> {
        let (secure, host) = authority(&request.base);
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port.parse::<u16>().map_err(|_| format!("`{port}` is not a port"))?),
            _ => (host, if secure { 443 } else { 80 }),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((name, port)).await.map_err(|why| format!("no connection to {name} port {port}: {why}"))?;
        let _ = tcp.set_nodelay(true); // slower without, but no worse
        if !secure {
            return Self::over(TokioIo::new(tcp)).await;
        }
        let server = ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is not the name of a server"))?;
        let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(server, tcp).await;
        let stream = stream.map_err(|why| format!("no TLS: {why}; a self-signed certificate is trusted with --cacert FILE, or --insecure for a test"))?;
        Self::over(TokioIo::new(stream)).await
    }

    async fn over<S>(stream: S) -> Result<Self, String>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(|why| why.to_string())?;
        Ok(Self { sender, driver: tokio::spawn(connection) })
    }
}

/// The body with one letter or digit changed, so that it stays readable.
fn forged(body: &[u8]) -> Bytes {
    let mut bytes = body.to_vec();
    match bytes.iter().rposition(u8::is_ascii_alphanumeric) {
        Some(at) => bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' },
        None => bytes.push(b' '),
    }
    bytes.into()
}

/// The host and port part of a URL's base.
fn authority(base: &str) -> (bool, &str) {
    match base.split_once("://") {
        Some((scheme, rest)) => (scheme.eq_ignore_ascii_case("https"), rest),
        None => (true, base),
    }
}

fn raw(request: &Request) -> Vec<u8> {
    let mut out = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.target, authority(&request.base).1).into_bytes();
    for (name, value) in &request.headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", request.body.len()).as_bytes());
    out.extend_from_slice(&request.body.to_bytes());
    out
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn is_copy(&self) -> bool {
        self.headers.contains_key("hooklatch-duplicate")
    }

    /// The word of a refusal.
    fn reason(&self) -> String {
        let problem = self.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        let word = problem.then(|| serde_json::from_slice::<Value>(&self.body).ok()?["reason"].as_str().map(|word| word.chars().take(64).collect()));
        word.flatten().unwrap_or_default()
    }

    /// Whether it is the answer that this request was to get.
    fn is_due(&self, args: &SendArgs, copy: bool, keyed: bool) -> bool {
        match (args.tamper.is_some(), copy && keyed) {
            (true, _) => self.status.is_client_error() && self.status != StatusCode::NOT_FOUND,
            // A stored answer, or a refusal of the copy; a copy that is taken like the first is not due.
            (false, true) => self.is_copy() || matches!(self.status, StatusCode::CONFLICT | StatusCode::UNAUTHORIZED),
            (false, false) => self.status.is_success(),
        }
    }
}

/// One request and its answer's status and body, for commands that ask a gate something.
pub(super) fn once(request: &Request, tls: rustls::ClientConfig, most: Duration) -> Result<(StatusCode, Bytes), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|why| format!("no runtime: {why}"))?;
    let answer = runtime.block_on(async { timeout(most, exchange(request, tls)).await });
    let answer = answer.map_err(|_| format!("no answer within {} s", most.as_secs()))??;
    Ok((answer.status, answer.body))
}

async fn exchange(request: &Request, tls: rustls::ClientConfig) -> Result<Answer, String> {
    Link::ask(&mut None, request, &Arc::new(tls)).await
}

/// How an exchange broke.
enum Broken {
    /// Before anything was sent: a kept connection had ended.
    Before,
    Within(String),
}

async fn speak(sender: &mut SendRequest<Full<Bytes>>, request: &Request) -> Result<Answer, Broken> {
    let within = |why: String| Broken::Within(why);
    let mut message = http::Request::builder()
        .method(request.method.clone())
        .uri(request.target.as_str())
        .body(Full::new(request.body.to_bytes()))
        .map_err(|why| within(format!("the request cannot be written: {why}")))?;
    let host = authority(&request.base).1;
    *message.headers_mut() = request.headers.clone();
    message.headers_mut().insert(header::HOST, HeaderValue::from_str(host).map_err(|_| within(format!("`{host}` is not a host")))?);
    let answer = sender.send_request(message).await;
    let answer = answer.map_err(|why| if why.is_canceled() || why.is_closed() { Broken::Before } else { within(format!("no answer: {why}")) })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|why| within(format!("the answer's body cannot be read: {why}")))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

fn show(answer: &Answer, args: &SendArgs) -> ExitCode {
    let event = answer.headers.get("hooklatch-event-id").and_then(|v| v.to_str().ok());
    let duplicate = answer.is_copy();
    let text = String::from_utf8_lossy(&answer.body);
    if args.json {
        say(&format!("{}", json!({ "status": answer.status.as_u16(), "event_id": event, "duplicate": duplicate, "body": text })));
    } else {
        let good = if answer.is_due(args, false, false) { anstyle::AnsiColor::Green } else { anstyle::AnsiColor::Red };
        let style = good.on_default().bold();
        say(&format!("{style}{}{style:#}", answer.status));
        if let Some(event) = event {
            say(&format!("event {event}{}", if duplicate { ", a copy: the stored answer" } else { "" }));
        }
        if !text.is_empty() {
            say(text.trim_end());
        }
    }
    if answer.is_due(args, false, false) { ExitCode::SUCCESS } else { ExitCode::from(BAD) }
}

/// What to believe of a server's certificate; `secure`: whether TLS will be spoken at all.
pub(super) fn tls(cacert: Option<&Path>, insecure: bool, secure: bool) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
    if insecure {
        return Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth());
    }
    if let Some(path) = cacert {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|why| format!("{} is not PEM: {why}", path.display()))?;
            roots.add(certificate).map_err(|why| format!("{} is not a CA: {why}", path.display()))?;
        }
        if roots.is_empty() {
            return Err(format!("{} holds no certificate", path.display()));
        }
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    if !secure {
        return Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth());
    }
    let system = rustls_platform_verifier::Verifier::new(provider)
        .map_err(|why| format!("the system's trusted CAs cannot be read: {why}; name one with --cacert FILE"))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(system)).with_no_client_auth())
}

/// Believes every certificate: for `--insecure`, a test against a self-signed gate.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let check = |text: &str, want: Option<u64>| assert_eq!(pace(text).ok().map(|pace| u64::try_from(pace.as_micros()).expect("short")), want, "{text}");
        check("50/s", Some(20_000));
        check("0.5/s", Some(2_000_000));
        check("600/m", Some(100_000));
        check("3600/h", Some(1_000_000));
        for bad in ["50", "/s", "0/s", "-1/s", "nan/s", "inf/s", "5/d", "1e9/s"] {
            check(bad, None);
        }
    }

    #[test]
    fn another_secret_keeps_its_form() {
        for secret in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "00ff00ff00ff", "user:password", "short", "-", ""] {
            let other = other_secret(secret.as_bytes());
            assert_ne!(other, secret.as_bytes());
            let text = String::from_utf8(other).expect("text");
            assert!(!secret.starts_with("whsec_") || (text.starts_with("whsec_") && data_encoding::BASE64.decode(&text.as_bytes()[6..]).is_ok()), "{text}");
        }
    }

    #[test]
    fn payloads_are_files_or_texts() {
        assert_eq!(payload("{\"a\":1}"), Ok(b"{\"a\":1}".to_vec()));
        assert_eq!(payload("a=1&b=2"), Ok(b"a=1&b=2".to_vec()));
        assert!(payload("no-such-file.json").is_err() && payload("@no-such-file.json").is_err());
    }

    #[test]
    fn shares_of_latencies_are_taken() {
        let tally = Tally { took: (1..=100).map(|ms| ms * 1000).collect(), ..Tally::default() };
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|share| tally.percentile(share)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(Tally::default().percentile(0.5), 0.0);
    }
}
