//! Requests that people captured: raw HTTP, an entry of a HAR file, a curl command. Each is read to the exact bytes that it can hold, and
//! what its form cannot hold is said in a note: a signature covers bytes, and most ways of copying a request change some. Pure: files
//! that a curl command names are handed in. Beside them [`live`]: the last refused events of a running gate.

mod curl;
mod har;
pub(crate) mod live;
mod raw;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use sha2::{Digest, Sha256};

use crate::{
    event::Chunks,
    verify::cases::{Request, split_url},
};

/// The largest capture that is read, in bytes.
pub(crate) const LIMIT: usize = 64 << 20;

/// The forms a capture may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Raw,
    Har,
    Curl,
}

impl Form {
    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw HTTP",
            Self::Har => "a HAR entry",
            Self::Curl => "a curl command",
        }
    }
}

/// A captured request.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) request: Request,
    pub(crate) form: Form,
    /// What the form cannot hold, and what was done about it: whole sentences without a full stop.
    pub(crate) notes: Vec<String>,
    /// Whether the scheme and host of the URL were said, and not taken from the Host header.
    pub(crate) knows_url: bool,
}

/// How a capture is read.
pub(crate) struct Reading<'a> {
    /// The entry of a HAR file, from 1; `None`: the only one.
    pub(crate) entry: Option<usize>,
    /// The URL that the provider was given, in the place of the capture's own. Without a path it says scheme, host and port only.
    pub(crate) url: Option<&'a str>,
    /// Reads a file that a curl command names.
    pub(crate) file: &'a dyn Fn(&str) -> Result<Vec<u8>, String>,
}

/// What a form yields before its URL is settled.
#[derive(Debug, Default)]
struct Draft {
    method: String,
    /// A whole URL, or a path where the form has no more.
    url: String,
    headers: HeaderMap,
    body: Vec<u8>,
    notes: Vec<String>,
}

/// Reads a capture in whichever form it has. The error is for who captured it, and never holds the value of a header.
pub(crate) fn read(bytes: &[u8], reading: &Reading<'_>) -> Result<Captured, String> {
    if bytes.len() > LIMIT {
        return Err(format!("the capture has {} bytes, more than {LIMIT}", bytes.len()));
    }
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let form = if start.starts_with(b"{") {
        Form::Har
    } else if curl::is_one(start) {
        Form::Curl
    } else {
        Form::Raw
    };
    if reading.entry.is_some() && form != Form::Har {
        return Err(format!("--entry chooses an entry of a HAR file, and this is {}", form.name()));
    }
    let draft = match form {
        Form::Har => har::read(start, reading.entry)?,
        Form::Curl => curl::read(start, reading.file)?,
        Form::Raw => raw::read(bytes)?,
    };
    finish(draft, form, reading)
}

fn finish(mut draft: Draft, form: Form, reading: &Reading<'_>) -> Result<Captured, String> {
    let method = Method::from_bytes(draft.method.as_bytes()).map_err(|_| format!("`{}` is not a method", cut(&draft.method)))?;
    let own = draft.url.split('#').next().unwrap_or("");
    let (own_base, own_target) = split_url(own).map_or((None, own), |(base, target)| (Some(base), target));
    let (base, target) = match reading.url {
        Some(url) => {
            let (base, target) = split_url(url).ok_or_else(|| format!("--url {url} is not a URL: write it like https://hooks.example.com/github"))?;
            (Some(base), if matches!(target, "" | "/") { own_target } else { target.split('#').next().unwrap_or("") })
        }
        None => (own_base, own_target),
    };
    let knows_url = base.is_some();
    let base = base.map_or_else(
        || format!("https://{}", draft.headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("localhost")),
        |base| base.trim_end_matches('/').to_owned(),
    );
    if !draft.headers.contains_key(header::HOST)
        && let Some(host) = base.split_once("://").and_then(|(_, host)| HeaderValue::from_str(host).ok())
    {
        draft.headers.insert(header::HOST, host);
    }
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let request = Request { method, base, target, headers: draft.headers, body: Chunks::from(Bytes::from(draft.body)) };
    Ok(Captured { request, form, notes: draft.notes, knows_url })
}

/// Hex.
pub(crate) fn sha256(body: &Chunks) -> String {
    let mut digest = Sha256::new();
    body.pieces().for_each(|piece| digest.update(piece));
    HEXLOWER.encode(&digest.finalize())
}

/// A header as text; what cannot stand in HTTP is refused without its value.
fn add(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), String> {
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| format!("`{}` is not the name of a header", cut(name)))?;
    let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| format!("the value of `{name}` cannot stand in a header"))?;
    headers.append(name, value);
    Ok(())
}

/// The length that the headers name.
fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.trim().parse().ok())
}

/// The start of a text that is at fault.
fn cut(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading<'a>(url: Option<&'a str>, file: &'a dyn Fn(&str) -> Result<Vec<u8>, String>) -> Reading<'a> {
        Reading { entry: None, url, file }
    }

    #[test]
    fn the_form_is_found_out() {
        let none = |name: &str| Err(format!("{name} is not there"));
        let form = |text: &str| read(text.as_bytes(), &reading(None, &none)).map(|captured| captured.form);
        assert_eq!(form("POST / HTTP/1.1\r\n\r\n"), Ok(Form::Raw));
        assert_eq!(form("\n curl https://h/ -d x"), Ok(Form::Curl));
        assert_eq!(form("$ curl 'https://h/'"), Ok(Form::Curl));
        assert_eq!(form("\u{feff}{\"log\":{\"entries\":[{\"request\":{\"method\":\"GET\",\"url\":\"https://h/\",\"headers\":[]}}]}}"), Ok(Form::Har));
        assert!(form("{}").is_err());
        let entry = Reading { entry: Some(1), url: None, file: &none };
        assert!(read(b"POST / HTTP/1.1\r\n\r\n", &entry).is_err());
    }

    #[test]
    fn the_url_is_the_one_that_is_said() {
        let none = |name: &str| Err(format!("{name} is not there"));
        let check = |text: &str, url: Option<&str>, want: (&str, &str, bool)| {
            let captured = read(text.as_bytes(), &reading(url, &none)).expect("a request");
            assert_eq!((&*captured.request.base, &*captured.request.target, captured.knows_url), want, "{text} {url:?}");
        };
        let raw = "POST /a?b=1 HTTP/1.1\r\nHost: h:8443\r\n\r\n";
        check(raw, None, ("https://h:8443", "/a?b=1", false));
        check(raw, Some("http://x:8/"), ("http://x:8", "/a?b=1", true));
        check(raw, Some("http://x"), ("http://x", "/a?b=1", true));
        check(raw, Some("http://x/y?z#f"), ("http://x", "/y?z", true));
        check("POST https://k/y#f HTTP/1.1\r\n\r\n", None, ("https://k", "/y", true));
        assert!(read(raw.as_bytes(), &reading(Some("nonsense"), &none)).is_err());
    }
}
