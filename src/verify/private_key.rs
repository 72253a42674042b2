//! Private keys, for `hooklatch send --key` alone: the gate never holds one that verifies. PEM (PKCS#8, PKCS#1, SEC 1), JWK, or the
//! 32 bytes of an Ed25519 seed in hex or base64. Signing is aws-lc-rs's, the library that verifies.

use std::fmt;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair},
};
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use zeroize::Zeroizing;

use super::public_key::{Algorithm, Curve, Hash, Layout, Padding, PublicKey};

/// A key that signs. Prints nothing of itself.
pub(crate) struct PrivateKey(Kind);

enum Kind {
    Ed25519(Ed25519KeyPair),
    /// Made ready for each way of writing its signatures.
    Ec {
        curve: Curve,
        der: EcdsaKeyPair,
        raw: EcdsaKeyPair,
    },
    Rsa(RsaKeyPair),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}

impl PrivateKey {
    /// The error never shows anything of the key.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let bytes = bytes.trim_ascii();
        if bytes.starts_with(b"{") {
            let jwk: Value = serde_json::from_slice(bytes).map_err(|_| "the key is neither PEM nor a JWK")?;
            return Self::jwk(&jwk);
        }
        if let Ok(der) = PrivateKeyDer::from_pem_slice(bytes) {
            return Self::der(&der);
        }
        if bytes.windows(9).any(|part| part == b"ENCRYPTED") {
            return Err("the key is encrypted: write it without its passphrase, with openssl pkey".to_owned());
        }
        let seed = HEXLOWER_PERMISSIVE.decode(bytes).ok().or_else(|| BASE64.decode(bytes).ok()).map(Zeroizing::new);
        match seed.as_deref().map(Vec::as_slice) {
            Some(seed @ [_, ..]) if seed.len() == 32 => {
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| "the Ed25519 seed cannot be used")?;
                Ok(Self(Kind::Ed25519(pair)))
            }
            _ => Err("the key is neither PEM, a JWK, nor an Ed25519 seed of 32 bytes in hex or base64".to_owned()),
        }
    }

    fn der(der: &PrivateKeyDer<'_>) -> Result<Self, String> {
        let bytes = der.secret_der();
        if let PrivateKeyDer::Pkcs8(_) = der
            && let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes)
        {
            return Ok(Self(Kind::Ed25519(pair)));
        }
        let rsa = match der {
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(bytes).ok(),
            _ => RsaKeyPair::from_pkcs8(bytes).ok(),
        };
        if let Some(pair) = rsa {
            return Ok(Self(Kind::Rsa(pair)));
        }
        for curve in [Curve::P256, Curve::P384] {
            let pair = |layout| EcdsaKeyPair::from_private_key_der(ecdsa(curve, layout), bytes).ok();
            if let (Some(der), Some(raw)) = (pair(Layout::Der), pair(Layout::Raw)) {
                return Ok(Self(Kind::Ec { curve, der, raw }));
            }
        }
        Err("the key is of no kind that webhooks are signed with here: Ed25519, ECDSA on P-256 or P-384, RSA".to_owned())
    }

    fn jwk(jwk: &Value) -> Result<Self, String> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let number = |name: &str| -> Result<Zeroizing<Vec<u8>>, String> {
            let written = text(name).ok_or_else(|| format!("the JWK has no `{name}`: is it the public one?"))?;
            BASE64URL_NOPAD.decode(written.as_bytes()).map(Zeroizing::new).map_err(|_| format!("the JWK's `{name}` is not base64url"))
        };
        match (text("kty"), text("crv")) {
            (Some("OKP"), Some("Ed25519")) => {
                let pair =
                    Ed25519KeyPair::from_seed_and_public_key(&number("d")?, &number("x")?).map_err(|_| "the JWK's `d` and `x` do not belong together")?;
                Ok(Self(Kind::Ed25519(pair)))
            }
            (Some("EC"), Some(name @ ("P-256" | "P-384"))) => {
                let curve = if name == "P-256" { Curve::P256 } else { Curve::P384 };
                let (d, point) = (number("d")?, [&[4][..], &number("x")?, &number("y")?].concat());
                let pair = |layout| EcdsaKeyPair::from_private_key_and_public_key(ecdsa(curve, layout), &d, &point);
                match (pair(Layout::Der), pair(Layout::Raw)) {
                    (Ok(der), Ok(raw)) => Ok(Self(Kind::Ec { curve, der, raw })),
                    _ => Err("the JWK's `d`, `x` and `y` do not belong together".to_owned()),
                }
            }
            (Some("RSA"), _) => Err("an RSA key is taken as PEM: openssl and most tools write it".to_owned()),
            _ => Err("the JWK is of no kind that webhooks are signed with here: OKP with Ed25519, EC with P-256 or P-384".to_owned()),
        }
    }

    /// The key that verifies what this one signs.
    pub(crate) fn public(&self) -> Result<PublicKey, String> {
        let der: Result<PublicKeyX509Der<'_>, _> = match &self.0 {
            Kind::Ed25519(pair) => pair.public_key().as_der(),
            Kind::Ec { der, .. } => der.public_key().as_der(),
            Kind::Rsa(pair) => pair.public_key().as_der(),
        };
        PublicKey::from_spki(der.map_err(|_| "the key has no public one")?.as_ref())
    }

    pub(super) fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, String> {
        let failed = || "the key does not sign".to_owned();
        match (&self.0, algorithm) {
            (Kind::Ed25519(pair), Algorithm::Ed25519) => Ok(pair.sign(message).as_ref().to_vec()),
            (Kind::Ec { curve, der, raw }, Algorithm::Ecdsa(wanted, layout)) if *curve == wanted => {
                let pair = if layout == Layout::Der { der } else { raw };
                pair.sign(&SystemRandom::new(), message).map(|signature| signature.as_ref().to_vec()).map_err(|_| failed())
            }
            (Kind::Rsa(pair), Algorithm::Rsa(hash, padding)) => {
                let encoding: &'static dyn RsaEncoding = match (hash, padding) {
                    (Hash::Sha256, Padding::Pkcs1) => &signature::RSA_PKCS1_SHA256,
                    (Hash::Sha384, Padding::Pkcs1) => &signature::RSA_PKCS1_SHA384,
                    (Hash::Sha512, Padding::Pkcs1) => &signature::RSA_PKCS1_SHA512,
                    (Hash::Sha256, Padding::Pss) => &signature::RSA_PSS_SHA256,
                    (Hash::Sha384, Padding::Pss) => &signature::RSA_PSS_SHA384,
                    (Hash::Sha512, Padding::Pss) => &signature::RSA_PSS_SHA512,
                    (Hash::Sha1, _) => return Err("nothing is signed with SHA-1 here any more".to_owned()),
                };
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut out).map_err(|_| failed())?;
                Ok(out)
            }
            _ => Err(format!("this provider signs by {algorithm}, and the key is of another kind")),
        }
    }
}

fn ecdsa(curve: Curve, layout: Layout) -> &'static EcdsaSigningAlgorithm {
    match (curve, layout) {
        (Curve::P256, Layout::Der) => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        (Curve::P256, Layout::Raw) => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        (Curve::P384, Layout::Der) => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
        (Curve::P384, Layout::Raw) => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::{
        secret::Secret,
        verify::{
            Catalogue, Means, Plan,
            cases::Request,
            public_key::Trusted,
            sign::{Wishes, sign},
        },
    };

    fn pems() -> Vec<String> {
        [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256]
            .map(|algorithm| rcgen::KeyPair::generate_for(algorithm).expect("a key").serialize_pem())
            .to_vec()
    }

    #[test]
    fn keys_sign_what_their_public_ones_verify() {
        for pem in pems() {
            let key = PrivateKey::parse(pem.as_bytes()).expect("a key");
            let public = key.public().expect("its public one");
            let (p256, p384) = (Curve::P256, Curve::P384);
            let mut served = 0;
            for algorithm in [
                Algorithm::Ed25519,
                Algorithm::Ecdsa(p256, Layout::Der),
                Algorithm::Ecdsa(p256, Layout::Raw),
                Algorithm::Ecdsa(p384, Layout::Der),
                Algorithm::Ecdsa(p384, Layout::Raw),
                Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1),
                Algorithm::Rsa(Hash::Sha512, Padding::Pss),
            ] {
                let signed = key.sign(algorithm, b"text");
                assert_eq!(signed.is_ok(), public.serves(algorithm), "{algorithm}");
                if let Ok(signed) = signed {
                    assert!(public.verify(algorithm, b"text", &signed) && !public.verify(algorithm, b"other", &signed), "{algorithm}");
                    served += 1;
                }
            }
            assert!(served > 0);
            assert_eq!(format!("{key:?}"), "PrivateKey([redacted])");
        }
    }

    #[test]
    fn other_forms_are_read_and_nothing_is_said_of_a_bad_one() {
        // RFC 8032, 7.1, test 1; the same as a JWK.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let (one, two) = (PrivateKey::parse(seed.as_bytes()).expect("a seed"), PrivateKey::parse(jwk.as_bytes()).expect("a JWK"));
        assert!(one.public().expect("a key").same(&two.public().expect("a key")));
        for bad in [
            "",
            "s3cret",
            "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"s3cret\"}",
            "{\"kty\":\"oct\",\"k\":\"s3cret\"}",
            "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----",
        ] {
            let why = PrivateKey::parse(bad.as_bytes()).expect_err(bad);
            assert!(!why.contains("s3cret"), "{why}");
        }
    }

    /// Every preset that verifies by a public key over a template signs what it would itself accept.
    #[test]
    fn presets_of_key_pairs_are_signed() {
        let catalogue = Catalogue::shipped();
        let keys: Vec<Arc<PrivateKey>> = pems().iter().map(|pem| Arc::new(PrivateKey::parse(pem.as_bytes()).expect("a key"))).collect();
        let mut signed = Vec::new();
        for name in catalogue.names() {
            let definition = catalogue.definition(name).expect("a name of the catalogue");
            let params: BTreeMap<String, String> = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
            for key in &keys {
                let trusted = [Trusted { label: "#1".into(), not_after: None, key: key.public().expect("a key") }];
                let Ok(plan) = Plan::new(definition, &Means { public_keys: &trusted, ..Means::new(&[], &params) }) else { continue };
                if !plan.signs_by_key_pair() {
                    continue;
                }
                let mut request = Request {
                    method: Method::POST,
                    base: "https://hooks.example.com".into(),
                    target: "/in".into(),
                    headers: HeaderMap::new(),
                    body: Bytes::from_static(b"{\"id\":\"evt_1\",\"type\":\"t\"}").into(),
                };
                request.headers.insert("content-type", HeaderValue::from_static("application/json"));
                let wishes = Wishes { id: "msg_1".into(), now_ms: 1_760_000_000_123, key: Some(key.clone()), ..Wishes::default() };
                let nobody = Secret::new("", Vec::new(), None);
                match sign(&plan, &nobody, &mut request, &wishes) {
                    Ok(()) => signed.push(name),
                    // SHA-1 is verified where a provider still uses it, and never made.
                    Err(why) => assert!(why.contains("SHA-1"), "{name}: {why}"),
                }
            }
        }
        signed.dedup();
        assert!(signed.contains(&"discord") && signed.contains(&"sendgrid"), "{signed:?}");
    }
}
