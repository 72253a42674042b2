//! The form of a request's header section, judged before any byte of the body. Pure.

use http::{HeaderMap, Version, header, request::Parts};

use crate::reject::{Reason, Reject};

/// What a header section may hold, and how long a body it may announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of the fields as HTTP/1.1 writes them: names, values and four bytes each. Default 32 KiB.
    pub(crate) header_bytes: u64,
    /// Field lines. Default 100.
    pub(crate) header_count: usize,
    /// Bytes of the body. Default 10 MiB.
    pub(crate) body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 32 * 1024, header_count: 100, body: 10 * 1024 * 1024 }
    }
}

/// Errors: [`Reason::BadRequest`] for contradicting or unreadable framing and for anything but one Host, [`Reason::HeadersTooLarge`],
/// [`Reason::ExpectationFailed`], and [`Reason::BodyTooLarge`] for a body that says so itself.
pub(crate) fn check(head: &Parts, limits: &Limits) -> Result<(), Reject> {
    let headers = &head.headers;
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > limits.header_count || bytes as u64 > limits.header_bytes {
        return Err(Reject::new(Reason::HeadersTooLarge, format!("{} fields, {bytes} bytes", headers.len())));
    }
    let bad = |why: &'static str| Err(Reject::new(Reason::BadRequest, why));
    match headers.get_all(header::HOST).iter().count() {
        0 if head.version == Version::HTTP_11 && head.uri.authority().is_none() => return bad("there is no Host"),
        0 | 1 => {}
        _ => return bad("there are several Host fields"),
    }
    for expect in headers.get_all(header::EXPECT) {
        if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Reject::new(Reason::ExpectationFailed, "only 100-continue may be expected"));
        }
    }
    let length = content_length(headers)?;
    if length.is_some() && headers.contains_key(header::TRANSFER_ENCODING) {
        return bad("the body has both a length and a transfer coding");
    }
    match length {
        Some(length) if length > limits.body => Err(too_large(limits.body)),
        _ => Ok(()),
    }
}

/// The refusal of a body of more than `limit` bytes.
pub(crate) fn too_large(limit: u64) -> Reject {
    Reject::new(Reason::BodyTooLarge, format!("the body is longer than {limit} bytes"))
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Reject> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    let bad = |why: &'static str| Reject::new(Reason::BadRequest, why);
    if lines.any(|other| other != line) {
        return Err(bad("there are several lengths"));
    }
    let text = line.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).ok_or(bad("the length is not a number"))?;
    // Digits alone that do not fit are a length beyond every limit.
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[(&str, &str)], want: &str) {
        let mut request = http::Request::builder().uri("/");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let head = request.body(()).expect("a request").into_parts().0;
        let limits = Limits { header_bytes: 1000, header_count: 8, body: 100 };
        let got = super::check(&head, &limits).map_or_else(|why| why.reason.code(), |()| "");
        assert_eq!(got, want, "{lines:?}");
    }

    #[test]
    fn header_forms() {
        let host = ("host", "x");
        check(&[host], "");
        check(&[], "bad_request");
        check(&[host, host], "bad_request");
        check(&[host, ("host", "y")], "bad_request");
        check(&[host, ("expect", "100-continue")], "");
        check(&[host, ("expect", "100-Continue")], "");
        check(&[host, ("expect", "200-ok")], "expectation_failed");
        check(&[host, ("expect", "")], "expectation_failed");
        check(&[host, ("expect", "100-continue, x")], "expectation_failed");
        check(&[host, ("expect", "100-continue"), ("expect", "x")], "expectation_failed");
        check(&[host, ("content-length", "100")], "");
        check(&[host, ("content-length", "101")], "body_too_large");
        check(&[host, ("content-length", "99999999999999999999999")], "body_too_large");
        check(&[host, ("content-length", "10"), ("content-length", "10")], "");
        for bad in ["", "+1", "-1", "1 ", "0x1", "1,1", "1.0", "ten"] {
            check(&[host, ("content-length", bad)], "bad_request");
        }
        check(&[host, ("content-length", "10"), ("content-length", "11")], "bad_request");
        check(&[host, ("content-length", "10"), ("transfer-encoding", "chunked")], "bad_request");
        check(&[host, ("transfer-encoding", "chunked")], "");
        check(&[host, ("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"), ("f", "1"), ("g", "1")], "");
        check(&[host, ("a", "1"), ("a", "1"), ("c", "1"), ("d", "1"), ("e", "1"), ("f", "1"), ("g", "1"), ("h", "1")], "headers_too_large");
        check(&[host, ("a", &"x".repeat(1000 - 5 - 9))], "");
        check(&[host, ("a", &"x".repeat(1000 - 5 - 8))], "headers_too_large");
    }
}
