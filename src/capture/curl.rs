//! A curl command, as people type it and browsers copy it ("Copy as cURL", for bash and for Windows' cmd).
//!
//! The words are read as a shell reads them: `'…'`, `"…"`, `$'…'`, backslashes, line continuations. Nothing is run: a `$VARIABLE` or a
//! `$(command)` stays as it is written, and a note says so. Options that say nothing about the request are passed over; one that is not
//! known is refused, because what follows it might be its value.

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, header};

use super::{Draft, add, cut};

/// The most words of a command.
const WORDS: usize = 4096;

/// Options with a value that says nothing about the request's bytes.
const PASSED_WITH_VALUE: &[&str] = &[
    "--abstract-unix-socket",
    "--alt-svc",
    "--cacert",
    "--capath",
    "--cert",
    "--cert-type",
    "--ciphers",
    "--connect-timeout",
    "--connect-to",
    "--cookie-jar",
    "--crlfile",
    "--curves",
    "--dns-servers",
    "--doh-url",
    "--dump-header",
    "--expect100-timeout",
    "--happy-eyeballs-timeout-ms",
    "--interface",
    "--keepalive-time",
    "--key",
    "--key-type",
    "--limit-rate",
    "--local-port",
    "--max-filesize",
    "--max-redirs",
    "--max-time",
    "--noproxy",
    "--output",
    "--output-dir",
    "--pass",
    "--pinnedpubkey",
    "--preproxy",
    "--proto",
    "--proto-default",
    "--proto-redir",
    "--proxy",
    "--proxy-header",
    "--proxy-user",
    "--rate",
    "--resolve",
    "--retry",
    "--retry-delay",
    "--retry-max-time",
    "--socks5",
    "--socks5-hostname",
    "--speed-limit",
    "--speed-time",
    "--stderr",
    "--tls-max",
    "--tls13-ciphers",
    "--trace",
    "--trace-ascii",
    "--trace-config",
    "--unix-socket",
    "--write-out",
];

/// Options without a value that say nothing about the request's bytes.
const PASSED: &[&str] = &[
    "--anyauth",
    "--basic",
    "--compressed",
    "--create-dirs",
    "--disable",
    "--fail",
    "--fail-early",
    "--fail-with-body",
    "--globoff",
    "--http0.9",
    "--http1.0",
    "--http1.1",
    "--http2",
    "--http2-prior-knowledge",
    "--http3",
    "--http3-only",
    "--include",
    "--insecure",
    "--ipv4",
    "--ipv6",
    "--junk-session-cookies",
    "--location",
    "--location-trusted",
    "--no-alpn",
    "--no-buffer",
    "--no-keepalive",
    "--no-progress-meter",
    "--no-sessionid",
    "--parallel",
    "--path-as-is",
    "--post301",
    "--post302",
    "--post303",
    "--progress-bar",
    "--raw",
    "--remote-header-name",
    "--remote-name",
    "--retry-all-errors",
    "--retry-connrefused",
    "--show-error",
    "--show-headers",
    "--silent",
    "--ssl",
    "--ssl-no-revoke",
    "--ssl-reqd",
    "--styled-output",
    "--tcp-fastopen",
    "--tcp-nodelay",
    "--tlsv1",
    "--tlsv1.0",
    "--tlsv1.1",
    "--tlsv1.2",
    "--tlsv1.3",
    "--tr-encoding",
    "--trace-ids",
    "--trace-time",
    "--verbose",
];

/// Short options and the long ones they stand for.
const SHORT: &[(char, &str)] = &[
    ('A', "--user-agent"),
    ('b', "--cookie"),
    ('c', "--cookie-jar"),
    ('C', "--continue-at"),
    ('d', "--data"),
    ('D', "--dump-header"),
    ('e', "--referer"),
    ('E', "--cert"),
    ('F', "--form"),
    ('G', "--get"),
    ('H', "--header"),
    ('I', "--head"),
    ('K', "--config"),
    ('L', "--location"),
    ('N', "--no-buffer"),
    ('O', "--remote-name"),
    ('S', "--show-error"),
    ('T', "--upload-file"),
    ('U', "--proxy-user"),
    ('X', "--request"),
    ('Y', "--speed-limit"),
    ('Z', "--parallel"),
    ('f', "--fail"),
    ('g', "--globoff"),
    ('i', "--include"),
    ('j', "--junk-session-cookies"),
    ('k', "--insecure"),
    ('m', "--max-time"),
    ('o', "--output"),
    ('q', "--disable"),
    ('s', "--silent"),
    ('u', "--user"),
    ('v', "--verbose"),
    ('w', "--write-out"),
    ('x', "--proxy"),
    ('y', "--speed-time"),
    ('#', "--progress-bar"),
    ('0', "--http1.0"),
    ('1', "--tlsv1"),
    ('4', "--ipv4"),
    ('6', "--ipv6"),
];

/// Options with a value that make the request.
const MAKERS: &[&str] = &[
    "--continue-at",
    "--config",
    "--cookie",
    "--data",
    "--data-ascii",
    "--data-binary",
    "--data-raw",
    "--data-urlencode",
    "--form",
    "--form-string",
    "--header",
    "--json",
    "--oauth2-bearer",
    "--referer",
    "--request",
    "--request-target",
    "--upload-file",
    "--url",
    "--url-query",
    "--user",
    "--user-agent",
];

/// Whether a text is a curl command.
pub(super) fn is_one(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"$ ").or_else(|| start.strip_prefix(b"> ")).unwrap_or(start).trim_ascii_start();
    let rest = start.strip_prefix(b"curl.exe").or_else(|| start.strip_prefix(b"curl"));
    rest.is_some_and(|rest| rest.first().is_some_and(|byte| byte.is_ascii_whitespace()))
}

pub(super) fn read(bytes: &[u8], file: &dyn Fn(&str) -> Result<Vec<u8>, String>) -> Result<Draft, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the curl command is not UTF-8; keep such a body in a file and use --data-binary @FILE")?;
    let text = text.strip_prefix("$ ").or_else(|| text.strip_prefix("> ")).unwrap_or(text);
    let mut notes = Vec::new();
    let words = if is_cmd(text) { cmd_words(text) } else { shell_words(text, &mut notes)? };
    if words.len() > WORDS {
        return Err(format!("the command has more than {WORDS} words"));
    }
    let mut command = Command { file, notes, ..Command::new() };
    let mut words = words.into_iter().skip(1); // `curl` itself
    while let Some(word) = words.next() {
        if word.len() > 2 && word.starts_with("--") {
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) if MAKERS.contains(&name) || PASSED_WITH_VALUE.contains(&name) => (name.to_owned(), Some(value.to_owned())),
                _ => (word, None),
            };
            command.option(&name, attached, &mut words)?;
        } else if word.len() > 1 && word.starts_with('-') {
            command.short(&word[1..], &mut words)?;
        } else {
            command.url(word)?;
        }
    }
    command.finish()
}

struct Command<'a> {
    file: &'a dyn Fn(&str) -> Result<Vec<u8>, String>,
    notes: Vec<String>,
    method: Option<String>,
    url: Option<String>,
    target: Option<String>,
    headers: HeaderMap,
    /// Headers that are taken out, by `-H "Name:"`.
    removed: Vec<HeaderName>,
    body: Option<Vec<u8>>,
    query: Vec<String>,
    json: bool,
    get: bool,
    head: bool,
    upload: bool,
}

impl Command<'_> {
    fn new() -> Self {
        Self {
            file: &|_| Err(String::new()),
            notes: Vec::new(),
            method: None,
            url: None,
            target: None,
            headers: HeaderMap::new(),
            removed: Vec::new(),
            body: None,
            query: Vec::new(),
            json: false,
            get: false,
            head: false,
            upload: false,
        }
    }

    fn url(&mut self, word: String) -> Result<(), String> {
        if self.url.is_some() {
            return Err(format!("the command names two URLs; `{}` is the second: is a quote missing before it?", cut(&word)));
        }
        self.url = Some(word);
        Ok(())
    }

    /// `-sSLd value`: letters until one takes a value, which may be attached.
    fn short(&mut self, letters: &str, words: &mut dyn Iterator<Item = String>) -> Result<(), String> {
        for (at, letter) in letters.char_indices() {
            let (_, name) = SHORT.iter().find(|(known, _)| *known == letter).ok_or_else(|| format!("curl's option -{letter} is not known here; remove it"))?;
            if MAKERS.contains(name) || PASSED_WITH_VALUE.contains(name) {
                let rest = &letters[at + letter.len_utf8()..];
                return self.option(name, (!rest.is_empty()).then(|| rest.to_owned()), words);
            }
            self.option(name, None, words)?;
        }
        Ok(())
    }

    fn option(&mut self, name: &str, attached: Option<String>, words: &mut dyn Iterator<Item = String>) -> Result<(), String> {
        match name {
            "--get" => self.get = true,
            "--head" => self.head = true,
            _ if PASSED.contains(&name) => {}
            _ => {
                if !MAKERS.contains(&name) && !PASSED_WITH_VALUE.contains(&name) {
                    return Err(format!("curl's option {} is not known here; remove it, and its value if it has one", cut(name)));
                }
                let value = attached.or_else(|| words.next()).ok_or_else(|| format!("curl's option {name} has no value"))?;
                self.valued(name, value)?;
            }
        }
        Ok(())
    }

    fn valued(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "--request" => self.method = Some(value),
            "--url" => self.url(value)?,
            "--request-target" => self.target = Some(value),
            "--url-query" => self.query.push(value.strip_prefix('+').map_or_else(|| urlencoded(&value), |raw| Ok(raw.to_owned()))?),
            "--header" => {
                if let Some(name) = value.strip_prefix('@') {
                    let text = (self.file)(name)?;
                    for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()) {
                        self.header(line)?;
                    }
                } else {
                    self.header(&value)?;
                }
            }
            "--user-agent" => self.default(header::USER_AGENT, &value)?,
            "--referer" => self.default(header::REFERER, &value)?,
            "--cookie" if value.contains('=') => self.default(header::COOKIE, &value)?,
            "--cookie" => self.notes.push("the cookies of -b FILE are left out".to_owned()),
            "--user" => self.default(header::AUTHORIZATION, &format!("Basic {}", BASE64.encode(value.as_bytes())))?,
            "--oauth2-bearer" => self.default(header::AUTHORIZATION, &format!("Bearer {value}"))?,
            "--data" | "--data-ascii" => match value.strip_prefix('@') {
                // curl takes line ends and NULs out of a file that -d reads.
                Some(name) => {
                    let mut bytes = self.take(name)?;
                    let before = bytes.len();
                    bytes.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
                    if bytes.len() != before {
                        self.notes
                            .push(format!("-d @FILE leaves out the file's {} line ends, as curl does; --data-binary @FILE keeps them", before - bytes.len()));
                    }
                    self.data(bytes, Some(b"&"));
                }
                None => self.data(value.into_bytes(), Some(b"&")),
            },
            "--data-raw" => self.data(value.into_bytes(), Some(b"&")),
            "--data-binary" => {
                let bytes = match value.strip_prefix('@') {
                    Some(name) => self.take(name)?,
                    None => value.into_bytes(),
                };
                self.data(bytes, Some(b"&"));
            }
            "--data-urlencode" => {
                let text = match value.split_once(['=', '@']) {
                    Some((name, file)) if value.as_bytes().get(name.len()) == Some(&b'@') => {
                        let mut text = if name.is_empty() { String::new() } else { format!("{name}=") };
                        encode(&self.take(file)?, &mut text);
                        text
                    }
                    _ => urlencoded(&value)?,
                };
                self.data(text.into_bytes(), Some(b"&"));
            }
            "--json" => {
                self.json = true;
                let bytes = match value.strip_prefix('@') {
                    Some(name) => self.take(name)?,
                    None => value.into_bytes(),
                };
                self.data(bytes, None);
            }
            "--upload-file" => {
                self.body = Some(self.take(&value)?);
                self.upload = true;
            }
            "--form" | "--form-string" => {
                return Err("a multipart body (-F) has a boundary that curl makes up, so its bytes cannot be known: capture raw HTTP instead".to_owned());
            }
            "--config" => return Err("-K FILE is not read: write its options into the command".to_owned()),
            "--continue-at" => return Err("-C sends a part of a file only".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn take(&self, name: &str) -> Result<Vec<u8>, String> {
        if name == "-" {
            return Err("the command reads its data from standard input (@-): put it into a file and name that".to_owned());
        }
        (self.file)(name)
    }

    /// `Name: value`; `Name;` for an empty value, `Name:` for none at all.
    fn header(&mut self, line: &str) -> Result<(), String> {
        if let Some((name, value)) = line.split_once(':') {
            if value.trim().is_empty() {
                if let Ok(name) = HeaderName::from_bytes(name.trim().as_bytes()) {
                    self.removed.push(name);
                }
                return Ok(());
            }
            return add(&mut self.headers, name, value.as_bytes());
        }
        match line.strip_suffix(';') {
            Some(name) => add(&mut self.headers, name, b""),
            None => Err(format!("-H `{}` is not a header: write it like \"Name: value\"", cut(line))),
        }
    }

    /// A header that an option sets, unless -H does.
    fn default(&mut self, name: HeaderName, value: &str) -> Result<(), String> {
        if !self.headers.contains_key(&name) {
            add(&mut self.headers, name.as_str(), value.as_bytes())?;
        }
        Ok(())
    }

    fn data(&mut self, bytes: Vec<u8>, join: Option<&[u8]>) {
        match &mut self.body {
            Some(body) => {
                body.extend_from_slice(join.unwrap_or_default());
                body.extend_from_slice(&bytes);
            }
            None => self.body = Some(bytes),
        }
    }

    fn finish(mut self) -> Result<Draft, String> {
        let mut url = self.url.take().ok_or("the command has no URL")?;
        if !url.contains("://") {
            url.insert_str(0, "http://"); // as curl does
        }
        let mut url = url.split('#').next().unwrap_or("").to_owned();
        let host_end = url.find("://").map_or(0, |at| at + 3);
        if let Some(at) = url[host_end..].find(['/', '?']).map(|at| host_end + at).or(Some(url.len()))
            && let Some(user) = url[host_end..at].rfind('@')
        {
            let pair = percent_encoding::percent_decode_str(&url[host_end..host_end + user]).collect::<Vec<u8>>();
            self.default(header::AUTHORIZATION, &format!("Basic {}", BASE64.encode(&pair)))?;
            url.replace_range(host_end..=host_end + user, "");
        }
        if self.get
            && let Some(body) = self.body.take()
        {
            self.query.push(String::from_utf8(body).map_err(|_| "the data of -G is not text")?);
        }
        for piece in std::mem::take(&mut self.query) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&piece);
        }
        if let Some(target) = self.target.take() {
            let end = url[host_end.min(url.len())..].find(['/', '?']).map_or(url.len(), |at| host_end + at);
            url.truncate(end);
            url.push_str(&target);
        }
        let method = match (self.method.take(), self.head, self.upload, &self.body) {
            (Some(method), ..) => method,
            (None, true, ..) => "HEAD".to_owned(),
            (None, _, true, _) => "PUT".to_owned(),
            (None, _, _, Some(_)) => "POST".to_owned(),
            (None, _, _, None) => "GET".to_owned(),
        };
        if self.json {
            self.default(header::CONTENT_TYPE, "application/json")?;
            self.default(header::ACCEPT, "application/json")?;
        } else if self.body.is_some() && !self.upload {
            self.default(header::CONTENT_TYPE, "application/x-www-form-urlencoded")?;
        }
        for name in &self.removed {
            self.headers.remove(name);
        }
        Ok(Draft { method, url, headers: self.headers, body: self.body.unwrap_or_default(), notes: self.notes })
    }
}

/// `--data-urlencode`: `content`, `=content`, `name=content`.
fn urlencoded(value: &str) -> Result<String, String> {
    let mut out = String::new();
    match value.split_once('=') {
        Some((name, content)) => {
            if !name.is_empty() {
                out.push_str(name);
                out.push('=');
            }
            encode(content.as_bytes(), &mut out);
        }
        None => encode(value.as_bytes(), &mut out),
    }
    Ok(out)
}

/// As curl escapes: everything but letters, digits and `-._~`.
fn encode(bytes: &[u8], out: &mut String) {
    const KEPT: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    out.extend(percent_encoding::percent_encode(bytes, KEPT));
}

// -- words --

/// The words of the first command, as bash parts them.
fn shell_words(text: &str, notes: &mut Vec<String>) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut expands = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('\n') => {}
                Some('\r') if rest.peek() == Some(&'\n') => {
                    rest.next();
                }
                Some(c) => word.get_or_insert_default().push(c),
                None => {}
            },
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a ' is not closed".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some('\\') => match rest.next() {
                            Some('\n') => {}
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("a \" is not closed".to_owned()),
                        },
                        Some(c) => {
                            expands |= c == '`' || (c == '$' && rest.peek().is_some_and(|next| starts_variable(*next)));
                            word.push(c);
                        }
                        None => return Err("a \" is not closed".to_owned()),
                    }
                }
            }
            '$' if rest.peek() == Some(&'\'') => {
                rest.next();
                ansi(&mut rest, word.get_or_insert_default())?;
            }
            '$' if rest.peek() == Some(&'"') => {} // a translated string: read as "…"
            '#' if word.is_none() => while rest.next_if(|c| *c != '\n').is_some() {},
            c if c.is_ascii_whitespace() => {
                words.extend(word.take());
                // A line end ends the command, once there is one.
                if c == '\n' && words.len() > 1 && rest.clone().all(|c| c.is_ascii_whitespace()) {
                    break;
                }
                if c == '\n' && words.len() > 1 {
                    notes.push("only the first command is read; a command over several lines has a `\\` at the end of each but the last".to_owned());
                    return finish_words(words, expands, notes);
                }
            }
            '|' | ';' | '<' | '>' | '&' => {
                words.extend(word.take());
                if c == '&' && rest.peek() != Some(&'&') && rest.clone().any(|c| !c.is_ascii_whitespace()) {
                    notes.push("the command ends at a `&` that is not quoted: is the URL in quotes?".to_owned());
                }
                return finish_words(words, expands, notes);
            }
            c => {
                expands |= c == '`' || (c == '$' && rest.peek().is_some_and(|next| starts_variable(*next)));
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    finish_words(words, expands, notes)
}

fn finish_words(words: Vec<String>, expands: bool, notes: &mut Vec<String>) -> Result<Vec<String>, String> {
    if expands {
        notes.push("a `$VARIABLE` or a command in the curl command is not put in: what the shell would have sent is not known here".to_owned());
    }
    Ok(words)
}

fn starts_variable(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '{' | '(' | '@' | '*')
}

/// `$'…'`, after its opening quote.
fn ansi(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut String) -> Result<(), String> {
    let open = || "a $' is not closed".to_owned();
    let mut bytes: Vec<u8> = Vec::new();
    let utf8 = |c: char, bytes: &mut Vec<u8>| bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    loop {
        match rest.next().ok_or_else(open)? {
            '\'' => break,
            '\\' => {
                let escape = rest.next().ok_or_else(open)?;
                let mut number = |most: usize, radix: u32, first: u32| {
                    let (mut value, mut seen) = (first, 0);
                    while seen < most
                        && let Some(digit) = rest.peek().and_then(|c| c.to_digit(radix))
                    {
                        value = value * radix + digit;
                        seen += 1;
                        rest.next();
                    }
                    (value, seen)
                };
                match escape {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'r' => bytes.push(b'\r'),
                    'a' => bytes.push(7),
                    'b' => bytes.push(8),
                    'e' | 'E' => bytes.push(27),
                    'f' => bytes.push(12),
                    'v' => bytes.push(11),
                    'x' => match number(2, 16, 0) {
                        (_, 0) => bytes.extend_from_slice(b"\\x"),
                        (value, _) => bytes.push(u8::try_from(value).unwrap_or(0)),
                    },
                    'u' | 'U' => {
                        let (value, seen) = number(if escape == 'u' { 4 } else { 8 }, 16, 0);
                        // A browser writes a character beyond the first plane as two halves.
                        let value = match value {
                            0xd800..=0xdbff if seen == 4 => match low_half(rest) {
                                Some(low) => 0x1_0000 + ((value - 0xd800) << 10) + (low - 0xdc00),
                                None => value,
                            },
                            _ => value,
                        };
                        utf8(char::from_u32(value).unwrap_or('\u{fffd}'), &mut bytes);
                    }
                    c @ '0'..='7' => {
                        let (value, _) = number(2, 8, c.to_digit(8).unwrap_or(0));
                        bytes.push(u8::try_from(value & 0xff).unwrap_or(0));
                    }
                    'c' => bytes.push(u8::try_from(u32::from(rest.next().ok_or_else(open)?) & 0x1f).unwrap_or(0)),
                    c @ ('\\' | '\'' | '"' | '?') => utf8(c, &mut bytes),
                    c => {
                        bytes.push(b'\\');
                        utf8(c, &mut bytes);
                    }
                }
            }
            c => utf8(c, &mut bytes),
        }
    }
    word.push_str(&String::from_utf8(bytes).map_err(|_| "the bytes of a $'…' are not UTF-8; keep such a body in a file and use --data-binary @FILE")?);
    Ok(())
}

/// `\uDC00` to `\uDFFF`, where that is what follows.
fn low_half(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<u32> {
    let ahead: String = rest.clone().take(6).collect();
    let value = u32::from_str_radix(ahead.strip_prefix("\\u")?, 16).ok().filter(|value| (0xdc00..=0xdfff).contains(value))?;
    rest.nth(5);
    Some(value)
}

/// Whether a command was copied for Windows' cmd: quotes or line ends behind a `^`.
fn is_cmd(text: &str) -> bool {
    text.contains("^\n") || text.contains("^\r\n") || text.contains(" ^\"")
}

/// The words of a command for Windows' cmd: `^` takes the meaning from the character behind it, then `"…"` with `\"` and `""` within.
fn cmd_words(text: &str) -> Vec<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '^' => {
                rest.next_if_eq(&'\r');
                match rest.next() {
                    // A line end behind `^` is none; one that is to stay is written twice.
                    Some('\n') => {
                        rest.next_if_eq(&'\r');
                        if rest.next_if_eq(&'\n').is_some() {
                            plain.push('\n');
                        }
                    }
                    Some(c) => plain.push(c),
                    None => {}
                }
            }
            '\r' | '\n' => plain.push(' '),
            c => plain.push(c),
        }
    }
    let (mut words, mut word, mut inside) = (Vec::new(), None::<String>, false);
    let mut rest = plain.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let mut count = 1;
                while rest.next_if_eq(&'\\').is_some() {
                    count += 1;
                }
                let word = word.get_or_insert_default();
                if rest.peek() == Some(&'"') {
                    word.extend(std::iter::repeat_n('\\', count / 2));
                    if count % 2 == 1 {
                        rest.next();
                        word.push('"');
                    }
                } else {
                    word.extend(std::iter::repeat_n('\\', count));
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                if inside && rest.next_if_eq(&'"').is_some() {
                    word.push('"');
                } else {
                    inside = !inside;
                }
            }
            c if c.is_ascii_whitespace() && !inside => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Result<Vec<u8>, String> {
        match name {
            "body.json" => Ok(b"{\n \"a\": 1\r\n}\n".to_vec()),
            "headers" => Ok(b"X-One: 1\nX-Two: 2\n".to_vec()),
            other => Err(format!("{other} is not there")),
        }
    }

    fn draft(text: &str) -> Draft {
        read(text.as_bytes(), &file).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn check(text: &str, method: &str, url: &str, body: &str) {
        let got = draft(text);
        assert_eq!((&*got.method, &*got.url, &*String::from_utf8_lossy(&got.body)), (method, url, body), "{text}");
    }

    #[test]
    fn commands_become_requests() {
        check("curl https://h/a", "GET", "https://h/a", "");
        check("curl h/a -d x", "POST", "http://h/a", "x");
        check("curl -d a -d b 'https://h/?q=1&r=2'", "POST", "https://h/?q=1&r=2", "a&b");
        check("curl -XPUT https://h -da=b", "PUT", "https://h", "a=b");
        check("curl -sSLX POST --url https://h/ --data-raw '@x'", "POST", "https://h/", "@x");
        check("curl https://h/ --data-binary @body.json", "POST", "https://h/", "{\n \"a\": 1\r\n}\n");
        check("curl https://h/ -d @body.json", "POST", "https://h/", "{ \"a\": 1}");
        check("curl https://h/ --json '{\"a\":' --json '1}'", "POST", "https://h/", "{\"a\":1}");
        check("curl -G https://h/p -d a=1 --data-urlencode 'b=x y&z'", "GET", "https://h/p?a=1&b=x%20y%26z", "");
        check("curl -G 'https://h/p?q=0' -d a=1", "GET", "https://h/p?q=0&a=1", "");
        check("curl -T body.json https://h/", "PUT", "https://h/", "{\n \"a\": 1\r\n}\n");
        check("curl --request=PATCH https://h/#frag --data=x", "PATCH", "https://h/", "x");
        check("curl -I https://h/ ; rm -rf /", "HEAD", "https://h/", "");
        check("curl https://user:p%40ss@h/x", "GET", "https://h/x", "");
    }

    #[test]
    fn quotes_are_read_as_a_shell_reads_them() {
        check("curl \\\n  'https://h/' \\\n  --data-raw 'it'\\''s'", "POST", "https://h/", "it's");
        check("curl \"https://h/\" -d \"{\\\"a\\\": \\\"\\$5 \\n\\\"}\"", "POST", "https://h/", "{\"a\": \"$5 \\n\"}");
        check("curl https://h/ --data-raw $'a\\n\\'b\\\\\\u00e9\\x41\\101\\ud83d\\ude80\\u0021'", "POST", "https://h/", "a\n'b\\éAA🚀!");
        check("curl https://h/ -d a\\ b'c'\"d\"", "POST", "https://h/", "a bcd");
        check("curl https://h/ -d '' # nothing", "POST", "https://h/", "");
        check("curl ^\"https://h/^\" ^\n  -H ^\"x-a: b^\" ^\n  --data-raw ^\"^{^\\^\"a^\\^\":1^}^\"", "POST", "https://h/", "{\"a\":1}");
        check("curl.exe \"https://h/\" ^\r\n --data-raw \"a\\\"b\"", "POST", "https://h/", "a\"b");
    }

    #[test]
    fn headers_are_taken_over() {
        let header = |text: &str, name: &str| draft(text).headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(header("curl h -H 'X-A:  b '", "x-a"), some("b"));
        assert_eq!(header("curl h -H @headers", "x-two"), some("2"));
        assert_eq!(header("curl h -H 'X-A;'", "x-a"), some(""));
        assert_eq!(header("curl h -d x", "content-type"), some("application/x-www-form-urlencoded"));
        assert_eq!(header("curl h -d x -H 'Content-Type:'", "content-type"), None);
        assert_eq!(header("curl h --json {}", "content-type"), some("application/json"));
        assert_eq!(header("curl h -H 'content-type: text/plain' -d x", "content-type"), some("text/plain"));
        assert_eq!(header("curl h -u me:pass", "authorization"), some("Basic bWU6cGFzcw=="));
        assert_eq!(header("curl https://me:p%40s@h/", "authorization"), some("Basic bWU6cEBz"));
        assert_eq!(header("curl h -A agent -e ref -b a=1", "cookie"), some("a=1"));
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        let note = |text: &str, want: &str| {
            let said = draft(text).notes.join("; ");
            assert!(said.contains(want), "{text}: {said}");
        };
        note("curl h -d \"$BODY\"", "$VARIABLE");
        note("curl https://h/?a=1&b=2", "is the URL in quotes");
        note("curl h -d @body.json", "line ends");
        note("curl h -d x\ncurl k", "only the first");
        for (text, want) in [
            ("curl h -F a=b", "multipart"),
            ("curl --frobnicate h", "--frobnicate"),
            ("curl h -d 'x", "not closed"),
            ("curl h k", "two URLs"),
            ("curl -d x", "no URL"),
            ("curl h -d @nothing", "nothing is not there"),
            ("curl h -d", "has no value"),
            ("curl h -H nonsense", "is not a header"),
            ("curl h -d @-", "standard input"),
        ] {
            let why = read(text.as_bytes(), &file).expect_err(text);
            assert!(why.contains(want), "{text}: {why}");
        }
    }
}
