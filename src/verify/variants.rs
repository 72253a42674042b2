//! What may have become of a secret, a body or a URL between its sender and here: the other forms to try, the smallest change first.
//!
//! Every form is made anew for the one who asks and dropped again, so that a large body costs its size once. Pure.

use std::{borrow::Cow, io::Read};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};

use super::form;

/// The most that a compressed body is unpacked to, in bytes.
const UNPACKED: u64 = 16 << 20;

/// The largest JSON text that is written anew, in bytes.
const REWRITTEN: usize = 1 << 20;

/// How deep a JSON text may be nested to be written anew.
const DEPTH: usize = 96;

/// Whether to go on.
pub(super) type Go = bool;

// -- secrets --

/// What may have become of a secret; `None` where nothing has.
type Change = fn(&[u8]) -> Option<Vec<u8>>;

/// Other forms of a configured secret, each with the cause and the words for it. `None` where the change changes nothing.
pub(super) const SECRETS: &[(&str, &str, Change)] = &[
    ("secret_blank", "the secret has blanks or a line end around it that do not belong to it", |s| changed(s, s.trim_ascii().to_vec())),
    ("secret_blank", "the sender's secret has a line end that yours has not", |s| Some([s, b"\n"].concat())),
    ("secret_blank", "the sender's secret has a line end (CRLF) that yours has not", |s| Some([s, b"\r\n"].concat())),
    ("secret_blank", "the sender's secret has a blank at its end that yours has not", |s| Some([s, b" "].concat())),
    ("secret_blank", "the sender's secret has a blank at its start that yours has not", |s| Some([b" ", s].concat())),
    ("secret_blank", "the secret ends in the characters `\\n`, which were meant as a line end and do not belong to it", |s| {
        s.strip_suffix(b"\\n").map(|s| s.strip_suffix(b"\\r").unwrap_or(s).to_vec())
    }),
    ("secret_blank", "the secret has a blank or a line end within it that does not belong to it", |s| {
        changed(s, s.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect())
    }),
    ("secret_quoted", "the secret has quotes around it that do not belong to it", |s| {
        let trimmed = s.trim_ascii();
        [b"\"", b"'", b"`"].iter().find_map(|quote| trimmed.strip_prefix(*quote)?.strip_suffix(*quote)).map(<[u8]>::to_vec)
    }),
    ("secret_quoted", "the sender's secret has quotes around it that yours has not", |s| Some([b"\"", s, b"\""].concat())),
    ("secret_bom", "the secret starts with a byte order mark that does not belong to it: an editor put it into the file", |s| {
        s.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec)
    }),
    ("secret_name", "the secret holds its own name: what stands before the `=` does not belong to it", |s| {
        let at = s.iter().position(|byte| *byte == b'=')?;
        let name = &s[..at];
        let named = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') && !s[at + 1..].iter().all(|byte| *byte == b'=');
        named.then(|| s[at + 1..].trim_ascii().to_vec())
    }),
    ("secret_name", "the secret starts with `Bearer `, which does not belong to it", |s| s.strip_prefix(b"Bearer ").map(<[u8]>::to_vec)),
    ("secret_whsec", "the sender's key is the secret without its `whsec_`", |s| s.strip_prefix(b"whsec_").map(<[u8]>::to_vec)),
    ("secret_whsec", "the sender's key is the secret with `whsec_` before it", |s| (!s.starts_with(b"whsec_")).then(|| [b"whsec_", s].concat())),
    ("secret_case", "the secret is in the wrong letter case: the sender's is in small letters", |s| changed(s, s.to_ascii_lowercase())),
    ("secret_case", "the secret is in the wrong letter case: the sender's is in capital letters", |s| changed(s, s.to_ascii_uppercase())),
    ("secret_escaped", "the secret is percent-encoded, and the sender's is not", |s| changed(s, percent_encoding::percent_decode(s).collect())),
    ("secret_encoding", "the secret is the base64 of the sender's: decode it once (Kubernetes keeps its secrets so)", |s| unbase64(s)),
    ("secret_encoding", "the secret is the hex of the sender's: decode it once", |s| HEXLOWER_PERMISSIVE.decode(s.trim_ascii()).ok()),
    ("secret_encoding", "the sender's secret is the base64 of yours", |s| Some(BASE64.encode(s).into_bytes())),
    ("secret_encoding", "the sender's secret is the hex of yours", |s| Some(HEXLOWER.encode(s).into_bytes())),
    ("secret_encoding", "the secret is in hex where base64 is wanted", |s| {
        HEXLOWER_PERMISSIVE.decode(s.strip_prefix(b"whsec_").unwrap_or(s)).ok().map(|bytes| BASE64.encode(&bytes).into_bytes())
    }),
    ("secret_encoding", "the secret is in base64 where hex is wanted", |s| unbase64(s).map(|bytes| HEXLOWER.encode(&bytes).into_bytes())),
    ("secret_encoding", "the secret is base64 in the alphabet of URLs (`-` and `_`) where the other is wanted", |s| {
        s.iter().any(|byte| b"-_".contains(byte)).then(|| {
            let (prefix, text) = s.split_at(if s.starts_with(b"whsec_") { 6 } else { 0 });
            let swapped = text.iter().map(|byte| match byte {
                b'-' => b'+',
                b'_' => b'/',
                other => *other,
            });
            prefix.iter().copied().chain(swapped).collect()
        })
    }),
    ("secret_normal_form", "the secret has letters that are written in two ways in Unicode: yours in another form than the sender's", |s| {
        let text = std::str::from_utf8(s).ok().filter(|text| !text.is_ascii())?;
        let composed = ComposingNormalizerBorrowed::new_nfc().normalize(text);
        let other = if composed == text { DecomposingNormalizerBorrowed::new_nfd().normalize(text) } else { composed };
        changed(s, other.into_owned().into_bytes())
    }),
];

fn changed(old: &[u8], new: Vec<u8>) -> Option<Vec<u8>> {
    (new != old && !new.is_empty()).then_some(new)
}

/// Base64 of either alphabet, with or without its padding.
fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    if text.len() < 8 {
        return None;
    }
    [BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD].iter().find_map(|table| table.decode(text).ok())
}

// -- bodies --

/// What a request says of its body, for the forms that depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    /// Whether the content type is that of forms.
    pub(super) form: bool,
}

/// Other forms of a body: each with its cause and the words for it, until `take` has enough.
pub(super) fn bodies(body: &[u8], hints: Hints, take: &mut dyn FnMut(&'static str, &str, &[u8]) -> Go) {
    let mut give = |cause: &'static str, words: &str, new: &[u8]| new == body || take(cause, words, new);
    let go = ends(body, &mut give) && texts(body, &mut give) && codings(body, &mut give);
    if !go {
        return;
    }
    if let Ok(text) = std::str::from_utf8(body) {
        // A byte order mark or a line end may have come with the rewriting.
        let bare = text.trim_start_matches('\u{feff}').trim();
        if bare.len() <= REWRITTEN && !rewritten(bare, hints, &mut give) {
            return;
        }
        if hints.form && !forms(bare, &mut give) {
            return;
        }
    }
    give("body_empty", "the signature is that of an empty body: the sender signed before it wrote the body, or an emptied copy of it", b"");
}

type Give<'a> = dyn FnMut(&'static str, &str, &[u8]) -> Go + 'a;

fn ends(body: &[u8], give: &mut Give<'_>) -> Go {
    let cut = |end: &[u8]| body.strip_suffix(end).unwrap_or(body);
    let trimmed = body.trim_ascii();
    give("body_newline_added", "the body has a line end at its end that was not signed: editors, `echo` and here-documents add one", cut(b"\n"))
        && give("body_newline_added", "the body has a line end (CRLF) at its end that was not signed", cut(b"\r\n"))
        && give("body_newline_lost", "the body has lost a line end at its end that was signed", &[body, b"\n"].concat())
        && give("body_newline_lost", "the body has lost a line end (CRLF) at its end that was signed", &[body, b"\r\n"].concat())
        && give("body_blank", "the body has blanks or line ends around it that were not signed", trimmed)
        && give("body_bom", "the body starts with a byte order mark that was not signed", body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body))
        && give("body_bom", "the body has lost a byte order mark at its start that was signed", &[b"\xef\xbb\xbf", body].concat())
        && give("body_nul", "the body has NUL bytes at its end that were not signed", {
            let end = body.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            &body[..end]
        })
}

fn texts(body: &[u8], give: &mut Give<'_>) -> Go {
    let lf = replace(body, b"\r\n", b"\n");
    let crlf = replace(&lf, b"\n", b"\r\n");
    if !give("body_line_ends", "the line ends of the body were changed from LF to CRLF on the way", &lf)
        || !give("body_line_ends", "the line ends of the body were changed from CRLF to LF on the way", &crlf)
        || !give("body_line_ends", "the line ends of the body were changed from CR to LF on the way", &replace(body, b"\n", b"\r"))
        || !give("body_line_ends", "the line ends were changed to LF, and the body has lost the last one", &[&lf, &b"\n"[..]].concat())
        || !give("body_line_ends", "the line ends were changed to CRLF, and one was put at the end", lf.strip_suffix(b"\n").unwrap_or(&lf))
        || !give(
            "body_line_ends",
            "the line ends were taken out of the body on the way, or put in: the signature fits it without any",
            &replace(&lf, b"\n", b""),
        )
    {
        return false;
    }
    let Ok(text) = std::str::from_utf8(body) else {
        // Latin-1 as UTF-8 is how a body looks to a sender that took it for UTF-8.
        let utf8: String = body.iter().map(|byte| char::from(*byte)).collect();
        return give("body_charset", "the body is in ISO 8859-1 here, and was signed in UTF-8", utf8.as_bytes())
            && give("body_charset", "bytes of the body that are no UTF-8 were replaced before it was signed", String::from_utf8_lossy(body).as_bytes());
    };
    if text.is_ascii() {
        return true;
    }
    let single: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let twice: String = body.iter().map(|byte| char::from(*byte)).collect();
    let windows: Option<Vec<u8>> = text.chars().map(windows_1252).collect();
    let questions: String = text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
    single.is_none_or(|bytes| give("body_charset", "the body was decoded as ISO 8859-1 on the way and written as UTF-8", &bytes))
        && windows.is_none_or(|bytes| give("body_charset", "the body was decoded as Windows-1252 on the way and written as UTF-8", &bytes))
        && give("body_charset", "the sender signed the body with its UTF-8 taken for ISO 8859-1", twice.as_bytes())
        && give("body_charset", "the sender signed the body with `?` in the place of every character beyond ASCII", questions.as_bytes())
        && give(
            "body_charset",
            "the body's letters were composed or decomposed on the way (Unicode NFC)",
            ComposingNormalizerBorrowed::new_nfc().normalize(text).as_bytes(),
        )
        && give(
            "body_charset",
            "the body's letters were composed or decomposed on the way (Unicode NFD)",
            DecomposingNormalizerBorrowed::new_nfd().normalize(text).as_bytes(),
        )
        && give("body_charset", "the sender signed the body in UTF-16 (little endian)", &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// The byte that a character has in Windows-1252.
fn windows_1252(c: char) -> Option<u8> {
    const HIGH: &[(char, u8)] = &[
        ('€', 0x80),
        ('‚', 0x82),
        ('ƒ', 0x83),
        ('„', 0x84),
        ('…', 0x85),
        ('†', 0x86),
        ('‡', 0x87),
        ('ˆ', 0x88),
        ('‰', 0x89),
        ('Š', 0x8a),
        ('‹', 0x8b),
        ('Œ', 0x8c),
        ('Ž', 0x8e),
        ('‘', 0x91),
        ('’', 0x92),
        ('“', 0x93),
        ('”', 0x94),
        ('•', 0x95),
        ('–', 0x96),
        ('—', 0x97),
        ('˜', 0x98),
        ('™', 0x99),
        ('š', 0x9a),
        ('›', 0x9b),
        ('œ', 0x9c),
        ('ž', 0x9e),
        ('Ÿ', 0x9f),
    ];
    HIGH.iter().find(|(known, _)| *known == c).map(|(_, byte)| *byte).or_else(|| u8::try_from(u32::from(c)).ok())
}

fn codings(body: &[u8], give: &mut Give<'_>) -> Go {
    let unpack = |reader: &mut dyn Read| -> Option<Vec<u8>> {
        let mut out = Vec::new();
        reader.take(UNPACKED + 1).read_to_end(&mut out).ok()?;
        (!out.is_empty() && out.len() as u64 <= UNPACKED).then_some(out)
    };
    let gzip = body.starts_with(b"\x1f\x8b").then(|| unpack(&mut flate2::read::GzDecoder::new(body))).flatten();
    let zlib = body.starts_with(b"\x78").then(|| unpack(&mut flate2::read::ZlibDecoder::new(body))).flatten();
    if let Some(plain) = gzip.or(zlib)
        && !give("body_coding", "the sender signed the body before it was compressed: this one is still compressed", &plain)
    {
        return false;
    }
    if let Some(plain) = unbase64(body)
        && !give("body_base64", "the body is the base64 of what was signed: some gateways hand bodies on so (`isBase64Encoded`)", &plain)
    {
        return false;
    }
    if body.starts_with(b"\"")
        && let Ok(text) = serde_json::from_slice::<String>(body)
        && !give("body_json_string", "the body is a JSON string that holds what was signed: it was written as JSON twice", text.as_bytes())
    {
        return false;
    }
    if body.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        let decoded = form::decode(body).into_owned();
        if !give("body_decoded", "the sender signed the body without its percent escapes", &decoded) {
            return false;
        }
    }
    if body.windows(2).any(|pair| pair == b"\\\"")
        && !give("body_json_string", "the quotes within the body were escaped on the way", &replace(body, b"\\\"", b"\""))
    {
        return false;
    }
    let entities = [(&b"&quot;"[..], &b"\""[..]), (b"&lt;", b"<"), (b"&gt;", b">"), (b"&#39;", b"'"), (b"&amp;", b"&")];
    let plain = entities
        .iter()
        .fold(Cow::Borrowed(body), |text, (from, to)| if memchr::memmem::find(&text, from).is_some() { replace(&text, from, to).into() } else { text });
    give("body_decoded", "the body was escaped for HTML on the way", &plain)
        && give("body_base64", "the sender signed the base64 of the body", BASE64.encode(body).as_bytes())
}

/// JSON written anew in every way that the usual libraries write it, and what forms and JSON become of each other.
fn rewritten(text: &str, hints: Hints, give: &mut Give<'_>) -> Go {
    let Some(tree) = Node::read(text) else { return true };
    if hints.form
        && let Some(form) = tree.as_form()
        && (!give("body_form_parsed", "the form was parsed on the way and handed on as JSON: the signature fits its fields as a form", form.as_bytes())
            || !give(
                "body_form_parsed",
                "the form was parsed on the way and handed on as JSON: the signature fits its fields as a form with `%20`",
                form.replace('+', "%20").as_bytes(),
            ))
    {
        return false;
    }
    // The usual styles first; `sorted` doubles what is left.
    for sorted in [false, true] {
        for style in STYLES {
            for (escapes, said) in [
                (Escapes::Plain, ""),
                (Escapes::Ascii, ", with \\u escapes"),
                (Escapes::Html, ", with <, > and & as \\u escapes"),
                (Escapes::Slashes, ", with `/` as `\\/`"),
                (Escapes::Php, ", with \\u escapes and `/` as `\\/`"),
            ] {
                let mut out = String::with_capacity(text.len() + text.len() / 4);
                tree.write(style, escapes, sorted, 0, &mut out);
                let order = if sorted { ", with its keys sorted" } else { "" };
                let words = format!("the body was parsed and written again on the way: the signature fits it {}{order}{said}", style.said);
                if !give("body_rewritten", &words, out.as_bytes()) {
                    return false;
                }
                out.push('\n');
                if !give("body_rewritten", &format!("{words} and a line end"), out.as_bytes()) {
                    return false;
                }
            }
        }
    }
    true
}

/// Forms written anew.
fn forms(text: &str, give: &mut Give<'_>) -> Go {
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = form::pairs(text.as_bytes()).take(4096).map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let mut sorted = pairs.clone();
    sorted.sort();
    for (pairs, order) in [(&pairs, ""), (&sorted, ", sorted")] {
        for (said, write) in FORMS {
            let mut out = String::new();
            for (name, value) in pairs {
                if !out.is_empty() {
                    out.push('&');
                }
                write(name, &mut out);
                out.push('=');
                write(value, &mut out);
            }
            let words = format!("the form was parsed and written again on the way: the signature fits it with {said}{order}");
            if !give("body_form_parsed", &words, out.as_bytes())
                || !give("body_form_parsed", &format!("{words} and small hex digits"), lower_escapes(&out).as_bytes())
            {
                return false;
            }
        }
    }
    true
}

type WriteForm = fn(&[u8], &mut String);

const FORMS: &[(&str, WriteForm)] = &[
    ("blanks as `+`", |bytes, out| form::encode(bytes, out)),
    ("blanks as `%20`", |bytes, out| out.extend(percent_encoding::percent_encode(bytes, UNRESERVED))),
    ("only what must be escaped", |bytes, out| out.extend(percent_encoding::percent_encode(bytes, NEEDED))),
    ("nothing escaped", |bytes, out| out.push_str(&String::from_utf8_lossy(bytes))),
];

const UNRESERVED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const NEEDED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'&').add(b'=').add(b'+').add(b'#');

fn lower_escapes(text: &str) -> String {
    let mut left = 0;
    let lower = |c: char| {
        if c == '%' {
            left = 2;
            return c;
        }
        if left > 0 {
            left -= 1;
            return c.to_ascii_lowercase();
        }
        c
    };
    text.chars().map(lower).collect()
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

// -- JSON, written in other styles --

/// How a library lays JSON out.
struct Style {
    said: &'static str,
    /// Blanks of one step; 0: on one line.
    indent: usize,
    tab: bool,
    colon: &'static str,
    comma: &'static str,
}

const STYLES: &[Style] = &[
    Style { said: "in compact form", indent: 0, tab: false, colon: ":", comma: "," },
    Style { said: "with a blank after `,` and `:` (Python's json.dumps)", indent: 0, tab: false, colon: ": ", comma: ", " },
    Style { said: "indented by 2", indent: 2, tab: false, colon: ": ", comma: "," },
    Style { said: "indented by 4", indent: 4, tab: false, colon: ": ", comma: "," },
    Style { said: "indented by tabs", indent: 1, tab: true, colon: ": ", comma: "," },
    Style { said: "with a blank after `:`", indent: 0, tab: false, colon: ": ", comma: "," },
    Style { said: "indented by 2 with blanks around `:`", indent: 2, tab: false, colon: " : ", comma: "," },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// What must be escaped only.
    Plain,
    /// Everything beyond ASCII (Python).
    Ascii,
    /// `<`, `>`, `&`, U+2028 and U+2029 (Go).
    Html,
    Slashes,
    /// As `Ascii` and `Slashes` (PHP).
    Php,
}

/// A JSON text: numbers as they are written, keys in their order, copies of keys and all.
enum Node<'a> {
    /// A number, `true`, `false`, `null`.
    Word(&'a str),
    Text(String),
    List(Vec<Node<'a>>),
    Table(Vec<(String, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// `None` where it is not JSON, is a bare scalar, or is too deep.
    fn read(text: &'a str) -> Option<Self> {
        if !text.starts_with(['{', '[']) || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
            return None;
        }
        let mut scan = Scan { text, at: 0 };
        let node = scan.node(0)?;
        scan.blanks();
        (scan.at == text.len()).then_some(node)
    }

    fn write(&self, style: &Style, escapes: Escapes, sorted: bool, depth: usize, out: &mut String) {
        let line = |depth: usize, out: &mut String| {
            if style.indent > 0 {
                out.push('\n');
                out.extend(std::iter::repeat_n(if style.tab { '\t' } else { ' ' }, depth * style.indent));
            }
        };
        match self {
            Self::Word(word) => out.push_str(word),
            Self::Text(text) => escape(text, escapes, out),
            Self::List(items) if items.is_empty() => out.push_str("[]"),
            Self::Table(fields) if fields.is_empty() => out.push_str("{}"),
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push_str(style.comma);
                    }
                    line(depth + 1, out);
                    item.write(style, escapes, sorted, depth + 1, out);
                }
                line(depth, out);
                out.push(']');
            }
            Self::Table(fields) => {
                let mut order: Vec<&(String, Node<'_>)> = fields.iter().collect();
                if sorted {
                    order.sort_by(|a, b| a.0.cmp(&b.0));
                }
                out.push('{');
                for (at, (name, value)) in order.into_iter().enumerate() {
                    if at > 0 {
                        out.push_str(style.comma);
                    }
                    line(depth + 1, out);
                    escape(name, escapes, out);
                    out.push_str(style.colon);
                    value.write(style, escapes, sorted, depth + 1, out);
                }
                line(depth, out);
                out.push('}');
            }
        }
    }

    /// The fields of a flat object as a form.
    fn as_form(&self) -> Option<String> {
        let Self::Table(fields) = self else { return None };
        let mut out = form_urlencoded::Serializer::new(String::new());
        for (name, value) in fields {
            match value {
                Self::Word(word) => drop(out.append_pair(name, word)),
                Self::Text(text) => drop(out.append_pair(name, text)),
                // Parsers that keep all values of a name make lists.
                Self::List(items) => {
                    for item in items {
                        match item {
                            Self::Word(text) => drop(out.append_pair(name, text)),
                            Self::Text(text) => drop(out.append_pair(name, text)),
                            Self::List(_) | Self::Table(_) => return None,
                        }
                    }
                }
                Self::Table(_) => return None,
            }
        }
        Some(out.finish())
    }
}

/// Walks a text that is known to be JSON.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn blanks(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    }

    fn next(&mut self, byte: u8) -> bool {
        self.blanks();
        let there = self.text.as_bytes().get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn node(&mut self, depth: usize) -> Option<Node<'a>> {
        if depth > DEPTH {
            return None;
        }
        self.blanks();
        match self.text.as_bytes().get(self.at)? {
            b'{' => {
                self.at += 1;
                let mut fields = Vec::new();
                if self.next(b'}') {
                    return Some(Node::Table(fields));
                }
                loop {
                    self.blanks();
                    let name = self.string()?;
                    self.next(b':').then_some(())?;
                    fields.push((name, self.node(depth + 1)?));
                    if self.next(b'}') {
                        return Some(Node::Table(fields));
                    }
                    self.next(b',').then_some(())?;
                }
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                if self.next(b']') {
                    return Some(Node::List(items));
                }
                loop {
                    items.push(self.node(depth + 1)?);
                    if self.next(b']') {
                        return Some(Node::List(items));
                    }
                    self.next(b',').then_some(())?;
                }
            }
            b'"' => self.string().map(Node::Text),
            _ => {
                let rest = &self.text[self.at..];
                let end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | ']' | '}')).unwrap_or(rest.len());
                self.at += end;
                (end > 0).then(|| Node::Word(&rest[..end]))
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut at = start + 1;
        loop {
            match bytes.get(at)? {
                b'"' => break,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        self.at = at + 1;
        serde_json::from_str(self.text.get(start..self.at)?).ok()
    }
}

fn escape(text: &str, escapes: Escapes, out: &mut String) {
    use std::fmt::Write as _;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '/' if matches!(escapes, Escapes::Slashes | Escapes::Php) => out.push_str("\\/"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if escapes == Escapes::Html => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if !c.is_ascii() && matches!(escapes, Escapes::Ascii | Escapes::Php) => {
                for half in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{half:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

// -- URLs --

/// A URL as one string and what it differs in: scheme, host, port, path, query. Single changes first, then two together.
pub(super) fn urls(base: &str, target: &str, hosts: &[(String, String)], take: &mut dyn FnMut(&'static str, &str, &str, &str) -> Go) {
    let bases = bases(base, hosts);
    let targets = targets(target);
    for (cause, words, new) in &bases {
        if !take(cause, words, new, target) {
            return;
        }
    }
    for (cause, words, new) in &targets {
        if !take(cause, words, base, new) {
            return;
        }
    }
    for (cause, words, base) in &bases {
        for (_, also, target) in &targets {
            if !take(cause, &format!("{words}, and {also}"), base, target) {
                return;
            }
        }
    }
}

fn bases(base: &str, hosts: &[(String, String)]) -> Vec<(&'static str, String, String)> {
    let mut all: Vec<(&'static str, String, String)> = Vec::new();
    let (scheme, host) = base.split_once("://").unwrap_or(("https", base));
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    };
    let other = if scheme.eq_ignore_ascii_case("https") { "http" } else { "https" };
    let mut push = |cause: &'static str, words: String, new: String| {
        if new != base && !all.iter().any(|(_, _, known)| *known == new) {
            all.push((cause, words, new));
        }
    };
    push("url_scheme", format!("the sender signed the URL with `{other}` and not `{scheme}`"), format!("{other}://{host}"));
    if port.is_some() {
        push("url_port", "the sender signed the URL without its port".to_owned(), format!("{scheme}://{name}"));
        push("url_scheme", format!("the sender signed the URL with `{other}` and without its port"), format!("{other}://{name}"));
    }
    for port in ["443", "80", "8443", "8080", "3000", "9443"] {
        push("url_port", format!("the sender signed the URL with the port {port}"), format!("{scheme}://{name}:{port}"));
    }
    let bare = name.strip_prefix("www.");
    push(
        "url_host",
        "the sender signed the URL with `www.` before the host, or without it".to_owned(),
        format!("{scheme}://{}", bare.map_or_else(|| format!("www.{host}"), |_| host["www.".len()..].to_owned())),
    );
    push("url_host", "the sender signed the URL with its host in small letters".to_owned(), format!("{scheme}://{}", host.to_ascii_lowercase()));
    for (from, host) in hosts {
        for scheme in [scheme, other] {
            push("url_host", format!("the sender signed the URL `{scheme}://{host}`, as {from} says"), format!("{scheme}://{host}"));
            if let Some((name, port)) = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())) {
                push(
                    "url_host",
                    format!("the sender signed the URL `{scheme}://{name}`, as {from} says but for its port {port}"),
                    format!("{scheme}://{name}"),
                );
            }
        }
    }
    all
}

/// The most parameters whose order is tried.
const ORDERED: usize = 5;

fn targets(target: &str) -> Vec<(&'static str, String, String)> {
    let mut all: Vec<(&'static str, String, String)> = Vec::new();
    let mut push = |cause: &'static str, words: String, new: String| {
        if new != target && !all.iter().any(|(_, _, known)| *known == new) {
            all.push((cause, words, new));
        }
    };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let with = |path: &str, query: Option<&str>| query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let slash = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
    push("url_slash", "the sender's URL differs in a slash at the end of its path".to_owned(), with(&slash, query));
    match query {
        None => push("url_query", "the sender signed the URL with an empty query (`?`)".to_owned(), format!("{path}?")),
        Some(query) => {
            push("url_query", "the sender signed the URL without its query".to_owned(), path.to_owned());
            push("url_query", "the sender signed the URL without its query, and with another slash at the end".to_owned(), slash.clone());
            let pieces: Vec<&str> = query.split('&').collect();
            let mut sorted = pieces.clone();
            sorted.sort_unstable();
            push("url_query_order", "the sender's URL has its parameters in another order (sorted by name)".to_owned(), with(path, Some(&sorted.join("&"))));
            if pieces.len() <= ORDERED {
                permutations(&pieces, &mut |order| {
                    push("url_query_order", "the sender's URL has its parameters in another order".to_owned(), with(path, Some(&order.join("&"))))
                });
            }
            for (words, new) in [
                ("the sender's URL has blanks as `%20` and not `+`", query.replace('+', "%20")),
                ("the sender's URL has blanks as `+` and not `%20`", query.replace("%20", "+")),
                ("the sender's URL has small hex digits in its escapes", lower_escapes(query)),
                ("the sender's URL has capital hex digits in its escapes", upper_escapes(query)),
                ("the sender's URL has nothing escaped in its query", String::from_utf8_lossy(&form::decode(query.as_bytes())).into_owned()),
                ("the sender's URL has its query escaped strictly", requoted(query, true)),
                ("the sender's URL has its query escaped as little as needed", requoted(query, false)),
            ] {
                push("url_encoding", words.to_owned(), with(path, Some(&new)));
            }
            for (at, piece) in pieces.iter().enumerate().filter(|_| pieces.len() > 1 && pieces.len() <= 16) {
                let rest: Vec<&str> = pieces.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, piece)| *piece).collect();
                let name = piece.split('=').next().unwrap_or("");
                push("url_query", format!("the sender signed the URL without the parameter `{name}`"), with(path, Some(&rest.join("&"))));
            }
        }
    }
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
    push("url_encoding", "the sender's URL has nothing escaped in its path".to_owned(), with(&decoded, query));
    push("url_encoding", "the sender's URL has small hex digits in the escapes of its path".to_owned(), with(&lower_escapes(path), query));
    push("url_encoding", "the sender's URL has capital hex digits in the escapes of its path".to_owned(), with(&upper_escapes(path), query));
    if path.contains("//") {
        push("url_slash", "the sender's URL has one slash where this has two".to_owned(), with(&path.replace("//", "/"), query));
    }
    push("url_case", "the sender's URL has its path in small letters".to_owned(), with(&path.to_ascii_lowercase(), query));
    // A proxy may have taken a prefix of the path away, or put one before it.
    for (at, _) in path.match_indices('/').skip(1) {
        push("url_path", "the sender's URL has a shorter path: a proxy put something before it".to_owned(), with(&path[at..], query));
    }
    push("url_path", "the sender's URL has no path: only scheme and host were signed".to_owned(), with("/", query));
    push("url_path", "the sender's URL has no path: only scheme and host were signed".to_owned(), String::new());
    all
}

fn upper_escapes(text: &str) -> String {
    let mut left = 0;
    text.chars()
        .map(|c| {
            if c == '%' {
                left = 2;
                return c;
            }
            if left > 0 {
                left -= 1;
                return c.to_ascii_uppercase();
            }
            c
        })
        .collect()
}

fn requoted(query: &str, strict: bool) -> String {
    let mut out = String::new();
    for (at, (name, value)) in form::raw(query.as_bytes()).enumerate() {
        if at > 0 {
            out.push('&');
        }
        for (piece, end) in [(name, "="), (value, "")] {
            let plain = form::decode(piece);
            out.extend(percent_encoding::percent_encode(&plain, if strict { UNRESERVED } else { NEEDED }));
            out.push_str(end);
        }
    }
    out
}

/// Every order of a few pieces but the one they have.
fn permutations<'a>(pieces: &[&'a str], take: &mut dyn FnMut(&[&'a str])) {
    fn go<'a>(order: &mut Vec<&'a str>, from: usize, take: &mut dyn FnMut(&[&'a str])) {
        if from + 1 >= order.len() {
            take(order);
            return;
        }
        for at in from..order.len() {
            order.swap(from, at);
            go(order, from + 1, take);
            order.swap(from, at);
        }
    }
    go(&mut pieces.to_vec(), 0, take);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cause under which `want` is among the forms of `body`.
    fn cause(body: &str, hints: Hints, want: &str) -> Option<&'static str> {
        let mut found = None;
        bodies(body.as_bytes(), hints, &mut |cause, _, new| {
            if new == want.as_bytes() {
                found = Some(cause);
            }
            found.is_none()
        });
        found
    }

    #[test]
    fn bodies_are_led_back() {
        let check = |body: &str, want: &str, named: &str| assert_eq!(cause(body, Hints::default(), want), Some(named), "{body:?} from {want:?}");
        check("{}\n", "{}", "body_newline_added");
        check("{}", "{}\n", "body_newline_lost");
        check("a\r\nb", "a\nb", "body_line_ends");
        check("a\nb\n", "a\r\nb\r\n", "body_line_ends");
        check("\u{feff}{}", "{}", "body_bom");
        check("{}", "\u{feff}{}", "body_bom");
        check("{\"b\": 1, \"a\": [1.0, \"é\"]}", "{\"b\":1,\"a\":[1.0,\"é\"]}", "body_rewritten");
        check("{\"b\":1,\"a\":[]}", "{\n  \"b\": 1,\n  \"a\": []\n}", "body_rewritten");
        check("{\"b\":1,\"a\":{}}", "{\n    \"b\": 1,\n    \"a\": {}\n}\n", "body_rewritten");
        check("{\"b\":1,\"a\":2}", "{\"a\":2,\"b\":1}", "body_rewritten");
        check("{\"a\":\"é🚀\"}", "{\"a\":\"\\u00e9\\ud83d\\ude80\"}", "body_rewritten");
        check("{\"a\":\"b/c\"}", "{\"a\":\"b\\/c\"}", "body_rewritten");
        check("{\"a\":\"<b>&\"}", "{\"a\":\"\\u003cb\\u003e\\u0026\"}", "body_rewritten");
        check("\"{\\\"a\\\":1}\"", "{\"a\":1}", "body_json_string");
        check("eyJhIjoxMjN9", "{\"a\":123}", "body_base64");
        check("a=b%20c", "a=b c", "body_decoded");
        check("x", "", "body_empty");
        let form = Hints { form: true };
        assert_eq!(cause("{\"a\": \"b c\", \"d\": [\"1\"]}", form, "a=b+c&d=1"), Some("body_form_parsed"));
        assert_eq!(cause("a=b%20c&d=%2f", form, "a=b+c&d=%2F"), Some("body_form_parsed"));
    }

    #[test]
    fn charsets_are_led_back() {
        let find = |body: &[u8], want: &[u8]| {
            let mut found = None;
            bodies(body, Hints::default(), &mut |cause, _, new| {
                found = found.or((new == want).then_some(cause));
                found.is_none()
            });
            found
        };
        assert_eq!(find("é".as_bytes(), b"\xe9"), Some("body_charset"));
        assert_eq!(find("€".as_bytes(), b"\x80"), Some("body_charset"));
        assert_eq!(find("e\u{301}".as_bytes(), "é".as_bytes()), Some("body_charset"));
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(&b"{}"[..], flate2::Compression::fast()).read_to_end(&mut packed).expect("memory");
        assert_eq!(find(&packed, b"{}"), Some("body_coding"));
    }

    #[test]
    fn no_text_makes_it_fail() {
        for body in
            ["", "{", "[[[[", "\"\\", "{\"a\":}", "\u{fffd}", "%", "%%%1", &"[".repeat(5000), &format!("{}{}", "[".repeat(120), "]".repeat(120)), "{\"a\":1}x"]
        {
            bodies(body.as_bytes(), Hints { form: true }, &mut |_, _, _| true);
        }
        bodies(&[0xff, 0, 0x1f, 0x8b], Hints::default(), &mut |_, _, _| true);
        bodies(b"\x1f\x8b\x08", Hints::default(), &mut |_, _, _| true);
    }

    #[test]
    fn urls_are_led_back() {
        let check = |base: &str, target: &str, want: (&str, &str), named: &str| {
            let mut found = None;
            urls(base, target, &[("the header `x-forwarded-host`".into(), "real.example:8443".into())], &mut |cause, _, base, target| {
                found = found.or(((base, target) == want).then_some(cause));
                found.is_none()
            });
            assert_eq!(found, Some(named), "{want:?}");
        };
        check("https://h", "/a", ("http://h", "/a"), "url_scheme");
        check("https://h:8443", "/a", ("https://h", "/a"), "url_port");
        check("https://h", "/a", ("https://h:443", "/a"), "url_port");
        check("https://h", "/a", ("https://real.example:8443", "/a"), "url_host");
        check("https://h", "/a", ("https://h", "/a/"), "url_slash");
        check("https://h", "/a/?b=1", ("https://h", "/a?b=1"), "url_slash");
        check("https://h", "/a?b=1&a=2&c=3", ("https://h", "/a?c=3&b=1&a=2"), "url_query_order");
        check("https://h", "/a?b=x%2fy", ("https://h", "/a?b=x%2Fy"), "url_encoding");
        check("https://h", "/a?b=x+y", ("https://h", "/a?b=x%20y"), "url_encoding");
        check("https://h", "/a?b=1", ("https://h", "/a"), "url_query");
        check("http://h:8080", "/v1/a?b=1", ("https://h", "/a?b=1"), "url_scheme");
        urls("", "", &[], &mut |_, _, _, _| true);
    }
}
