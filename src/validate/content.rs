//! Content type and content coding of a payload. Pure.

use std::io::Read;

use bytes::{Buf, Bytes};
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, HeaderName, header};

use crate::{
    event::Chunks,
    guard::head::too_large,
    reject::{Reason, Reject},
};

/// Room is asked for in steps of this many bytes.
const STEP: u64 = 64 * 1024;

/// A content type that a route takes: `application/json`, `application/*`, or `application/*+json`. Lower case, without parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MediaType {
    kind: String,
    /// `*` for any.
    sub: String,
    /// What comes after `*+`.
    suffix: Option<String>,
}

impl MediaType {
    /// `None` for what is no content type.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (kind, sub) = lower.split_once('/')?;
        let token = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
        if !token(kind) {
            return None;
        }
        let (sub, suffix) = match sub.strip_prefix("*+") {
            Some(suffix) if token(suffix) => ("*", Some(suffix.to_owned())),
            Some(_) => return None,
            None if sub == "*" || token(sub) => (sub, None),
            None => return None,
        };
        Some(Self { kind: kind.to_owned(), sub: sub.to_owned(), suffix })
    }

    fn matches(&self, kind: &str, sub: &str) -> bool {
        let suffix = |sub: &str, suffix: &str| sub.len() > suffix.len() + 1 && sub.rsplit_once('+').is_some_and(|(_, end)| end.eq_ignore_ascii_case(suffix));
        kind.eq_ignore_ascii_case(&self.kind)
            && match &self.suffix {
                Some(wanted) => suffix(sub, wanted),
                None => self.sub == "*" || sub.eq_ignore_ascii_case(&self.sub),
            }
    }
}

/// The one value of a header that may stand once only, without spaces around it; `Err` where it stands twice or is not ASCII.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut lines = headers.get_all(name).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(());
    }
    line.to_str().map(|text| Some(text.trim())).map_err(|_| ())
}

/// Type and subtype of a payload, its parameters left out.
fn essence(headers: &HeaderMap) -> Option<(&str, &str)> {
    let text = single(headers, &header::CONTENT_TYPE).ok()??;
    let text = text.split(';').next().unwrap_or(text).trim_end();
    text.split_once('/').filter(|(kind, sub)| !kind.is_empty() && !sub.is_empty())
}

/// Refuses a payload of any other type than these.
pub(super) fn check_type(headers: &HeaderMap, wanted: &[MediaType]) -> Result<(), Reject> {
    match essence(headers) {
        Some((kind, sub)) if wanted.iter().any(|wanted| wanted.matches(kind, sub)) => Ok(()),
        Some(_) => Err(Reject::new(Reason::UnsupportedMediaType, "the content type is not one of `content_types`")),
        None => Err(Reject::new(Reason::UnsupportedMediaType, "there is no content type, or several")),
    }
}

/// Whether a payload says that it is JSON: `application/json`, `text/json`, or any type with `+json`.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    essence(headers).is_some_and(|(kind, sub)| {
        let plain = sub.eq_ignore_ascii_case("json") && (kind.eq_ignore_ascii_case("application") || kind.eq_ignore_ascii_case("text"));
        plain || sub.rsplit_once('+').is_some_and(|(_, end)| end.eq_ignore_ascii_case("json"))
    })
}

/// A content coding that can be undone to look inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    /// The zlib format, as RFC 9110 has it.
    Deflate,
}

impl Coding {
    pub(super) const WORDS: &'static [(&'static str, Coding)] = &[("gzip", Self::Gzip), ("deflate", Self::Deflate)];
}

/// How a payload is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coded {
    No,
    By(Coding),
    /// In a way nobody here reads, or in several.
    Otherwise,
}

pub(super) fn coding(headers: &HeaderMap) -> Coded {
    match single(headers, &header::CONTENT_ENCODING) {
        Ok(None) => Coded::No,
        Ok(Some(text)) if text.eq_ignore_ascii_case("identity") => Coded::No,
        Ok(Some(text)) if text.eq_ignore_ascii_case("x-gzip") => Coded::By(Coding::Gzip),
        Ok(Some(text)) => Coding::WORDS.iter().find(|(word, _)| text.eq_ignore_ascii_case(word)).map_or(Coded::Otherwise, |(_, coding)| Coded::By(*coding)),
        Err(()) => Coded::Otherwise,
    }
}

/// The bytes behind a coding, at most `limit` of them: a small body may stand for a very large one. `reserve` is asked for room before
/// it is taken.
pub(super) fn inflate(coding: Coding, body: &Chunks, limit: u64, reserve: &mut dyn FnMut(u64) -> Result<(), Reject>) -> Result<Bytes, Reject> {
    let input = Pieces(body.pieces().cloned().collect());
    let (out, rest) = match coding {
        Coding::Gzip => {
            let mut decoder = MultiGzDecoder::new(input);
            (drain(&mut decoder, limit, reserve)?, decoder.into_inner())
        }
        Coding::Deflate => {
            let mut decoder = ZlibDecoder::new(input);
            (drain(&mut decoder, limit, reserve)?, decoder.into_inner())
        }
    };
    if rest.0.iter().any(|piece| !piece.is_empty()) {
        return Err(broken());
    }
    Ok(out.into())
}

fn broken() -> Reject {
    Reject::new(Reason::ContentEncoding, "the body is not what its content coding says")
}

/// Reads step by step into pieces of their own: what turns out to be too large was never moved, and left no outgrown copies behind.
fn drain(decoder: &mut dyn Read, limit: u64, reserve: &mut dyn FnMut(u64) -> Result<(), Reject>) -> Result<Vec<u8>, Reject> {
    let (mut pieces, mut len) = (Vec::new(), 0_u64);
    loop {
        let step = STEP.min(limit.saturating_add(1) - len);
        reserve(step)?;
        // The usual body is small and alone; of what goes on, a piece is as large as its step and not doubled beyond it.
        let mut piece = if pieces.is_empty() { Vec::new() } else { Vec::with_capacity(usize::try_from(step).unwrap_or(0)) };
        let read = (&mut *decoder).take(step).read_to_end(&mut piece).map_err(|_| broken())? as u64;
        len += read;
        if len > limit {
            return Err(too_large(limit));
        }
        if read < step && pieces.is_empty() {
            return Ok(piece);
        }
        pieces.push(piece);
        if read < step {
            reserve(len)?;
            return Ok(pieces.concat());
        }
    }
}

/// A body's pieces as a reader.
struct Pieces(std::collections::VecDeque<Bytes>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let from = std::io::BufRead::fill_buf(self)?;
        let most = from.len().min(into.len());
        into[..most].copy_from_slice(&from[..most]);
        std::io::BufRead::consume(self, most);
        Ok(most)
    }
}

impl std::io::BufRead for Pieces {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(self.0.front().map_or(&[], |piece| &piece[..]))
    }

    fn consume(&mut self, bytes: usize) {
        if let Some(piece) = self.0.front_mut() {
            piece.advance(bytes);
            if piece.is_empty() {
                self.0.pop_front();
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    pub(in crate::validate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
    }

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"))).collect::<Vec<_>>().into_iter().fold(
            HeaderMap::new(),
            |mut map, (name, value)| {
                map.append(name, value);
                map
            },
        )
    }

    #[test]
    fn types_match_without_their_parameters() {
        let check = |wanted: &str, values: &[&str], want: bool| {
            let wanted = [MediaType::parse(wanted).expect("a type")];
            assert_eq!(check_type(&headers(header::CONTENT_TYPE, values), &wanted).is_ok(), want, "{wanted:?} {values:?}");
        };
        check("application/json", &["application/json"], true);
        check("application/json", &["Application/JSON ; charset=utf-8"], true);
        check("APPLICATION/JSON", &["application/json;x=\"a/b\""], true);
        check("application/json", &["application/json5"], false);
        check("application/json", &["text/json"], false);
        check("application/json", &["application/vnd.github+json"], false);
        check("application/json", &["text/plain; application/json"], false);
        check("application/json", &["application/json, text/plain"], false);
        check("application/json", &["application/json", "text/plain"], false);
        check("application/json", &[], false);
        check("application/json", &[""], false);
        check("application/json", &["application"], false);
        check("application/json", &["application/j\u{e9}son"], false);
        check("application/*+json", &["application/vnd.github.v3+JSON"], true);
        check("application/*+json", &["application/json"], false);
        check("application/*+json", &["application/+json"], false);
        check("application/*+json", &["application/json+xml"], false);
        check("application/*", &["application/x-www-form-urlencoded"], true);
        check("application/*", &["text/plain"], false);
        for bad in ["json", "*/*", "application/", "/json", "application/*json", "application/*+", "application/json; charset=utf-8", "application/a b", ""] {
            assert_eq!(MediaType::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn json_is_known_by_its_type() {
        let check = |value: &str, want: bool| assert_eq!(is_json(&headers(header::CONTENT_TYPE, &[value])), want, "{value}");
        check("application/json", true);
        check("text/json", true);
        check("Application/Problem+JSON; x=1", true);
        check("application/jsonp", false);
        check("application/x-json", false);
        check("image/json", false);
        check("text/plain", false);
    }

    #[test]
    fn codings_are_told_apart() {
        let check = |values: &[&str], want: Coded| assert_eq!(coding(&headers(header::CONTENT_ENCODING, values)), want, "{values:?}");
        check(&[], Coded::No);
        check(&["identity"], Coded::No);
        check(&["GZIP"], Coded::By(Coding::Gzip));
        check(&["x-gzip"], Coded::By(Coding::Gzip));
        check(&["deflate"], Coded::By(Coding::Deflate));
        for odd in ["br", "zstd", "gzip, gzip", "gzip,", "gzip;q=1", "", "compress"] {
            check(&[odd], Coded::Otherwise);
        }
        check(&["gzip", "gzip"], Coded::Otherwise);
    }

    #[test]
    fn inflating_is_bounded_and_whole() {
        let check = |coding: Coding, body: &[u8], limit: u64, want: Result<&[u8], Reason>| {
            for size in [1, 7, body.len().max(1)] {
                let mut chunks = Chunks::default();
                body.chunks(size).for_each(|piece| chunks.push(Bytes::copy_from_slice(piece)));
                let got = inflate(coding, &chunks, limit, &mut |_| Ok(()));
                assert_eq!(got.as_deref().map_err(|why| why.reason), want);
            }
        };
        let text = b"{\"a\":1}";
        check(Coding::Gzip, &gzip(text), 7, Ok(text));
        check(Coding::Gzip, &gzip(text), 6, Err(Reason::BodyTooLarge));
        check(Coding::Gzip, &[gzip(b"{\"a\""), gzip(b":1}")].concat(), 7, Ok(text));
        check(Coding::Deflate, &zlib(text), 7, Ok(text));
        check(Coding::Gzip, &gzip(&vec![b' '; 5_000_000]), 10_000, Err(Reason::BodyTooLarge));
        check(Coding::Gzip, b"", 10, Err(Reason::ContentEncoding));
        check(Coding::Gzip, text, 10, Err(Reason::ContentEncoding));
        check(Coding::Gzip, &gzip(text)[..15], 10, Err(Reason::ContentEncoding));
        check(Coding::Gzip, &[gzip(text), b"tail".to_vec()].concat(), 10, Err(Reason::ContentEncoding));
        check(Coding::Gzip, &zlib(text), 10, Err(Reason::ContentEncoding));
        check(Coding::Deflate, &gzip(text), 10, Err(Reason::ContentEncoding));
        check(Coding::Deflate, &[zlib(text), b"tail".to_vec()].concat(), 10, Err(Reason::ContentEncoding));
        check(Coding::Deflate, &zlib(text)[2..], 10, Err(Reason::ContentEncoding));
        let mut flipped = gzip(text);
        flipped[12] ^= 1;
        check(Coding::Gzip, &flipped, 100, Err(Reason::ContentEncoding));
    }
}
