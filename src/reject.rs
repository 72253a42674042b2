//! The closed list of how a request is refused.
//!
//! A reason is the same word in the answer, the audit line, the metric, the command line and the docs. Its status stands in
//! `respond.rs`; what is said here never helps forging.

use std::{borrow::Cow, fmt, time::Duration};

macro_rules! reasons {
    ($($name:ident $code:literal $title:literal;)*) => {
        /// Why a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Reason { $($name,)* }

        impl Reason {
            /// Every reason, in the contract's order.
            pub(crate) const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable word.
            pub(crate) const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// One line for people; says nothing that is particular to the request.
            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

reasons! {
    BadRequest "bad_request" "The request is malformed";
    BadTarget "bad_target" "The request target is ambiguous";
    QueryNotSigned "query_not_signed" "A query parameter is not covered by the signature";
    NotJson "not_json" "The body is not the JSON that is wanted here";
    SignatureMissing "signature_missing" "The signature is missing";
    SignatureMalformed "signature_malformed" "The signature cannot be read";
    SignatureMismatch "signature_mismatch" "The signature does not match";
    TimestampMissing "timestamp_missing" "The signed time is missing";
    TimestampStale "timestamp_stale" "The signed time is too old";
    TimestampFuture "timestamp_future" "The signed time is in the future";
    TokenInvalid "token_invalid" "The credentials are not valid";
    ClaimsInvalid "claims_invalid" "The token's claims are not acceptable";
    IpNotAllowed "ip_not_allowed" "The client's address is not allowed";
    ClientCertNotAllowed "client_cert_not_allowed" "The client certificate is missing or not allowed";
    NoRoute "no_route" "Nothing is served here";
    MethodNotAllowed "method_not_allowed" "The method is not allowed here";
    BodyTimeout "body_timeout" "The body did not arrive in time";
    InFlight "in_flight" "A copy of this event is being delivered";
    Duplicate "duplicate" "This event was delivered before";
    BodyTooLarge "body_too_large" "The body is too large";
    UnsupportedMediaType "unsupported_media_type" "The content type is not accepted here";
    ContentEncoding "content_encoding" "The content coding is not accepted here";
    ExpectationFailed "expectation_failed" "The expectation cannot be met";
    Misdirected "misdirected" "The host and the TLS server name differ";
    SchemaInvalid "schema_invalid" "The body does not fit the schema";
    RateLimited "rate_limited" "Too many requests";
    HeadersTooLarge "headers_too_large" "The header fields are too large";
    FilterRejected "filter_rejected" "A filter refused the event";
    FilterFailed "filter_failed" "A filter failed";
    UpstreamUnreachable "upstream_unreachable" "The receiver cannot be reached";
    UpstreamInvalid "upstream_invalid" "The receiver's answer is not valid";
    UpstreamRedirect "upstream_redirect" "The receiver answered with a redirect";
    Overloaded "overloaded" "The gate is at its limit";
    BreakerOpen "breaker_open" "The receiver is failing and not asked for a while";
    QueueFull "queue_full" "The queue is full";
    StoreFailed "store_failed" "The store does not answer";
    NoDestination "no_destination" "No destination wants this event";
    KeysUnavailable "keys_unavailable" "The keys to verify with cannot be had";
    UpstreamTimeout "upstream_timeout" "The receiver did not answer in time";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal: the reason for the sender, and the full detail for the audit line only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reject {
    pub(crate) reason: Reason,
    /// What was wrong, for the operator. Never a secret, a signature or a body.
    pub(crate) detail: Cow<'static, str>,
    pub(crate) extra: Extra,
}

/// What an answer carries beside its reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Extra {
    #[default]
    None,
    /// Seconds the sender should wait; goes into `Retry-After`.
    RetryAfter(Duration),
    /// The limit that was hit: `Retry-After`, `RateLimit` and `RateLimit-Policy`.
    Limit { wait: Duration, policy: &'static str, quota: u64, window: Duration },
    /// The methods of the route, for `Allow`.
    Allow(String),
    /// `WWW-Authenticate` scheme where it is not the default `Signature`: `Basic`, `Bearer`.
    Challenge(&'static str),
    /// Where the body does not fit its schema: JSON pointers, at most a handful.
    Pointers(Vec<String>),
    /// The status a filter chose (400 to 499 or 503) and its reason.
    Filter { status: u16, reason: String },
}

impl Reject {
    pub(crate) fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into(), extra: Extra::None }
    }

    pub(crate) fn with(self, extra: Extra) -> Self {
        Self { extra, ..self }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}
