//! The digests and MACs that signatures are made of, and how their bytes are written as text.
//!
//! A keyed MAC is made once, when the policy is read, and cloned for every request: cloning copies a digest state and never
//! touches the key again.

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use hmac::{Hmac, KeyInit, Mac as _};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::public_key::Hash;

/// The longest digest, SHA-512's, in bytes.
pub(super) const MAX_TAG: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    pub(super) const WORDS: &'static [(&'static str, Algorithm)] =
        &[("sha1", Self::Sha1), ("sha256", Self::Sha256), ("sha384", Self::Sha384), ("sha512", Self::Sha512)];

    /// Bytes of the digest.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl From<Hash> for Algorithm {
    fn from(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1,
            Hash::Sha256 => Self::Sha256,
            Hash::Sha384 => Self::Sha384,
            Hash::Sha512 => Self::Sha512,
        }
    }
}

/// A running HMAC or plain digest.
#[derive(Clone)]
pub(super) enum Mac {
    HmacSha1(Hmac<Sha1>),
    HmacSha256(Hmac<Sha256>),
    HmacSha384(Hmac<Sha384>),
    HmacSha512(Hmac<Sha512>),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Mac {
    pub(super) fn hmac(algorithm: Algorithm, key: &[u8]) -> Self {
        const ANY: &str = "HMAC takes a key of any length";
        match algorithm {
            Algorithm::Sha1 => Self::HmacSha1(Hmac::new_from_slice(key).expect(ANY)),
            Algorithm::Sha256 => Self::HmacSha256(Hmac::new_from_slice(key).expect(ANY)),
            Algorithm::Sha384 => Self::HmacSha384(Hmac::new_from_slice(key).expect(ANY)),
            Algorithm::Sha512 => Self::HmacSha512(Hmac::new_from_slice(key).expect(ANY)),
        }
    }

    pub(super) fn digest(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha384 => Self::Sha384(Sha384::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::HmacSha1(mac) => mac.update(bytes),
            Self::HmacSha256(mac) => mac.update(bytes),
            Self::HmacSha384(mac) => mac.update(bytes),
            Self::HmacSha512(mac) => mac.update(bytes),
            Self::Sha1(digest) => Digest::update(digest, bytes),
            Self::Sha256(digest) => Digest::update(digest, bytes),
            Self::Sha384(digest) => Digest::update(digest, bytes),
            Self::Sha512(digest) => Digest::update(digest, bytes),
        }
    }

    pub(super) fn finish(self) -> Tag {
        match self {
            Self::HmacSha1(mac) => Tag::new(&mac.finalize().into_bytes()),
            Self::HmacSha256(mac) => Tag::new(&mac.finalize().into_bytes()),
            Self::HmacSha384(mac) => Tag::new(&mac.finalize().into_bytes()),
            Self::HmacSha512(mac) => Tag::new(&mac.finalize().into_bytes()),
            Self::Sha1(digest) => Tag::new(&digest.finalize()),
            Self::Sha256(digest) => Tag::new(&digest.finalize()),
            Self::Sha384(digest) => Tag::new(&digest.finalize()),
            Self::Sha512(digest) => Tag::new(&digest.finalize()),
        }
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mac([redacted])")
    }
}

/// A digest's bytes, computed or as a request carries them. Never printed: a computed one is a valid signature.
#[derive(Clone, Copy)]
pub(super) struct Tag {
    bytes: [u8; MAX_TAG],
    len: usize,
}

impl Tag {
    pub(super) fn new(from: &[u8]) -> Self {
        let mut bytes = [0; MAX_TAG];
        let len = from.len().min(MAX_TAG);
        bytes[..len].copy_from_slice(&from[..len]);
        Self { bytes, len }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Takes the same time whatever the bytes are; the lengths are no secret.
    pub(super) fn matches(&self, other: &Tag) -> Choice {
        self.as_slice().ct_eq(other.as_slice())
    }

    /// Becomes `other` where `yes`, in the same time either way.
    pub(super) fn assign_if(&mut self, other: &Tag, yes: Choice) {
        for (mine, theirs) in self.bytes.iter_mut().zip(&other.bytes) {
            mine.conditional_assign(theirs, yes);
        }
        self.len = if yes.into() { other.len } else { self.len };
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tag([{} bytes])", self.len)
    }
}

/// How bytes are written as text. Decoding is strict: no white space, no other alphabet, no loose trailing bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Lower case.
    Hex,
    /// Hexadecimal digits in either case.
    HexAny,
    /// With its padding.
    Base64,
    Base64NoPad,
    Base64Url,
    Base64UrlNoPad,
}

impl Encoding {
    fn table(self) -> data_encoding::Encoding {
        match self {
            Self::Hex => HEXLOWER,
            Self::HexAny => HEXLOWER_PERMISSIVE,
            Self::Base64 => BASE64,
            Self::Base64NoPad => BASE64_NOPAD,
            Self::Base64Url => BASE64URL,
            Self::Base64UrlNoPad => BASE64URL_NOPAD,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hex => "lower-case hex",
            Self::HexAny => "hex",
            Self::Base64 => "base64",
            Self::Base64NoPad => "base64 without padding",
            Self::Base64Url => "base64url",
            Self::Base64UrlNoPad => "base64url without padding",
        }
    }

    pub(super) fn encode(self, bytes: &[u8]) -> String {
        self.table().encode(bytes)
    }

    /// A digest of exactly `len` bytes.
    pub(super) fn decode_tag(self, text: &[u8], len: usize) -> Option<Tag> {
        let mut buffer = [0; MAX_TAG + 2];
        let table = self.table();
        let room = table.decode_len(text.len()).ok().filter(|room| *room <= buffer.len())?;
        let written = table.decode_mut(text, &mut buffer[..room]).ok()?;
        (written == len).then(|| Tag::new(&buffer[..written]))
    }

    /// A signature of 1 to `max` bytes.
    pub(super) fn decode_signature(self, text: &[u8], max: usize) -> Option<Vec<u8>> {
        let table = self.table();
        let room = table.decode_len(text.len()).ok()?;
        if room > max + 2 {
            return None;
        }
        table.decode(text).ok().filter(|bytes| (1..=max).contains(&bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_have_their_published_values() {
        let check = |mac: Mac, want: &str| assert_eq!(HEXLOWER.encode(mac.finish().as_slice()), want);
        let mut mac = Mac::hmac(Algorithm::Sha256, b"Jefe"); // RFC 4231, test case 2
        mac.update(b"what do ya want ");
        mac.update(b"for nothing?");
        check(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let mut mac = Mac::hmac(Algorithm::Sha1, b"Jefe"); // RFC 2202, test case 2
        mac.update(b"what do ya want for nothing?");
        check(mac, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        check(Mac::digest(Algorithm::Sha1), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        for (_, algorithm) in Algorithm::WORDS {
            assert_eq!(Mac::hmac(*algorithm, b"k").finish().as_slice().len(), algorithm.len());
            assert_eq!(Mac::digest(*algorithm).finish().as_slice().len(), algorithm.len());
        }
    }

    #[test]
    fn decoding_is_strict() {
        let tag = |encoding: Encoding, text: &str| encoding.decode_tag(text.as_bytes(), 2).map(|t| t.as_slice().to_vec());
        assert_eq!(tag(Encoding::Hex, "00ff"), Some(vec![0, 255]));
        for (encoding, bad) in [
            (Encoding::Hex, "00FF"),
            (Encoding::Hex, "00f"),
            (Encoding::Hex, "00ff00"),
            (Encoding::Hex, " 00ff"),
            (Encoding::Hex, ""),
            (Encoding::Base64, "AP8"),
            (Encoding::Base64, "AP8=\n"),
            (Encoding::Base64, "AP9="),
            (Encoding::Base64, "AP8=="),
            (Encoding::Base64NoPad, "AP8="),
            (Encoding::Base64Url, "AP8"),
            (Encoding::Base64, &"A".repeat(4000)),
        ] {
            assert_eq!(tag(encoding, bad), None, "{encoding:?} {bad}");
        }
        assert_eq!(tag(Encoding::HexAny, "00Ff"), Some(vec![0, 255]));
        assert_eq!(tag(Encoding::Base64, "AP8="), Some(vec![0, 255]));
        assert_eq!(tag(Encoding::Base64UrlNoPad, "_-4"), Some(vec![255, 238]));
        let signature = |text: &str, max| Encoding::Base64.decode_signature(text.as_bytes(), max);
        assert_eq!(signature("AP8=", 2), Some(vec![0, 255]));
        assert_eq!((signature("AP8=", 1), signature("", 2), signature("AP8=\n", 9), signature(&"A".repeat(4000), 1024)), (None, None, None, None));
    }
}
