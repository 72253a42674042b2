//! A client of the running gate's admin API: where it listens and what its token is come from the policy, unless said otherwise.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::net::TcpStream;

use super::PolicyArgs;
use crate::{
    admin, config,
    problem::Source,
    secret::Secret,
    section::{Inputs, Reader},
};

/// The most of an answer that is read, in bytes.
const ANSWER: usize = 4 << 20;
/// For one request, from the first byte to the last.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the running gate is reached.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct AdminArgs {
    /// The admin listener; else as the policy's [admin] says
    #[arg(long = "admin", value_name = "URL")]
    url: Option<String>,
    /// The admin token, `env:NAME` or `file:PATH`; else the policy's, else the one in the state directory
    #[arg(long, value_name = "SECRET")]
    token: Option<String>,
    /// A CA file to trust instead of the system's, where the admin listener does TLS
    #[arg(long = "cacert", value_name = "FILE")]
    cacert: Option<PathBuf>,
}

/// One gate's admin API.
pub(super) struct Client {
    secure: bool,
    /// Host and port.
    authority: String,
    token: Secret,
    cacert: Option<PathBuf>,
}

/// What it answered.
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Said {
    /// The body of a good answer, the reason of any other.
    pub(super) fn good(self) -> Result<Value, String> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        Err(self.body["error"].as_str().map_or_else(|| format!("the gate answered {}", self.status), str::to_owned))
    }
}

impl Client {
    /// Finds the gate. The policy's other parts are not read: their secrets need not be known here.
    pub(super) fn find(policy: &PolicyArgs, args: &AdminArgs) -> Result<Self, String> {
        let path = policy.find();
        let settings = match &path {
            Ok(path) => settings(path)?,
            Err(_) => None,
        };
        let url = match (&args.url, &settings) {
            (Some(url), _) => url.clone(),
            (None, Some(settings)) => {
                let listen = settings.listen;
                let host = if listen.ip().is_unspecified() { format!("127.0.0.1:{}", listen.port()) } else { listen.to_string() };
                format!("{}://{host}", if settings.tls.is_some() { "https" } else { "http" })
            }
            (None, None) => match path {
                Ok(path) => return Err(format!("{} switches the admin listener off: say `admin = …`, or name another with --admin URL", path.display())),
                Err(why) => return Err(why),
            },
        };
        let parsed = url::Url::parse(&url).map_err(|why| format!("`{url}` is not a URL: {why}; write it like http://127.0.0.1:9900"))?;
        let (secure, host) = match (parsed.scheme(), parsed.host_str()) {
            ("http", Some(host)) => (false, host),
            ("https", Some(host)) => (true, host),
            _ => return Err(format!("`{url}` is not the address of an admin listener; write it like http://127.0.0.1:9900")),
        };
        let port = parsed.port_or_known_default().unwrap_or(80);
        let token = match &args.token {
            Some(from) => super::verify::secrets(std::slice::from_ref(from))?.remove(0),
            None => token(settings.as_ref(), path.ok().as_deref())?,
        };
        Ok(Self { secure, authority: format!("{host}:{port}"), token, cacert: args.cacert.clone() })
    }

    pub(super) async fn ask(&self, method: Method, target: &str) -> Result<Said, String> {
        let asked = tokio::time::timeout(PATIENCE, self.exchange(method, target)).await;
        asked.unwrap_or_else(|_| Err("no answer in 30 s".to_owned())).map_err(|why| format!("the admin listener at {}: {why}", self.authority))
    }

    async fn exchange(&self, method: Method, target: &str) -> Result<Said, String> {
        let tcp = TcpStream::connect(&self.authority).await.map_err(|why| format!("no connection: {why}; is the gate running?"))?;
        if !self.secure {
            return self.speak(TokioIo::new(tcp), method, target).await;
        }
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is not the name of a server"))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(self.tls()?)).connect(name, tcp).await;
        self.speak(TokioIo::new(stream.map_err(|why| format!("no TLS: {why}; trust its certificate with --cacert FILE"))?), method, target).await
    }

    async fn speak<S>(&self, stream: S, method: Method, target: &str) -> Result<Said, String>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(|why| why.to_string())?;
        let driver = tokio::spawn(connection);
        let mut bearer = http::HeaderValue::from_bytes(&[b"Bearer ", self.token.expose()].concat()).map_err(|_| "the admin token cannot stand in a header")?;
        bearer.set_sensitive(true);
        let request = http::Request::builder().method(method).uri(target).header(header::HOST, &self.authority).header(header::AUTHORIZATION, bearer);
        let request = request.body(Full::new(Bytes::new())).map_err(|why| format!("the request cannot be written: {why}"))?;
        let answer = sender.send_request(request).await.map_err(|why| format!("no answer: {why}"))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map_err(|why| format!("the answer cannot be read: {why}"))?.to_bytes();
        driver.abort();
        Ok(Said { status: head.status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }

    fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
        let Some(path) = &self.cacert else {
            let system = rustls_platform_verifier::Verifier::new(provider)
                .map_err(|why| format!("the system's trusted CAs cannot be read: {why}; name one with --cacert FILE"))?;
            return Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(system)).with_no_client_auth());
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))? {
            let certificate = certificate.map_err(|why| format!("{} is not PEM: {why}", path.display()))?;
            roots.add(certificate).map_err(|why| format!("{} is not a CA: {why}", path.display()))?;
        }
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// `[admin]` of the policy alone; `None` where it is switched off.
fn settings(path: &std::path::Path) -> Result<Option<admin::Settings>, String> {
    let text = std::fs::read_to_string(path).map_err(|why| format!("the policy file {} cannot be read: {why}", path.display()))?;
    let inputs = Inputs::system(path.parent().map(ToOwned::to_owned).unwrap_or_default(), config::state_directory(path));
    let reader = Reader::new(Source { name: path.display().to_string(), text }, inputs);
    let settings = {
        let table = reader.parse();
        admin::read(&reader.root(&table))
    };
    if reader.failed() {
        let problems: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
        return Err(format!("[admin] of {} cannot be read: {}", path.display(), problems.join("; ")));
    }
    Ok(settings)
}

/// The policy's token, else the one that the gate made in its state directory.
fn token(settings: Option<&admin::Settings>, policy: Option<&std::path::Path>) -> Result<Secret, String> {
    if let Some(token) = settings.and_then(|settings| settings.token.clone()) {
        return Ok(token);
    }
    let Some(policy) = policy else { return Err("the admin token is not known here: name it with --token env:NAME".to_owned()) };
    let file = config::state_directory(policy).join(admin::TOKEN_FILE);
    let mut bytes =
        std::fs::read(&file).map_err(|why| format!("the admin token in {} cannot be read: {why}; name it with --token env:NAME", file.display()))?;
    bytes.truncate(bytes.trim_ascii_end().len());
    Ok(Secret::new("admin", bytes, None))
}
