//! `application/x-www-form-urlencoded` bodies and query strings, decoded to exact bytes.
//!
//! Decoders that put U+FFFD for what is not UTF-8 would let two bodies look the same to the signature; this one keeps the bytes.

use std::borrow::Cow;

/// A name and its value.
type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Names and values in their order: `+` is a blank, `%XX` a byte, a `%` that starts no escape stays.
pub(super) fn pairs(text: &[u8]) -> impl Iterator<Item = Pair<'_>> {
    raw(text).map(|(name, value)| (decode(name), decode(value)))
}

/// Names and values as they are written; empty pieces are left out.
pub(super) fn raw(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|b| *b == b'&').filter(|piece| !piece.is_empty()).map(|piece| match piece.iter().position(|b| *b == b'=') {
        Some(at) => (&piece[..at], &piece[at + 1..]),
        None => (piece, &[][..]),
    })
}

pub(super) fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|b| matches!(b, b'+' | b'%')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        let hex = |i: usize| text.get(i).and_then(|b| char::from(*b).to_digit(16));
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (hex(at), hex(at + 1)) {
                (Some(high), Some(low)) => {
                    out.push((high << 4 | low) as u8);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

/// The value of `name`, which may stand once; `Err` where it stands twice.
pub(super) fn one<'a>(text: &'a [u8], name: &[u8]) -> Result<Option<Cow<'a, [u8]>>, ()> {
    let mut found = pairs(text).filter(|(key, _)| **key == *name).map(|(_, value)| value);
    let first = found.next();
    if found.next().is_some() { Err(()) } else { Ok(first) }
}

/// The most parameters that are sorted: far more than any provider sends, and few enough that a forger's form costs little.
const MAX_SORTED: usize = 4096;

/// More parameters than are sorted.
#[derive(Debug)]
pub(super) struct TooMany;

/// All parameters sorted by name, the values of a repeated name sorted and each once.
fn sorted(text: &[u8]) -> Result<Vec<Pair<'_>>, TooMany> {
    if raw(text).nth(MAX_SORTED).is_some() {
        return Err(TooMany);
    }
    let mut all: Vec<_> = pairs(text).collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Name and value of each parameter one after another, sorted: what Twilio and Mandrill sign.
pub(super) fn form_sorted(text: &[u8], mut put: impl FnMut(&[u8])) -> Result<(), TooMany> {
    for (name, value) in sorted(text)? {
        put(&name);
        put(&value);
    }
    Ok(())
}

/// `name=value`, sorted and joined by `&`, decoded: what Plivo signs of a query string.
pub(super) fn query_sorted(text: &[u8], mut put: impl FnMut(&[u8])) -> Result<(), TooMany> {
    for (i, (name, value)) in sorted(text)?.into_iter().enumerate() {
        if i > 0 {
            put(b"&");
        }
        put(&name);
        put(b"=");
        put(&value);
    }
    Ok(())
}

/// Percent-encoded as a form's value.
pub(super) fn encode(bytes: &[u8], out: &mut String) {
    for piece in form_urlencoded::byte_serialize(bytes) {
        out.push_str(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: &[(&str, &str)]) {
        let got: Vec<_> = pairs(text.as_bytes()).map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
        let want: Vec<_> = want.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn forms_decode_to_their_bytes() {
        check("a=1&b=2", &[("a", "1"), ("b", "2")]);
        check("a+b=%2B+%41&&c&=d&e==", &[("a b", "+ A"), ("c", ""), ("", "d"), ("e", "=")]);
        check("a=%&b=%4&c=%zz", &[("a", "%"), ("b", "%4"), ("c", "%zz")]);
        assert_eq!(&*decode(b"%ff%c3"), b"\xff\xc3");
    }

    #[test]
    fn sorted_forms() {
        let mut out = Vec::new();
        form_sorted(b"b=2&a=y&a=x&a=y", |piece| out.extend_from_slice(piece)).expect("few parameters");
        assert_eq!(out, b"axayb2");
        out.clear();
        query_sorted(b"b=2&a=%20", |piece| out.extend_from_slice(piece)).expect("few parameters");
        assert_eq!(out, b"a= &b=2");
        assert!(form_sorted("a&".repeat(MAX_SORTED).as_bytes(), |_| {}).is_ok());
        assert!(form_sorted("a&".repeat(MAX_SORTED + 1).as_bytes(), |_| {}).is_err());
    }
}
