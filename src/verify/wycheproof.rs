//! Project Wycheproof's vectors through the schemes as a policy names them: from the header's text to the verdict.
//!
//! Decided: a MAC is whole, so the vectors of truncated tags must be refused. Of the "acceptable" ones, RSA signatures whose DigestInfo
//! lacks its NULL are refused, as RFC 8017 asks of PKCS#1 v1.5; signatures with weak but whole parameters verify where the definition names
//! these parameters. Left out are parameters that no definition can name: other digests, other curves, PSS with another salt or MGF.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method};
use wycheproof::{TestResult, ecdsa, eddsa, mac, rsa_pkcs1_verify, rsa_pss_verify};

use super::{
    Catalogue, Means, Plan,
    cases::Request,
    public_key::{self, Trusted},
};
use crate::{
    problem::Source,
    secret::Secret,
    section::{Inputs, Reader},
};

const NOW: i64 = 1_760_000_000_000;

fn define(scheme: &str) -> Catalogue {
    let text =
        format!("[providers.own]\n{scheme}\nsignature = {{ header = \"X-Signature\", encoding = \"hex\" }}\nsigned = \"{{body}}\"\nreplay_key = \"content\"");
    let reader = Reader::new(Source { name: "t".into(), text }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    let catalogue = Catalogue::read(&reader.root(&table));
    assert!(reader.problems().is_empty(), "{:?}", reader.problems());
    catalogue
}

fn bind(catalogue: &Catalogue, secret: Option<&[u8]>, key: Option<&[u8]>) -> Result<Plan, String> {
    let secrets: Vec<Secret> = secret.into_iter().map(|secret| Secret::new("#1", HEXLOWER.encode(secret).into_bytes(), None)).collect();
    let keys = match key {
        None => Vec::new(),
        Some(text) => public_key::parse(text)?.into_iter().map(|key| Trusted { label: "#1".into(), not_after: None, key }).collect(),
    };
    let params = BTreeMap::new();
    let definition = catalogue.definition("own").expect("it was read");
    Plan::new(definition, &Means { public_keys: &keys, ..Means::new(&secrets, &params) })
}

fn accepts(plan: &Plan, message: &[u8], signature: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    headers.insert("x-signature", HeaderValue::from_str(&HEXLOWER.encode(signature)).expect("hex"));
    let body = Bytes::copy_from_slice(message);
    Request { method: Method::POST, base: "https://h".into(), target: "/".into(), headers, body: body.into() }.judge(plan, NOW).is_ok()
}

/// Counts the verdicts and names the wrong ones.
#[derive(Default)]
struct Tally {
    right: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn weigh(&mut self, what: &str, id: usize, comment: &str, due: bool, got: bool) {
        if due == got {
            self.right += 1;
        } else {
            self.wrong.push(format!("{what} {id} ({comment}): {due} was due"));
        }
    }

    fn end(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{} right, {} wrong:\n{}", self.right, self.wrong.len(), self.wrong.join("\n"));
        assert!(self.right >= at_least, "{}", self.right);
    }
}

#[test]
fn hmac() {
    let mut tally = Tally::default();
    for (name, algorithm, bits) in [
        (mac::TestName::HmacSha1, "sha1", 160),
        (mac::TestName::HmacSha256, "sha256", 256),
        (mac::TestName::HmacSha384, "sha384", 384),
        (mac::TestName::HmacSha512, "sha512", 512),
    ] {
        let catalogue = define(&format!("scheme = \"hmac\"\nalgorithm = \"{algorithm}\"\nkey = {{ encoding = \"hex\" }}"));
        for group in mac::TestSet::load(name).expect("a set").test_groups {
            for test in group.tests {
                let plan = bind(&catalogue, Some(&test.key), None).expect("a plan");
                let due = test.result == TestResult::Valid && group.tag_size == bits;
                tally.weigh(algorithm, test.tc_id, &test.comment, due, accepts(&plan, &test.msg, &test.tag));
            }
        }
    }
    tally.end(600);
}

#[test]
fn ed25519() {
    let mut tally = Tally::default();
    let catalogue = define("scheme = \"ed25519\"");
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).expect("a set").test_groups {
        for key in [group.pem.as_bytes(), &group.der[..], HEXLOWER.encode(&group.key.pk).as_bytes()] {
            let plan = bind(&catalogue, None, Some(key)).expect("a plan");
            for test in &group.tests {
                tally.weigh("ed25519", test.tc_id, &test.comment, test.result == TestResult::Valid, accepts(&plan, &test.msg, &test.sig));
            }
        }
    }
    tally.end(400);
}

#[test]
fn ecdsa() {
    let mut tally = Tally::default();
    for (name, scheme) in [
        (ecdsa::TestName::EcdsaSecp256r1Sha256, "curve = \"p256\"\nlayout = \"der\""),
        (ecdsa::TestName::EcdsaSecp256r1Sha256P1363, "curve = \"p256\"\nlayout = \"raw\""),
        (ecdsa::TestName::EcdsaSecp384r1Sha384, "curve = \"p384\"\nlayout = \"der\""),
        (ecdsa::TestName::EcdsaSecp384r1Sha384P1363, "curve = \"p384\"\nlayout = \"raw\""),
    ] {
        let catalogue = define(&format!("scheme = \"ecdsa\"\n{scheme}"));
        for group in ecdsa::TestSet::load(name).expect("a set").test_groups {
            let plan = bind(&catalogue, None, Some(group.pem.as_bytes())).expect("a plan");
            for test in &group.tests {
                tally.weigh(scheme, test.tc_id, &test.comment, test.result == TestResult::Valid, accepts(&plan, &test.msg, &test.sig));
            }
        }
    }
    tally.end(1500);
}

#[test]
fn rsa_pkcs1() {
    use rsa_pkcs1_verify::TestName as Name;
    let mut tally = Tally::default();
    for (name, algorithm) in [
        (Name::Rsa2048Sha256, "sha256"),
        (Name::Rsa2048Sha384, "sha384"),
        (Name::Rsa2048Sha512, "sha512"),
        (Name::Rsa3072Sha256, "sha256"),
        (Name::Rsa3072Sha384, "sha384"),
        (Name::Rsa3072Sha512, "sha512"),
        (Name::Rsa4096Sha256, "sha256"),
        (Name::Rsa4096Sha384, "sha384"),
        (Name::Rsa4096Sha512, "sha512"),
        (Name::Rsa8192Sha256, "sha256"),
        (Name::Rsa8192Sha384, "sha384"),
        (Name::Rsa8192Sha512, "sha512"),
    ] {
        let catalogue = define(&format!("scheme = \"rsa\"\nalgorithm = \"{algorithm}\"\npadding = \"pkcs1\""));
        for group in rsa_pkcs1_verify::TestSet::load(name).expect("a set").test_groups {
            let plan = bind(&catalogue, None, Some(group.pem.as_bytes())).expect("a plan");
            for test in &group.tests {
                tally.weigh(algorithm, test.tc_id, &test.comment, test.result == TestResult::Valid, accepts(&plan, &test.msg, &test.sig));
            }
        }
    }
    tally.end(2500);
}

#[test]
fn rsa_pss() {
    use rsa_pss_verify::TestName as Name;
    let mut tally = Tally::default();
    for (name, algorithm) in [
        (Name::RsaPss2048Sha256Mgf1SaltLen32, "sha256"),
        (Name::RsaPss2048Sha384Mgf1SaltLen48, "sha384"),
        (Name::RsaPss3072Sha256Mgf1SaltLen32, "sha256"),
        (Name::RsaPss4096Sha256Mgf1SaltLen32, "sha256"),
        (Name::RsaPss4096Sha384Mgf1SaltLen48, "sha384"),
        (Name::RsaPss4096Sha512Mgf1SaltLen64, "sha512"),
        // Another salt than the digest's length, which no definition can name.
        (Name::RsaPss2048Sha256Mgf1SaltLen0, "sha256"),
        (Name::RsaPss4096Sha512Mgf1SaltLen32, "sha512"),
    ] {
        let catalogue = define(&format!("scheme = \"rsa\"\nalgorithm = \"{algorithm}\"\npadding = \"pss\""));
        let whole = match algorithm {
            "sha256" => 32,
            "sha384" => 48,
            _ => 64,
        };
        for group in rsa_pss_verify::TestSet::load(name).expect("a set").test_groups {
            let plan = bind(&catalogue, None, Some(group.pem.as_bytes())).expect("a plan");
            for test in &group.tests {
                // One of them has been given the right salt, which makes it good.
                let due = if group.salt_size == whole { test.result == TestResult::Valid } else { test.comment == format!("s_len changed to {whole}") };
                tally.weigh(&format!("{algorithm} salt {}", group.salt_size), test.tc_id, &test.comment, due, accepts(&plan, &test.msg, &test.sig));
            }
        }
    }
    tally.end(700);
}
