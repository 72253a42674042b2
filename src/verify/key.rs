//! From a configured secret to the bytes that key the MAC.

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use icu_normalizer::DecomposingNormalizerBorrowed;
use sha1::{Digest, Sha1};
use zeroize::Zeroizing;

use crate::section::Section;

/// How a secret becomes a key. Text as it stands, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyForm {
    pub(super) encoding: KeyEncoding,
    /// Cut off where the secret starts with it, before decoding.
    pub(super) strip_prefix: String,
    /// Put behind the text before anything else, such as Fitbit's `&`.
    pub(super) suffix: String,
    /// Whether the text is normalised to NFKD first.
    pub(super) nfkd: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KeyEncoding {
    #[default]
    Utf8,
    /// In either letter case.
    Hex,
    /// Standard alphabet, with or without its padding.
    Base64,
    /// The SHA-1 digest of the text is the key.
    DigestSha1,
}

impl KeyForm {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let words = [("utf8", KeyEncoding::Utf8), ("hex", KeyEncoding::Hex), ("base64", KeyEncoding::Base64), ("digest-sha1", KeyEncoding::DigestSha1)];
        Self {
            encoding: section.choice("encoding", &words).unwrap_or_default(),
            strip_prefix: section.string_or("strip_prefix", ""),
            suffix: section.string_or("suffix", ""),
            nfkd: section.choice("normalize", &[("nfkd", true)]).unwrap_or(false),
        }
    }

    /// The error says what is wrong with the secret and never shows it.
    pub(super) fn bytes(&self, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let text = secret.strip_prefix(self.strip_prefix.as_bytes()).unwrap_or(secret);
        if text.is_empty() {
            return Err("the secret is empty once its prefix is cut off".to_owned());
        }
        let mut bytes = Zeroizing::new([text, self.suffix.as_bytes()].concat());
        if self.nfkd {
            let text = std::str::from_utf8(&bytes).map_err(|_| "the secret is not UTF-8, which this provider's are".to_owned())?;
            let normal = DecomposingNormalizerBorrowed::new_nfkd().normalize(text).into_owned();
            bytes = Zeroizing::new(normal.into_bytes());
        }
        let bytes = match self.encoding {
            KeyEncoding::Utf8 => bytes,
            KeyEncoding::Hex => Zeroizing::new(HEXLOWER_PERMISSIVE.decode(&bytes).map_err(|_| "the secret is not hex, which this provider's are".to_owned())?),
            KeyEncoding::Base64 => {
                let table = if bytes.ends_with(b"=") { BASE64 } else { BASE64_NOPAD };
                let what = if self.strip_prefix.is_empty() { String::new() } else { format!(" after `{}`", self.strip_prefix) };
                Zeroizing::new(table.decode(&bytes).map_err(|_| format!("the secret is not base64{what}, which this provider's are"))?)
            }
            KeyEncoding::DigestSha1 => Zeroizing::new(Sha1::digest(&*bytes).to_vec()),
        };
        if bytes.is_empty() {
            return Err("the secret is empty once its prefix is cut off".to_owned());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: KeyForm, secret: &str, want: Option<&[u8]>) {
        assert_eq!(form.bytes(secret.as_bytes()).ok().as_deref().map(Vec::as_slice), want, "{form:?}");
    }

    #[test]
    fn keys_are_made_as_said() {
        let base64 = KeyForm { encoding: KeyEncoding::Base64, strip_prefix: "whsec_".into(), ..KeyForm::default() };
        check(KeyForm::default(), "whsec_é", Some("whsec_é".as_bytes()));
        check(base64.clone(), "whsec_AP8=", Some(&[0, 255]));
        check(base64.clone(), "AP8", Some(&[0, 255]));
        check(base64.clone(), "whsec_", None);
        check(base64, "not base64!", None);
        check(KeyForm { encoding: KeyEncoding::Hex, ..KeyForm::default() }, "00Ff", Some(&[0, 255]));
        check(KeyForm { encoding: KeyEncoding::Hex, ..KeyForm::default() }, "0", None);
        check(KeyForm { suffix: "&".into(), ..KeyForm::default() }, "abc", Some(b"abc&"));
        check(KeyForm { suffix: "&".into(), strip_prefix: "x".into(), ..KeyForm::default() }, "x", None);
        check(KeyForm { nfkd: true, ..KeyForm::default() }, "é", Some("e\u{301}".as_bytes()));
    }
}
