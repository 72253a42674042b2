//! Which client certificates may call a route: `client_cert`.
//!
//! TLS has proven that the client holds the key of the certificate it showed; whose certificate that is, and whether this route's CA
//! signed it, is judged here, for each route by its own CA.

use std::{fmt, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use rustls::{
    RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    clock::{Mono, Now},
    event::Conn,
    reject::{Reason, Reject},
    section::{Item, Section, nearest},
};

/// A verdict on a connection's chain is asked for again after this long: certificates expire.
const FRESH: Duration = Duration::from_secs(60);

/// Verdicts kept for each route, of chains of at most [`CHAIN`] bytes.
const VERDICTS: usize = 256;
const CHAIN: usize = 16 * 1024;

type Chain = Arc<[CertificateDer<'static>]>;
type Verdict = Result<Arc<str>, &'static str>;

/// `client_cert` of one route.
pub(crate) struct Rule {
    verifier: Arc<dyn ClientCertVerifier>,
    allowed: Vec<Name>,
    /// By the chain's address: the entry holds the chain, so no other chain can come to lie there.
    verdicts: Cache<usize, (Chain, Verdict, Mono)>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// A name that a certificate may have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Attributes that all stand in the subject: object identifier and value.
    Subject(Vec<(String, String)>),
    Dns(String),
    Uri(String),
    Email(String),
}

/// Attributes by the names people write.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("CN", "2.5.4.3"),
    ("SN", "2.5.4.4"),
    ("SERIALNUMBER", "2.5.4.5"),
    ("C", "2.5.4.6"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("STREET", "2.5.4.9"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("UID", "0.9.2342.19200300.100.1.1"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("EMAILADDRESS", "1.2.840.113549.1.9.1"),
];

impl Rule {
    /// Reads `client_cert` of a route: `ca`, a PEM file of one or more CA certificates, by default `client_ca` of the server; `subjects`, such as `"CN=hooks"` or
    /// `"CN=hooks,O=Example"` (every part must stand in the subject); `sans`, such as `"dns:hooks.example.com"`, `"uri:spiffe://…"` or
    /// `"email:…"`. One name of the two lists is enough; without any, every certificate of the CA may call.
    pub(crate) fn read(route: &Section<'_>, client_ca: &[CertificateDer<'static>]) -> Option<Self> {
        let section = route.opt_section("client_cert")?;
        let verifier = if section.has("ca") {
            section.file("ca").map(|(path, pem)| {
                let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                read.map_err(|why| why.to_string())
                    .and_then(|certs| verifier(&certs))
                    .map_err(|why| section.problem("ca", format!("{} is no CA: {why}", path.display()), "name a PEM file with the CA's certificates"))
            })
        } else if client_ca.is_empty() {
            section.problem("ca", "`client_cert` names no CA", "add ca = \"tls/clients.pem\", here or as `client_ca` of [server.tls]");
            None
        } else {
            // Judged where it was read.
            Some(verifier(client_ca).map_err(|why| section.problem("ca", format!("`client_ca` is no CA: {why}"), "")))
        };
        let mut allowed = names(&section, "subjects", subject);
        allowed.extend(names(&section, "sans", alternative));
        section.finish();
        Some(Self { verifier: verifier?.ok()?, allowed, verdicts: Cache::new(VERDICTS) })
    }

    /// The subject of the client's certificate, if this route takes it.
    pub(crate) fn check(&self, conn: &Conn, now: Now) -> Result<Arc<str>, Reject> {
        let refuse = |why: &'static str| Reject::new(Reason::ClientCertNotAllowed, why);
        let chain = match &conn.tls {
            Some(tls) if !tls.client_chain.is_empty() => &tls.client_chain,
            Some(_) => return Err(refuse("the client showed no certificate")),
            None => return Err(refuse("the connection is not TLS: no certificate can be shown")),
        };
        let key = chain.as_ptr().addr();
        if let Some((held, verdict, at)) = self.verdicts.get(&key)
            && Arc::ptr_eq(&held, chain)
            && now.mono.since(at) < FRESH
        {
            return verdict.map_err(refuse);
        }
        let verdict = self.judge(chain, now);
        if chain.iter().map(|cert| cert.len()).sum::<usize>() <= CHAIN {
            self.verdicts.insert(key, (chain.clone(), verdict.clone(), now.mono));
        }
        verdict.map_err(refuse)
    }

    fn judge(&self, chain: &[CertificateDer<'static>], now: Now) -> Verdict {
        let (leaf, rest) = chain.split_first().ok_or("the client showed no certificate")?;
        let at = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(now.wall_ms).unwrap_or_default()));
        self.verifier.verify_client_cert(leaf, rest, at).map_err(|why| match why {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. }) => {
                "the client's certificate has expired"
            }
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => "the client's certificate is not of the route's CA",
            _ => "the client's certificate cannot be verified",
        })?;
        let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| "the client's certificate cannot be read")?;
        if self.allowed.is_empty() || self.allowed.iter().any(|name| name.names(&cert)) {
            return Ok(cert.subject().to_string().into());
        }
        Err("the client's certificate is not one of those allowed")
    }
}

fn verifier(cas: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for cert in cas {
        roots.add(cert.clone()).map_err(|why| why.to_string())?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|why| why.to_string())
}

impl Name {
    fn names(&self, cert: &X509Certificate<'_>) -> bool {
        if let Self::Subject(parts) = self {
            return parts.iter().all(|(oid, value)| {
                let same = |found: &x509_parser::x509::AttributeTypeAndValue<'_>| {
                    found.attr_type().to_id_string() == *oid && found.as_str().is_ok_and(|text| text == value)
                };
                cert.subject().iter_attributes().any(same)
            });
        }
        let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
        names.value.general_names.iter().any(|found| match (self, found) {
            (Self::Dns(ours), GeneralName::DNSName(theirs)) => ours.eq_ignore_ascii_case(theirs),
            (Self::Uri(ours), GeneralName::URI(theirs)) | (Self::Email(ours), GeneralName::RFC822Name(theirs)) => ours == theirs,
            _ => false,
        })
    }
}

fn names(section: &Section<'_>, key: &str, read: fn(&str) -> Result<Name, (String, String)>) -> Vec<Name> {
    let Some(items) = section.item(key).and_then(|item| item.items()) else { return Vec::new() };
    if items.is_empty() {
        section.problem(key, format!("`{key}` is empty"), "leave the key out to take every certificate of the CA");
    }
    let one = |item: &Item<'_>| match read(&item.string()?) {
        Ok(name) => Some(name),
        Err((message, help)) => {
            item.problem(message, help);
            None
        }
    };
    items.iter().filter_map(one).collect()
}

/// `CN=hooks,O=Example`; `\,` stands for a comma of a value.
fn subject(text: &str) -> Result<Name, (String, String)> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => parts.last_mut().expect("never empty").extend(chars.next()),
            ',' => parts.push(String::new()),
            c => parts.last_mut().expect("never empty").push(c),
        }
    }
    let mut found = Vec::new();
    for part in &parts {
        let Some((name, value)) = part.trim().split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err((format!("`{text}` is not a subject"), "write it like \"CN=hooks\" or \"CN=hooks,O=Example\"".to_owned()));
        };
        let upper = name.to_ascii_uppercase();
        let known = ATTRIBUTES.iter().find(|(known, _)| *known == upper).map(|(_, oid)| (*oid).to_owned());
        let dotted = || name.bytes().all(|b| b.is_ascii_digit() || b == b'.').then(|| name.to_owned()).filter(|oid| oid.contains('.'));
        let Some(oid) = known.or_else(dotted) else {
            let words: Vec<&str> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
            let near = nearest(&upper, &words).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            return Err((format!("`{name}` is not an attribute of a subject"), format!("{near}it is one of: {}, or dotted numbers", words.join(", "))));
        };
        found.push((oid, value.to_owned()));
    }
    Ok(Name::Subject(found))
}

fn alternative(text: &str) -> Result<Name, (String, String)> {
    match text.split_once(':') {
        Some(("dns", name)) if !name.is_empty() => Ok(Name::Dns(name.to_owned())),
        Some(("uri", name)) if !name.is_empty() => Ok(Name::Uri(name.to_owned())),
        Some(("email", name)) if !name.is_empty() => Ok(Name::Email(name.to_owned())),
        _ => Err((
            format!("`{text}` is not an alternative name"),
            "write it like \"dns:hooks.example.com\", \"uri:spiffe://example.com/hooks\" or \"email:ops@example.com\"".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

    use super::*;
    use crate::{
        clock::Clock,
        event::Tls,
        problem::Source,
        section::{Inputs, Reader},
    };

    const NOW: i64 = 1_800_000_000_000;

    struct Ca {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).expect("a certificate");
        Ca { pem: cert.pem(), issuer: Issuer::new(params, key) }
    }

    fn leaf(ca: &Ca, change: impl Fn(&mut CertificateParams)) -> Chain {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "hooks");
        params.distinguished_name.push(DnType::OrganizationName, "Example, Inc.");
        params.subject_alt_names =
            vec![SanType::DnsName("hooks.example.com".try_into().expect("a name")), SanType::URI("spiffe://example.com/hooks".try_into().expect("a name"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        vec![params.signed_by(&key, &ca.issuer).expect("a certificate").der().clone()].into()
    }

    fn conn(chain: Chain) -> Conn {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Conn { peer: at, socket: at, tls: Some(Tls { server_name: None, client_chain: chain }) }
    }

    fn read(pem: &str, keys: &str) -> (Option<Rule>, Vec<String>) {
        let text = format!("client_cert = {{ ca = \"ca.pem\"{keys} }}");
        let reader = Reader::new(Source { name: "t.toml".into(), text }, Inputs::memory(&[], &[("ca.pem", pem.as_bytes())]));
        let table = reader.parse();
        let root = reader.root(&table);
        let rule = Rule::read(&root, &[]);
        root.finish();
        (rule, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn check(pem: &str, keys: &str, chain: &Chain, want: Result<&str, &str>) {
        let (rule, problems) = read(pem, keys);
        assert_eq!(problems, [""; 0], "{keys}");
        let rule = rule.expect("no problems");
        for _ in 0..2 {
            let got = rule.check(&conn(chain.clone()), Clock::hand(NOW).now()).map_err(|why| {
                assert_eq!(why.reason, Reason::ClientCertNotAllowed);
                why.detail
            });
            assert_eq!(got.as_deref().map_err(|why| &**why), want, "{keys}");
        }
    }

    #[test]
    fn certificates_are_taken_by_ca_and_name() {
        let (ours, other) = (ca("Ours"), ca("Other"));
        let good = leaf(&ours, |_| ());
        let subject = Ok("CN=hooks, O=Example, Inc.");
        let refused = Err("the client's certificate is not one of those allowed");
        check(&ours.pem, "", &good, subject);
        check(&format!("{}{}", other.pem, ours.pem), "", &good, subject);
        check(&ours.pem, r#", subjects = ["CN=hooks"]"#, &good, subject);
        check(&ours.pem, r#", subjects = ["CN=other", "cn=hooks"]"#, &good, subject);
        check(&ours.pem, r#", subjects = ["O=Example\\, Inc., CN=hooks"]"#, &good, subject);
        check(&ours.pem, r#", subjects = ["2.5.4.3=hooks"]"#, &good, subject);
        check(&ours.pem, r#", subjects = ["CN=Hooks"]"#, &good, refused);
        check(&ours.pem, r#", subjects = ["CN=hook"]"#, &good, refused);
        check(&ours.pem, r#", subjects = ["O=hooks"]"#, &good, refused);
        check(&ours.pem, r#", subjects = ["CN=hooks,O=Example"]"#, &good, refused);
        check(&ours.pem, r#", sans = ["dns:HOOKS.example.com"]"#, &good, subject);
        check(&ours.pem, r#", sans = ["uri:spiffe://example.com/hooks"]"#, &good, subject);
        check(&ours.pem, r#", sans = ["uri:hooks.example.com"]"#, &good, refused);
        check(&ours.pem, r#", subjects = ["CN=other"], sans = ["dns:hooks.example.com"]"#, &good, subject);
        check(&other.pem, "", &good, Err("the client's certificate is not of the route's CA"));
        check(&other.pem, r#", subjects = ["CN=hooks"]"#, &good, Err("the client's certificate is not of the route's CA"));
        check(&ours.pem, "", &Chain::from([]), Err("the client showed no certificate"));
        let server = leaf(&ours, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        check(&ours.pem, "", &server, Err("the client's certificate cannot be verified"));
        let old = leaf(&ours, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        check(&ours.pem, "", &old, Err("the client's certificate has expired"));
        check(&ours.pem, "", &vec![CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])].into(), Err("the client's certificate cannot be verified"));
        let mut plain = conn(good);
        plain.tls = None;
        let (rule, _) = read(&ours.pem, "");
        assert!(rule.expect("no problems").check(&plain, Clock::hand(NOW).now()).is_err());
    }

    #[test]
    fn the_servers_client_ca_stands_in() {
        let ours = ca("Ours");
        let client_ca = vec![CertificateDer::from_pem_slice(ours.pem.as_bytes()).expect("PEM")];
        let read = |client_ca: &[CertificateDer<'static>]| {
            let text = "client_cert = { subjects = [\"CN=hooks\"] }".to_owned();
            let reader = Reader::new(Source { name: "t.toml".into(), text }, Inputs::memory(&[], &[]));
            let table = reader.parse();
            let rule = Rule::read(&reader.root(&table), client_ca);
            (rule, reader.problems().len())
        };
        assert!(matches!(read(&[]), (None, 1)));
        let (rule, problems) = read(&client_ca);
        assert_eq!(problems, 0);
        assert!(rule.expect("no problems").check(&conn(leaf(&ours, |_| ())), Clock::hand(NOW).now()).is_ok());
    }

    #[test]
    fn a_verdict_is_kept_for_its_chain_and_not_for_ever() {
        let (ours, other) = (ca("Ours"), ca("Other"));
        let (rule, _) = read(&ours.pem, "");
        let rule = rule.expect("no problems");
        let clock = Clock::hand(NOW);
        let short = leaf(&ours, |params| params.not_after = time::OffsetDateTime::from_unix_timestamp(NOW / 1000 + 30).expect("a time"));
        assert!(rule.check(&conn(short.clone()), clock.now()).is_ok());
        for _ in 0..600 {
            assert!(rule.check(&conn(leaf_like(&other)), clock.now()).is_err());
        }
        assert!(rule.check(&conn(short.clone()), clock.now()).is_ok());
        clock.advance(FRESH);
        assert!(rule.check(&conn(short), clock.now()).is_err());
    }

    /// Another allocation each time, most likely where the last one was.
    fn leaf_like(ca: &Ca) -> Chain {
        static MADE: std::sync::OnceLock<CertificateDer<'static>> = std::sync::OnceLock::new();
        vec![MADE.get_or_init(|| leaf(ca, |_| ())[0].clone()).clone()].into()
    }

    #[test]
    fn problems_say_what_to_write() {
        let pem = ca("Ours").pem;
        let check = |pem: &str, keys: &str, want: &[&str]| assert_eq!(read(pem, keys).1, want, "{keys}");
        check("", "", &["client_cert.ca: ca.pem is no CA: there is no certificate in it (name a PEM file with the CA's certificates)"]);
        check(&pem, ", subjects = []", &["client_cert.subjects: `subjects` is empty (leave the key out to take every certificate of the CA)"]);
        check(&pem, ", subjects = [\"hooks\"]", &["client_cert.subjects[0]: `hooks` is not a subject (write it like \"CN=hooks\" or \"CN=hooks,O=Example\")"]);
        check(
            &pem,
            ", subjects = [\"CM=hooks\"]",
            &[
                "client_cert.subjects[0]: `CM` is not an attribute of a subject (did you mean `CN`? it is one of: CN, SN, SERIALNUMBER, C, L, ST, STREET, O, OU, UID, DC, EMAILADDRESS, or dotted numbers)",
            ],
        );
        check(
            &pem,
            ", sans = [\"hooks.example.com\"]",
            &[
                "client_cert.sans[0]: `hooks.example.com` is not an alternative name (write it like \"dns:hooks.example.com\", \"uri:spiffe://example.com/hooks\" or \"email:ops@example.com\")",
            ],
        );
    }
}
