//! TLS: certificates by server name, swapped while the gate runs; resumption by tickets and by session; client certificates.
//!
//! Client certificates are asked for when the policy wants them anywhere and never demanded here: a route demands. No early data,
//! since a replayed first flight would be a replayed webhook.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use zeroize::Zeroizing;

use crate::{clock::Now, problem::Problem, section::Section};

/// How many TLS 1.2 sessions are remembered for clients that resume without a ticket.
const SESSIONS: usize = 1024;
const DAY: i64 = 86_400;
/// A self-signed leaf lives for as long as browsers take, and is renewed a month before its end.
const LEAF_DAYS: i64 = 397;
const CA_DAYS: i64 = 3650;
const RENEW_DAYS: i64 = 30;

/// Everything `[server.tls]` says, read and judged.
#[derive(Clone, Debug)]
pub(crate) struct TlsMaterial {
    /// The first is the default; empty only with `self_signed`.
    certificates: Vec<Certificate>,
    self_signed: bool,
    /// The certificates of `client_ca`; empty without one.
    pub(crate) client_ca: Vec<CertificateDer<'static>>,
    tls13_only: bool,
}

/// One certificate chain with its key.
#[derive(Clone, Debug)]
struct Certificate {
    /// The file's name as the policy writes it, for metrics.
    label: String,
    key: Arc<CertifiedKey>,
    /// DNS names, lower case; a wildcard as `*.example.com`.
    names: Vec<String>,
    /// Unix seconds.
    not_after: i64,
}

impl TlsMaterial {
    /// Without `[server.tls]`: TLS all the same, with a certificate of our own making.
    pub(crate) fn self_signed() -> Self {
        Self { certificates: Vec::new(), self_signed: true, client_ca: Vec::new(), tls13_only: false }
    }

    pub(crate) fn is_self_signed(&self) -> bool {
        self.self_signed
    }
}

/// Reads `[server.tls]`.
pub(super) fn read(section: Section<'_>, now: Now) -> Option<TlsMaterial> {
    section.not_built("acme", "certificates by ACME");
    let self_signed = section.bool_or("self_signed", false);
    let tls13_only = section.choice("min_version", &[("1.2", false), ("1.3", true)]).unwrap_or(false);
    let mut certificates = Vec::new();
    let mut sound = true;
    if section.has("cert") || section.has("key") {
        match certificate(&section, now) {
            Some(one) => certificates.push(one),
            None => sound = false,
        }
    }
    if let Some(list) = section.item("certificates") {
        for item in list.items().unwrap_or_default() {
            match item.section().map(|entry| (certificate(&entry, now), entry)) {
                Some((Some(one), entry)) => {
                    certificates.push(one);
                    entry.finish();
                }
                Some((None, entry)) => {
                    entry.finish();
                    sound = false;
                }
                None => sound = false,
            }
        }
    }
    let client_ca = client_ca(&section);
    if self_signed && !certificates.is_empty() {
        section.problem("self_signed", "`self_signed` and `cert` exclude each other", "keep one of the two");
    } else if !self_signed && certificates.is_empty() && sound && !section.has("acme") {
        section.problem("cert", "[server.tls] names no certificate", "set `cert` and `key`, or `self_signed = true` for development");
        sound = false;
    }
    section.finish();
    sound.then_some(TlsMaterial { certificates, self_signed, client_ca, tls13_only })
}

/// `cert` and `key` of one table.
fn certificate(section: &Section<'_>, now: Now) -> Option<Certificate> {
    let label = section.string("cert");
    let cert = label.as_ref().and_then(|_| section.file("cert")); // both are read before either `?`: one run reports both
    let key = section.string("key").and_then(|_| section.file("key"));
    let ((cert_path, cert_pem), (key_path, key_pem)) = (cert?, key?);
    let key_pem = Zeroizing::new(key_pem);
    let (cert_at, key_at) = (cert_path.display(), key_path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_pem).collect();
    let chain = match chain {
        Ok(chain) if !chain.is_empty() => chain,
        Ok(_) => {
            section.problem("cert", format!("{cert_at} holds no certificate"), "give a PEM file with the certificate first and its intermediates after it");
            return None;
        }
        Err(why) => {
            section.problem("cert", format!("{cert_at} is not PEM: {why}"), "give a PEM file with the certificate first and its intermediates after it");
            return None;
        }
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(&key_pem) else {
        section.problem("key", format!("{key_at} holds no private key"), "give an unencrypted PEM key: PKCS#8, PKCS#1 or SEC1");
        return None;
    };
    let key = match CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()) {
        Ok(key) => key,
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            section.problem(
                "key",
                format!("{key_at} is not the key of {cert_at}"),
                "name the key that the certificate was issued for; the server's own certificate comes first in its file",
            );
            return None;
        }
        Err(Error::InvalidCertificate(_)) => {
            section.problem("cert", format!("the first certificate of {cert_at} cannot be read"), "the server's own certificate, X.509 version 3, comes first");
            return None;
        }
        Err(_) => {
            section.problem("key", format!("the key in {key_at} cannot be used"), "use an RSA (2048 bits or more), ECDSA (P-256, P-384, P-521) or Ed25519 key");
            return None;
        }
    };
    let Some((names, not_before, not_after)) = facts(&key) else {
        section.problem("cert", format!("the first certificate of {cert_at} cannot be read"), "the server's own certificate, X.509 version 3, comes first");
        return None;
    };
    let seconds = now.wall_ms.div_euclid(1000);
    if not_after < seconds {
        section.warn(
            "cert",
            format!("the certificate in {cert_at} expired {} ago", days(seconds - not_after)),
            "renew it: senders that check certificates refuse it",
        );
    } else if not_before > seconds {
        section.warn(
            "cert",
            format!("the certificate in {cert_at} is valid only in {}", days(not_before - seconds)),
            "check the system's clock, or use the current certificate",
        );
    } else if not_after - seconds < 7 * DAY {
        section.warn("cert", format!("the certificate in {cert_at} expires in {}", days(not_after - seconds)), "renew it");
    }
    Some(Certificate { label: label?, key: Arc::new(key), names, not_after })
}

fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => format!("{} h", seconds / 3600),
        days => format!("{days} d"),
    }
}

/// DNS names and validity in Unix seconds.
fn facts(key: &CertifiedKey) -> Option<(Vec<String>, i64, i64)> {
    let (_, leaf) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()?.map(|names| {
        let dns = names.value.general_names.iter().filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        dns.collect()
    });
    let validity = leaf.validity();
    Some((names.unwrap_or_default(), validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn client_ca(section: &Section<'_>) -> Vec<CertificateDer<'static>> {
    let Some((path, pem)) = section.item("client_ca").and_then(|item| item.file()) else { return Vec::new() };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = read.unwrap_or_default();
    let usable = RootCertStore::empty().add_parsable_certificates(certificates.iter().cloned()).0;
    if certificates.is_empty() || usable != certificates.len() {
        section.problem("client_ca", format!("{} is not a PEM file of CA certificates", path.display()), "give the CA that issued the clients' certificates");
        return Vec::new();
    }
    certificates
}

/// What lives as long as the process: the certificates in use, and the keys of the tickets.
#[derive(Debug)]
pub(super) struct TlsState {
    resolver: Arc<Resolver>,
    ticketer: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
    provider: Arc<CryptoProvider>,
    /// The CAs and the asking that the current tickets were issued under.
    asked: (bool, Vec<CertificateDer<'static>>),
}

#[derive(Debug, Default)]
struct Resolver(ArcSwap<Table>);

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    all: Vec<Arc<CertifiedKey>>,
    expiries: Vec<(String, i64)>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().choose(hello.server_name(), hello.signature_schemes())
    }
}

impl Table {
    fn new(certificates: &[Certificate]) -> Self {
        let mut table = Self::default();
        for one in certificates {
            table.all.push(Arc::clone(&one.key));
            table.expiries.push((one.label.clone(), one.not_after));
            for name in &one.names {
                table.by_name.entry(name.clone()).or_default().push(Arc::clone(&one.key));
            }
        }
        table
    }

    /// The name's own certificate, else a wildcard's, else the first; among several the first that the client can verify.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |keys: &[Arc<CertifiedKey>]| keys.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned();
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let exact = self.by_name.get(&name).and_then(|keys| usable(keys));
            exact.or_else(|| name.split_once('.').and_then(|(_, parent)| usable(self.by_name.get(&format!("*.{parent}"))?)))
        });
        named.or_else(|| usable(&self.all))
    }
}

impl TlsState {
    pub(super) fn new() -> Result<Self, Problem> {
        Ok(Self {
            resolver: Arc::default(),
            ticketer: aws_lc_rs::Ticketer::new().map_err(|why| Problem::error("server.tls", None, format!("no ticket keys can be made: {why}")))?,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
            provider: Arc::new(aws_lc_rs::default_provider()),
            asked: (false, Vec::new()),
        })
    }

    /// Puts `material` in use and yields the configuration for new connections. `ask`: a route judges client certificates by a CA of
    /// its own, so any chain is let through the handshake once its key is proven.
    pub(super) fn build(&mut self, material: &TlsMaterial, own: Option<&SelfSigned>, ask: bool) -> Result<Arc<ServerConfig>, Problem> {
        let problem = |why: Error| Problem::error("server.tls", None, format!("TLS cannot be set up: {why}"));
        // A session resumed under other rules for client certificates would carry a chain that was judged by the old ones.
        let asked = (ask, material.client_ca.clone());
        if asked != self.asked {
            self.ticketer = aws_lc_rs::Ticketer::new().map_err(problem)?;
            self.sessions = ServerSessionMemoryCache::new(SESSIONS);
            self.asked = asked;
        }
        let versions: &[_] = if material.tls13_only { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider)).with_protocol_versions(versions).map_err(problem)?;
        let builder = match self.verifier(&material.client_ca, ask)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&self.resolver) as _;
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = Arc::clone(&self.ticketer);
        config.session_storage = Arc::clone(&self.sessions);
        config.max_early_data_size = 0;
        let table = match own {
            Some(own) if material.self_signed => Table::new(std::slice::from_ref(&own.certificate)),
            _ => Table::new(&material.certificates),
        };
        self.resolver.0.store(Arc::new(table));
        Ok(Arc::new(config))
    }

    /// Only new certificates of the same material: a renewed self-signed leaf.
    pub(super) fn renew(&self, own: &SelfSigned) {
        self.resolver.0.store(Arc::new(Table::new(std::slice::from_ref(&own.certificate))));
    }

    /// Name and end, in Unix seconds, of every certificate in use.
    pub(super) fn expiries(&self) -> Vec<(String, i64)> {
        self.resolver.0.load().expiries.clone()
    }

    fn verifier(&self, client_ca: &[CertificateDer<'static>], ask: bool) -> Result<Option<Arc<dyn ClientCertVerifier>>, Problem> {
        if ask {
            return Ok(Some(Arc::new(Proof { algorithms: self.provider.signature_verification_algorithms })));
        }
        if client_ca.is_empty() {
            return Ok(None);
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(client_ca.iter().cloned());
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider)).allow_unauthenticated().build();
        built.map(Some).map_err(|why| Problem::error("server.tls.client_ca", None, format!("the client CA cannot be used: {why}")))
    }
}

/// Asks for a client certificate and checks that the client holds its key; who issued it is the route's to judge.
#[derive(Debug)]
struct Proof {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Proof {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate for development, issued by a CA that lives in the state directory.
#[derive(Clone, Debug)]
pub(super) struct SelfSigned {
    certificate: Certificate,
    /// What a client is told to trust.
    pub(super) ca_file: PathBuf,
}

impl SelfSigned {
    /// Reads or makes `tls/` in the state directory: `ca.pem`, `ca-key.pem`, `server.pem`, `server-key.pem`; keys have mode 0600.
    pub(super) fn open(state_dir: &Path, now: Now) -> Result<Self, Problem> {
        let dir = state_dir.join("tls");
        let made = Self::read(&dir, now).map_or_else(|| Self::make(&dir, now), Ok);
        made.map_err(|why| {
            let message = format!("no self-signed certificate can be kept in {}: {why}", dir.display());
            Problem::error("server.tls.self_signed", None, message).help("make the state directory writable, or name a certificate with `cert` and `key`")
        })
    }

    /// Whether it is time for a new leaf.
    pub(super) fn due(&self, now: Now) -> bool {
        self.certificate.not_after - now.wall_ms.div_euclid(1000) < RENEW_DAYS * DAY
    }

    /// The stored leaf, if it is still good: for the names of this machine, and issued by the CA beside it.
    fn read(dir: &Path, now: Now) -> Option<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&fs::read(dir.join("server.pem")).ok()?).collect::<Result<_, _>>().ok()?;
        let ca = CertificateDer::from_pem_slice(&fs::read(dir.join("ca.pem")).ok()?).ok()?;
        let (_, issuer) = x509_parser::parse_x509_certificate(&ca).ok()?;
        let (_, leaf) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
        let same_issuer = leaf.issuer() == issuer.subject() && leaf_authority(&leaf) == own_identifier(&issuer);
        let ca_lasts = issuer.validity().not_after.timestamp() >= leaf.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(&Zeroizing::new(fs::read(dir.join("server-key.pem")).ok()?)).ok()?;
        let one = Self::of(dir, CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).ok()?)?;
        let named = host_names().iter().all(|name| one.certificate.names.contains(name));
        (same_issuer && ca_lasts && named && !one.due(now)).then_some(one)
    }

    fn of(dir: &Path, key: CertifiedKey) -> Option<Self> {
        let (names, _, not_after) = facts(&key)?;
        let certificate = Certificate { label: "self_signed".to_owned(), key: Arc::new(key), names, not_after };
        Some(Self { certificate, ca_file: dir.join("ca.pem") })
    }

    fn make(dir: &Path, now: Now) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let (issuer, fresh_ca) = match stored_ca(dir, now) {
            Some(key) => (rcgen::Issuer::new(ca_params(now)?, key), None),
            None => {
                let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
                let params = ca_params(now)?;
                let pem = params.self_signed(&key).map_err(io::Error::other)?.pem();
                let key_pem = Zeroizing::new(key.serialize_pem());
                (rcgen::Issuer::new(params, key), Some((pem, key_pem)))
            }
        };
        if let Some((pem, key_pem)) = fresh_ca {
            write(&dir.join("ca-key.pem"), key_pem.as_bytes(), 0o600)?;
            write(&dir.join("ca.pem"), pem.as_bytes(), 0o644)?;
        }
        let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
        let leaf = leaf_params(now)?.signed_by(&key, &issuer).map_err(io::Error::other)?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        write(&dir.join("server-key.pem"), key_pem.as_bytes(), 0o600)?;
        write(&dir.join("server.pem"), leaf.pem().as_bytes(), 0o644)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(io::Error::other)?;
        let key = CertifiedKey::from_der(vec![leaf.der().clone()], key, &aws_lc_rs::default_provider()).map_err(io::Error::other)?;
        Self::of(dir, key).ok_or_else(|| io::Error::other("the new certificate cannot be read"))
    }
}

/// The key of the stored CA, if the CA outlives a new leaf and the key is its own.
fn stored_ca(dir: &Path, now: Now) -> Option<rcgen::KeyPair> {
    let ca = CertificateDer::from_pem_slice(&fs::read(dir.join("ca.pem")).ok()?).ok()?;
    let key = rcgen::KeyPair::from_pem(&Zeroizing::new(fs::read_to_string(dir.join("ca-key.pem")).ok()?)).ok()?;
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).ok()?;
    let lasts = ca.validity().not_after.timestamp() > now.wall_ms.div_euclid(1000) + (LEAF_DAYS + 1) * DAY;
    (lasts && ca.public_key().subject_public_key.data == key.public_key_raw()).then_some(key)
}

fn own_identifier(cert: &x509_parser::certificate::X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn leaf_authority(cert: &x509_parser::certificate::X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn params(now: Now, common_name: &str, days: i64) -> io::Result<rcgen::CertificateParams> {
    let start = time::OffsetDateTime::from_unix_timestamp(now.wall_ms.div_euclid(1000)).map_err(io::Error::other)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    params.not_before = start - time::Duration::DAY; // clients' clocks run behind
    params.not_after = start + time::Duration::days(days);
    Ok(params)
}

fn ca_params(now: Now) -> io::Result<rcgen::CertificateParams> {
    let mut params = params(now, "Hooklatch development CA", CA_DAYS)?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign, rcgen::KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn leaf_params(now: Now) -> io::Result<rcgen::CertificateParams> {
    let mut params = params(now, "Hooklatch", LEAF_DAYS)?;
    for name in host_names() {
        params.subject_alt_names.push(rcgen::SanType::DnsName(name.try_into().map_err(io::Error::other)?));
    }
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        params.subject_alt_names.push(rcgen::SanType::IpAddress(ip));
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// `localhost`, and the machine's name where it is a DNS name.
fn host_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase();
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if host.len() <= 253 && host.split('.').all(label) && !names.contains(&host) {
        names.push(host);
    }
    names
}

/// Replaces a file whole: a crash leaves the old one or the new one.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
