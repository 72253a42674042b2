//! Messages that name the certificate they are signed with: Amazon SNS, PayPal.
//!
//! The URL comes from a request that nobody has verified yet, so that it must be one of the provider's own, letter by letter, before
//! it is fetched: over https, which vouches for the host; never a redirect, never another port. A certificate must be valid now, and
//! where the provider says whose name it bears, bear it.

use std::sync::Arc;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::public_key::PublicKey;
use crate::{
    fetch,
    keys::{Document, Found, Source, Want},
    reject::{Reason, Reject},
};

/// Whose certificates a scheme takes.
pub(super) struct Certificates {
    pub(super) source: Arc<Source>,
    /// Whether a host is the provider's.
    pub(super) host: fn(&str) -> bool,
    /// How the path must end.
    pub(super) suffix: &'static str,
    /// How the certificate's common name must end; empty where any of that host will do.
    pub(super) name: &'static str,
}

impl Certificates {
    /// Whether the URL is one of the provider's.
    pub(super) fn check(&self, text: &str) -> Result<(), Reject> {
        let refuse = |what: &'static str| Reject::new(Reason::SignatureMalformed, what);
        if text.len() > 1024 {
            return Err(refuse("the certificate's URL has more than 1024 bytes"));
        }
        let url = fetch::check_url(text).map_err(|why| Reject::new(Reason::SignatureMalformed, format!("the certificate's URL: {why}")))?;
        // What the URL parser had to mend was not written by the provider.
        if url.as_str() != text || url.port().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("the certificate's URL is not written as the provider's are"));
        }
        if !url.host_str().is_some_and(self.host) || !url.path().ends_with(self.suffix) {
            return Err(refuse("the certificate's URL is not one of the provider's"));
        }
        Ok(())
    }

    pub(super) fn want(&self, url: &str) -> Option<Want> {
        self.check(url).ok()?;
        self.source.want(url, &|document| !matches!(document, Document::Token(_)))
    }

    /// The key of the certificate at a URL that was checked.
    pub(super) fn key(&self, url: &str, now_ms: i64) -> Result<PublicKey, Reject> {
        self.check(url)?;
        let refuse = |what: &'static str| Reject::new(Reason::SignatureMismatch, what);
        let document = match self.source.find(url) {
            Found::Known(document) => document,
            Found::Absent => return Err(refuse("there is no certificate at the URL that the message names")),
            Found::Unavailable(why) => return Err(Reject::new(Reason::KeysUnavailable, why)),
        };
        if let Document::Certificates(chain) = &*document {
            let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok()).ok_or_else(|| refuse("the certificate cannot be read"))?.1;
            let validity = leaf.validity();
            let now = now_ms.div_euclid(1000);
            if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
                return Err(refuse("the certificate is not valid now"));
            }
            let bears = |name: &str| name == self.name.trim_start_matches('.') || name.ends_with(self.name);
            if !self.name.is_empty() && !leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).any(bears) {
                return Err(refuse("the certificate does not bear the provider's name"));
            }
        }
        document.keys().first().cloned().ok_or_else(|| refuse("the certificate holds no key that can be used"))
    }
}
