//! Every outgoing socket: name lookup, TCP, TLS, unix.
//!
//! A connection is made to one address at a time, in the resolver's order, each with its own time limit, so that a dead address
//! costs a bounded wait. Certificates are always verified: against the policy's own CA, or the system's roots.

use std::{
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::section::Section;

/// The longest wait for one address to accept, and for one TLS handshake; the destination's own timeout may end it sooner.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Lookups at once: each holds a thread of the blocking pool for as long as the system's resolver takes.
static LOOKUPS: Semaphore = Semaphore::const_new(16);

/// Where to connect to.
#[derive(Clone)]
pub(crate) enum Target {
    Tcp { host: String, port: u16, tls: Option<Tls> },
    Unix(PathBuf),
}

/// How to speak TLS to one target.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no connection; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the name {0} cannot be resolved: {1}")]
    Lookup(String, io::Error),
    #[error("the name {0} has no address")]
    NoAddress(String),
    #[error("{0} does not accept: {1}")]
    Refused(String, io::Error),
    #[error("{0} did not accept within {s} s", s = ATTEMPT.as_secs())]
    Silent(String),
    #[error("no TLS with {0}: {1}")]
    Tls(String, io::Error),
}

/// A connection, whatever it runs over.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Stream {
    /// Whether the other side chose HTTP/2 in its handshake.
    pub(crate) fn is_h2(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Self::Tcp(_) | Self::Unix(_) => false,
        }
    }
}

/// Opens one connection.
pub(crate) async fn connect(target: &Target) -> Result<Stream, ConnectError> {
    match target {
        Target::Unix(path) => match timeout(ATTEMPT, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Stream::Unix(stream)),
            Ok(Err(why)) => Err(ConnectError::Refused(target.to_string(), why)),
            Err(_) => Err(ConnectError::Silent(target.to_string())),
        },
        Target::Tcp { host, port, tls } => {
            let stream = tcp(host, *port).await?;
            let Some(tls) = tls else { return Ok(Stream::Tcp(stream)) };
            match timeout(ATTEMPT, TlsConnector::from(Arc::clone(&tls.config)).connect(tls.name.clone(), stream)).await {
                Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
                Ok(Err(why)) => Err(ConnectError::Tls(target.to_string(), why)),
                Err(_) => Err(ConnectError::Silent(target.to_string())),
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return dial((ip, port).into()).await;
    }
    let found = {
        // The semaphore is never closed.
        let _permit = LOOKUPS.acquire().await;
        tokio::net::lookup_host((host, port)).await.map_err(|why| ConnectError::Lookup(host.to_owned(), why))?
    };
    let mut last = None;
    for address in found {
        match dial(address).await {
            Ok(stream) => return Ok(stream),
            Err(why) => last = Some(why),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::NoAddress(host.to_owned())))
}

async fn dial(address: std::net::SocketAddr) -> Result<TcpStream, ConnectError> {
    let stream = match timeout(ATTEMPT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(ConnectError::Refused(address.to_string(), why)),
        Err(_) => return Err(ConnectError::Silent(address.to_string())),
    };
    // Requests are written whole: waiting for more to send only delays them.
    stream.set_nodelay(true).map_err(|why| ConnectError::Refused(address.to_string(), why))?;
    Ok(stream)
}

/// `tls = { ca, cert, key }` of a destination, read and checked.
#[derive(Clone, Default)]
pub(crate) struct TlsSettings {
    /// The policy's own CA; without it the system's roots.
    roots: Option<Arc<RootCertStore>>,
    client: Option<Arc<Identity>>,
}

#[derive(PartialEq)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl PartialEq for TlsSettings {
    fn eq(&self, other: &Self) -> bool {
        let anchors = |settings: &Self| settings.roots.as_ref().map(|roots| roots.roots.clone());
        anchors(self) == anchors(other) && self.client == other.client
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").field("own_ca", &self.roots.is_some()).field("client_certificate", &self.client.is_some()).finish()
    }
}

impl TlsSettings {
    pub(crate) fn read(section: Section<'_>) -> Option<Self> {
        let roots = section.has("ca").then(|| read_roots(&section));
        let client = match (section.has("cert"), section.has("key")) {
            (false, false) => None,
            (true, true) => Some(read_identity(&section)),
            (true, false) => {
                section.problem("cert", "`cert` without `key`", "name the certificate's private key too");
                return None;
            }
            (false, true) => {
                section.problem("key", "`key` without `cert`", "name the key's certificate too");
                return None;
            }
        };
        let settings = match (roots, client) {
            (Some(None), _) | (_, Some(None)) => None,
            (roots, client) => Some(Self { roots: roots.flatten().map(Arc::new), client: client.flatten().map(Arc::new) }),
        };
        if let Some(settings) = &settings
            && settings.client.is_some()
            && let Err(why) = settings.with_own_roots(settings.roots.clone().unwrap_or_else(|| Arc::new(RootCertStore::empty())))
        {
            section.problem("key", format!("the certificate and its key cannot be used: {why}"), "check that the key belongs to the certificate");
            return None;
        }
        section.finish();
        settings
    }

    /// Only `ca`, in a table that has other keys too.
    pub(crate) fn read_ca(section: &Section<'_>) -> Option<Self> {
        read_roots(section).map(|roots| Self { roots: Some(Arc::new(roots)), client: None })
    }

    /// Tells settings apart: the subjects and keys of the CA.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|roots| &roots.roots).flat_map(|root| root.subject.iter().chain(root.subject_public_key_info.iter())).copied().collect()
    }

    /// The configuration for connections; without an own CA it reads the system's roots.
    ///
    /// Fails where the system has none, as in an image without CA files.
    pub(crate) fn config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, rustls::Error> {
        let mut config = match &self.roots {
            Some(roots) => self.with_own_roots(Arc::clone(roots))?,
            None => self.with_identity(builder()?.with_platform_verifier()?)?,
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    fn with_own_roots(&self, roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
        self.with_identity(builder()?.with_root_certificates(roots))
    }

    fn with_identity(&self, builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>) -> Result<ClientConfig, rustls::Error> {
        match &self.client {
            Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// TLS towards `host`, a name or an address.
pub(crate) fn tls(config: Arc<ClientConfig>, host: &str) -> Result<Tls, String> {
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => Ok(Tls { config, name }),
        Err(_) => Err(format!("`{host}` is no name that a certificate can have")),
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

fn read_roots(section: &Section<'_>) -> Option<RootCertStore> {
    let (path, pem) = section.file("ca")?;
    let mut roots = RootCertStore::empty();
    for found in CertificateDer::pem_slice_iter(&pem) {
        let added = found.map_err(|why| why.to_string()).and_then(|der| roots.add(der).map_err(|why| why.to_string()));
        if let Err(why) = added {
            section.problem("ca", format!("{} holds a certificate that cannot be used: {why}", path.display()), "a CA is a PEM file of certificates");
            return None;
        }
    }
    if roots.is_empty() {
        section.problem("ca", format!("{} holds no certificate", path.display()), "a CA is a PEM file of certificates");
        return None;
    }
    Some(roots)
}

fn read_identity(section: &Section<'_>) -> Option<Identity> {
    // Both are read before either `?`: one run reports both.
    let (cert, key) = (section.file("cert"), section.file("key"));
    let ((cert_path, cert), (key_path, key)) = (cert?, key?);
    let chain: Vec<_> = match CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>() {
        Ok(chain) => chain,
        Err(why) => {
            section.problem("cert", format!("{} cannot be read: {why}", cert_path.display()), "a certificate chain is a PEM file, leaf first");
            return None;
        }
    };
    if chain.is_empty() {
        section.problem("cert", format!("{} holds no certificate", cert_path.display()), "a certificate chain is a PEM file, leaf first");
        return None;
    }
    match PrivateKeyDer::from_pem_slice(&key) {
        Ok(key) => Some(Identity { chain, key }),
        Err(why) => {
            section.problem("key", format!("{} holds no private key: {why}", key_path.display()), "a key is a PEM file: PKCS#8, PKCS#1 or SEC1");
            None
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
