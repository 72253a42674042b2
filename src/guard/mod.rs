//! What is checked before a byte of the body is read, and the limits keyed on verified facts.
//!
//! [`admit`] runs the checks in the contract's order: `allow_ips`, `client_cert`, `rate_limit` per address, the header section's form.
//! [`Guards::meter`] comes after verification. A check that the route only observes does not refuse: it is handed back as what would
//! have been refused. Size limits are always enforced.

pub(crate) mod allow;
pub(crate) mod cert;
pub(crate) mod head;
pub(crate) mod rate;

use std::sync::Arc;

use http::{HeaderMap, request::Parts};

use crate::{
    clock::Now,
    event::{Chunks, Client, Conn},
    reject::{Reason, Reject},
};

/// The guards of one route.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// `allow_ips`; `None`: everybody.
    pub(crate) allow: Option<allow::Allow>,
    /// `client_cert`; `None`: none is needed.
    pub(crate) cert: Option<Arc<cert::Rule>>,
    /// `rate_limit`.
    pub(crate) limits: rate::Limits,
    /// `verify_failures`.
    pub(crate) failures: Option<rate::Failures>,
    pub(crate) head: head::Limits,
}

/// What [`admit`] found out about a request it let pass.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    /// The subject of a certificate that the route's CA signed; `None` where the route asks for none, or only observes.
    pub(crate) cert: Option<Arc<str>>,
    /// The refusals that were not enforced.
    pub(crate) would_refuse: Vec<Reject>,
}

/// Whether the body may be read. `enforced` says which refusals stand.
pub(crate) fn admit(guards: &Guards, client: &Client, conn: &Conn, head: &Parts, now: Now, enforced: impl Fn(Reason) -> bool) -> Result<Admitted, Reject> {
    let mut admitted = Admitted::default();
    if let Some(allow) = &guards.allow {
        observe(allow.check(client.ip), &enforced, &mut admitted.would_refuse)?;
    }
    if let Some(cert) = &guards.cert {
        admitted.cert = observe(cert.check(conn, now), &enforced, &mut admitted.would_refuse)?;
    }
    if !guards.allow.as_ref().is_some_and(|allow| allow.is_provider(client.ip)) {
        observe(guards.limits.admit(client), &enforced, &mut admitted.would_refuse)?;
    }
    head::check(head, &guards.head)?;
    Ok(admitted)
}

/// The value of a check that passed, nothing for one that is only observed, the refusal otherwise.
pub(crate) fn observe<T>(checked: Result<T, Reject>, enforced: impl Fn(Reason) -> bool, would_refuse: &mut Vec<Reject>) -> Result<Option<T>, Reject> {
    match checked {
        Ok(value) => Ok(Some(value)),
        Err(why) if enforced(why.reason) => Err(why),
        Err(why) => {
            would_refuse.push(why);
            Ok(None)
        }
    }
}

impl Guards {
    /// The limits keyed on verified facts; not to be asked for an event that was not verified.
    pub(crate) fn meter(&self, headers: &HeaderMap, body: &mut Chunks, enforced: impl Fn(Reason) -> bool) -> Result<Option<Reject>, Reject> {
        let mut would_refuse = Vec::new();
        observe(self.limits.meter(headers, body), enforced, &mut would_refuse)?;
        Ok(would_refuse.pop())
    }

    /// What to answer to a failed verification: the failure's own refusal, or 429 after too many from one address.
    pub(crate) fn failed(&self, client: &Client, why: Reject) -> Reject {
        self.failures.as_ref().and_then(|failures| failures.charge(client)).unwrap_or(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        problem::Source,
        section::{Inputs, Reader},
    };

    fn guards(text: &str) -> Guards {
        let reader = Reader::new(Source { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let ranges = |name: &str| allow::Published::Known(crate::ranges::Ranges::fixed(name, &["192.0.2.0/24"]));
        let names = allow::Names { sets: &allow::IpSets::default(), ranges: &ranges, providers: &[] };
        let limiters = rate::Limiters::new(Clock::hand(0));
        let guards = Guards {
            allow: allow::Allow::read(&root, &names),
            cert: None,
            limits: limiters.limits("r", &rate::read(&root, None)),
            failures: rate::read_failures(&root).map(|limit| limiters.failures("r", &limit)),
            head: head::Limits { body: 10, ..head::Limits::default() },
        };
        root.finish();
        assert!(reader.problems().is_empty(), "{:?}", reader.problems());
        guards
    }

    fn ask(guards: &Guards, ip: &str, length: &str, observed: &[Reason]) -> String {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let conn = Conn { peer: at, socket: at, tls: None };
        let head = http::Request::builder().header("host", "x").header("content-length", length).body(()).expect("a request").into_parts().0;
        let client = Client::new(ip.parse().expect("an address"));
        match admit(guards, &client, &conn, &head, Clock::hand(0).now(), |reason| !observed.contains(&reason)) {
            Ok(admitted) => admitted.would_refuse.iter().map(|why| why.reason.code()).collect::<Vec<_>>().join(" "),
            Err(why) => format!("!{}", why.reason),
        }
    }

    #[test]
    fn checks_come_in_order_and_can_be_observed() {
        let text = "allow_ips = [\"provider:x\", \"10.0.0.0/8\"]\nrate_limit = [{ per = \"ip\", rate = \"2/d\" }]";
        let guarded = guards(text);
        assert_eq!(ask(&guarded, "203.0.113.1", "99", &[]), "!ip_not_allowed");
        assert_eq!(ask(&guarded, "10.0.0.1", "99", &[]), "!body_too_large");
        assert_eq!(ask(&guarded, "10.0.0.1", "9", &[]), "");
        assert_eq!(ask(&guarded, "10.0.0.1", "99", &[]), "!rate_limited");
        assert_eq!(ask(&guarded, "10.0.0.1", "99", &[Reason::RateLimited]), "!body_too_large");
        assert_eq!(ask(&guarded, "10.0.0.1", "9", &[Reason::RateLimited]), "rate_limited");
        let observed = [Reason::RateLimited, Reason::IpNotAllowed];
        assert_eq!([(); 3].map(|()| ask(&guarded, "203.0.113.1", "9", &observed)), ["ip_not_allowed", "ip_not_allowed", "ip_not_allowed rate_limited"]);
        assert_eq!([(); 5].map(|()| ask(&guarded, "192.0.2.1", "9", &[])), [""; 5]); // the provider's own addresses are not counted
        let mut cert = guards("");
        cert.allow = None;
        assert_eq!(ask(&cert, "203.0.113.1", "9", &[]), "");
    }

    #[test]
    fn floods_of_failures_are_told_to_wait() {
        let guarded = guards("verify_failures = { rate = \"2/m\" }");
        let client = Client::new("203.0.113.1".parse().expect("an address"));
        let fail = || guarded.failed(&client, Reject::new(Reason::SignatureMismatch, "no secret matches")).reason.code();
        assert_eq!([(); 4].map(|()| fail()), ["signature_mismatch", "signature_mismatch", "rate_limited", "rate_limited"]);
        assert_eq!(ask(&guarded, "203.0.113.1", "9", &[]), "");
    }
}
