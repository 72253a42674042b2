//! `hooklatch send`: signs a payload as a provider does, and sends it.

use std::{fs, io::Read, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use uuid::Uuid;

use super::{BAD, PolicyArgs, USAGE, complain, say, verify};
use crate::{
    clock::Clock,
    event::{Chunks, Verification},
    secret::Secret,
    verify::{
        Means, Plan,
        cases::{self, Request},
        sign::{Wishes, sign},
    },
};

/// The most of an answer that is read and shown, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// Sign a payload as a provider does and send it
#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --body push.json --event push
  hooklatch send stripe --url https://localhost:8443/stripe --secret literal:whsec_test --insecure
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --forge
  hooklatch send slack --url https://hooks.example.com/slack --secret file:slack.secret --dry-run > captured.http

Exit code 0: the answer was 2xx; 1: it was not, or nobody answered.")]
pub(crate) struct SendArgs {
    /// The provider to sign as
    provider: String,
    /// Where to send it
    #[arg(long)]
    url: String,
    /// `env:NAME`, `file:PATH` or `literal:TEXT`
    #[arg(long, value_name = "SECRET", required_unless_present = "secret_env")]
    secret: Option<String>,
    /// The environment variable that holds the secret; the same as `--secret env:NAME`
    #[arg(long, value_name = "NAME", conflicts_with = "secret")]
    secret_env: Option<String>,
    /// What the provider needs configured beside the secret
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// The payload; `-` for standard input; a small one is made up, if absent
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// The event type, written where the provider writes it
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// The delivery id; a new one, if absent
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
    /// Send what must be refused: the payload is changed after it was signed, or the credential where nothing signs the payload
    #[arg(long)]
    forge: bool,
    /// A CA file to trust instead of the system's
    #[arg(long = "cacert", visible_alias = "ca", value_name = "FILE", conflicts_with = "insecure")]
    cacert: Option<PathBuf>,
    /// Believe any certificate
    #[arg(long)]
    insecure: bool,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
    /// Print the request as raw HTTP instead of sending it
    #[arg(long)]
    dry_run: bool,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &SendArgs) -> ExitCode {
    let request = match signed(policy, args) {
        Ok(request) => request,
        Err(Some(why)) => {
            complain(&why);
            return ExitCode::from(USAGE);
        }
        Err(None) => return ExitCode::from(USAGE),
    };
    if args.dry_run {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        return if out.write_all(&raw(&request)).is_ok() { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
    }
    let tls = match tls(args) {
        Ok(tls) => tls,
        Err(why) => {
            complain(&why);
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            complain(&format!("no runtime: {why}"));
            return ExitCode::from(USAGE);
        }
    };
    let answer = runtime.block_on(async {
        timeout(Duration::from_secs(args.timeout), exchange(&request, tls)).await.unwrap_or_else(|_| Err(format!("no answer within {} s", args.timeout)))
    });
    match answer {
        Ok(answer) => show(&answer, args.json),
        Err(why) => {
            complain(&format!("{}{}: {why}", request.base, request.target));
            ExitCode::from(BAD)
        }
    }
}

/// The request to send; `Err(None)` where the complaint was made already.
fn signed(policy: &PolicyArgs, args: &SendArgs) -> Result<Request, Option<String>> {
    let catalogue = verify::catalogue(policy).map_err(|_| None)?;
    let name = &args.provider;
    let definition = catalogue.definition(name).ok_or_else(|| format!("there is no provider `{name}`; {}", catalogue.hint(name)))?;
    let source = args.secret.clone().or_else(|| args.secret_env.as_ref().map(|name| format!("env:{name}"))).unwrap_or_default();
    let secrets = verify::secrets(&[source])?;
    let params = verify::pairs(&args.params, "--param")?;
    let plan = Plan::new(definition, &Means::new(&secrets, &params))?;
    let url = args.public_url.as_ref().unwrap_or(&args.url);
    let (base, target) = cases::split_url(url).ok_or_else(|| format!("`{url}` is not a URL: write it like https://localhost:8443/{name}"))?;
    let mut headers = HeaderMap::new();
    for text in &args.headers {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("-H {text}: write it like \"Name: value\""))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| format!("`{name}` is not the name of a header"))?;
        headers.append(name.clone(), HeaderValue::from_str(value.trim()).map_err(|_| format!("the value of `{name}` cannot stand in a header"))?);
    }
    if !headers.contains_key(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("hooklatch-send/", env!("CARGO_PKG_VERSION"))));
    }
    let draft = Request {
        method: Method::from_bytes(args.method.as_bytes()).map_err(|_| format!("`{}` is not a method", args.method))?,
        base: base.to_owned(),
        target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
        headers,
        body: Chunks::default(),
    };
    let now_ms = match &args.at {
        Some(text) => verify::time(text)?,
        None => Clock::system().now().wall_ms,
    };
    let wishes = Wishes {
        id: args.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string()),
        event_type: args.event.clone(),
        variant: args.variant.clone(),
        now_ms,
        fields: verify::pairs(&args.fields, "--field")?,
    };
    let covers = plan.verification() == Verification::Content;
    let wrong = [Secret::new("#1", [secrets[0].expose(), b"-forged"].concat(), None)];
    let forged_plan = if args.forge && !covers { Some(Plan::new(definition, &Means::new(&wrong, &params))?) } else { None };
    let (plan, secret) = forged_plan.as_ref().map_or((&plan, &secrets[0]), |plan| (plan, &wrong[0]));
    // Without a payload a small one is made up, in the first form that the provider can sign.
    let mut outcome = Err("there is no payload".to_owned());
    for (kind, body) in payloads(args)? {
        let mut request = Request { body: Chunks::from(Bytes::from(body)), ..draft.copy() };
        if !request.headers.contains_key(header::CONTENT_TYPE) {
            request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(&kind).map_err(|_| format!("`{kind}` is not a content type"))?);
        }
        let first = outcome.is_err();
        match sign(plan, secret, &mut request, &wishes) {
            Ok(()) => {
                outcome = Ok(request);
                break;
            }
            Err(why) if first => outcome = Err(why),
            Err(_) => {}
        }
    }
    let mut request = outcome?;
    let (to, path) = cases::split_url(&args.url).ok_or_else(|| format!("`{}` is not a URL", args.url))?;
    if args.public_url.is_some() {
        // What signing put into the query (a digest of the body) stays; the rest is the place to send to.
        let query = request.target.split_once('?').map(|(_, query)| query.to_owned());
        let path = path.split('?').next().unwrap_or("/");
        request.target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        request.base = to.to_owned();
    }
    if args.forge && covers {
        request.body = Chunks::from(forged(&request.body.to_bytes()));
    }
    Ok(request)
}

/// The payload and its content type; several to choose from where none was given.
fn payloads(args: &SendArgs) -> Result<Vec<(String, Vec<u8>)>, String> {
    let kind = || args.content_type.clone().unwrap_or_else(|| "application/json".to_owned());
    match &args.body {
        None => {
            let id = Uuid::now_v7().simple().to_string();
            let json = format!("{{\"id\":\"evt_{id}\",\"type\":\"test\",\"from\":\"hooklatch send\"}}");
            let form = format!("id=evt_{id}&type=test&from=hooklatch+send");
            Ok(vec![(kind(), json.into_bytes()), ("application/x-www-form-urlencoded".to_owned(), form.into_bytes())])
        }
        Some(path) if path.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(|why| format!("standard input cannot be read: {why}"))?;
            Ok(vec![(kind(), bytes)])
        }
        Some(path) => Ok(vec![(kind(), fs::read(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))?)]),
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
    status: http::StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn exchange(request: &Request, tls: rustls::ClientConfig) -> Result<Answer, String> {
    let (secure, host) = authority(&request.base);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port.parse::<u16>().map_err(|_| format!("`{port}` is not a port"))?),
        _ => (host, if secure { 443 } else { 80 }),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, port)).await.map_err(|why| format!("no connection to {name} port {port}: {why}"))?;
    if !secure {
        return speak(TokioIo::new(tcp), request, host).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is not the name of a server"))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(server, tcp).await;
    let stream = stream.map_err(|why| format!("no TLS: {why}; a self-signed certificate is trusted with --cacert FILE, or --insecure for a test"))?;
    speak(TokioIo::new(stream), request, host).await
}

async fn speak<S>(stream: S, request: &Request, host: &str) -> Result<Answer, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(|why| why.to_string())?;
    let driver = tokio::spawn(connection);
    let mut message = http::Request::builder()
        .method(request.method.clone())
        .uri(request.target.as_str())
        .body(Full::new(request.body.to_bytes()))
        .map_err(|why| format!("the request cannot be written: {why}"))?;
    *message.headers_mut() = request.headers.clone();
    message.headers_mut().insert(header::HOST, HeaderValue::from_str(host).map_err(|_| format!("`{host}` is not a host"))?);
    let answer = sender.send_request(message).await.map_err(|why| format!("no answer: {why}"))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|why| format!("the answer's body cannot be read: {why}"))?.to_bytes();
    driver.abort();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

fn show(answer: &Answer, machine: bool) -> ExitCode {
    let event = answer.headers.get("hooklatch-event-id").and_then(|v| v.to_str().ok());
    let duplicate = answer.headers.contains_key("hooklatch-duplicate");
    let text = String::from_utf8_lossy(&answer.body);
    if machine {
        say(&format!("{}", serde_json::json!({ "status": answer.status.as_u16(), "event_id": event, "duplicate": duplicate, "body": text })));
    } else {
        let good = if answer.status.is_success() { anstyle::AnsiColor::Green } else { anstyle::AnsiColor::Red };
        let style = good.on_default().bold();
        say(&format!("{style}{}{style:#}", answer.status));
        if let Some(event) = event {
            say(&format!("event {event}{}", if duplicate { ", a copy: the stored answer" } else { "" }));
        }
        if !text.is_empty() {
            say(text.trim_end());
        }
    }
    if answer.status.is_success() { ExitCode::SUCCESS } else { ExitCode::from(BAD) }
}

fn tls(args: &SendArgs) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
    if args.insecure {
        return Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth());
    }
    if let Some(path) = &args.cacert {
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
    if !args.url.starts_with("https:") {
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
