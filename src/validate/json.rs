//! The one bounded JSON scanner: reads untrusted bodies without building a tree.
//!
//! It accepts exactly the texts of RFC 8259 in UTF-8 without a byte order mark, nested no deeper than asked for. Two uses:
//! [`find`] takes out the values at a few JSON pointers (RFC 6901) and refuses a second key of the same name on the way to one,
//! because two readers would disagree on which counts; [`check`] judges a whole text, on request with every object's keys.
//! One pass, no recursion but along a pointer's own tokens, memory only for keys and for texts with escapes.

use std::{borrow::Cow, fmt};

/// The deepest nesting that may be asked for.
pub(crate) const MAX_DEPTH: usize = 512;

/// The most pointers one [`find`] takes.
pub(crate) const MAX_POINTERS: usize = 64;

/// Why a text is refused, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) at: usize,
    pub(crate) kind: FlawKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlawKind {
    NotUtf8,
    Syntax,
    TooDeep,
    DuplicateKey,
    /// A wanted string holds half of a surrogate pair, which no text can hold.
    LoneSurrogate,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FlawKind::NotUtf8 => "the body is not UTF-8",
            FlawKind::Syntax => "the body is not JSON",
            FlawKind::TooDeep => "the body is nested too deeply",
            FlawKind::DuplicateKey => "an object has the same key twice",
            FlawKind::LoneSurrogate => "a string holds half of a surrogate pair",
        };
        write!(f, "{what}, at byte {}", self.at)
    }
}

/// A JSON pointer (RFC 6901), such as `/data/items/0`; the empty one means the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// At most 32 tokens; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self { text: String::new(), tokens: Vec::new() });
        }
        let rest = text.strip_prefix('/').ok_or("a JSON pointer starts with `/`")?;
        let mut tokens = Vec::new();
        for raw in rest.split('/') {
            let mut token = String::with_capacity(raw.len());
            let mut chars = raw.chars();
            while let Some(c) = chars.next() {
                match (c, c == '~') {
                    (_, true) => match chars.next() {
                        Some('0') => token.push('~'),
                        Some('1') => token.push('/'),
                        _ => return Err("`~` is written `~0` in a JSON pointer, and `/` in a name `~1`"),
                    },
                    (c, false) => token.push(c),
                }
            }
            tokens.push(token);
        }
        if tokens.len() > 32 {
            return Err("a JSON pointer may have 32 tokens at most");
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }
}

/// What stands at a pointer. A number is its own text: nothing is rounded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    Array,
    Object,
}

impl<'a> Value<'a> {
    /// The text of a string, number or boolean.
    pub(crate) fn into_scalar(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(text) => Some(Cow::Borrowed(text)),
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            Self::Null | Self::Array | Self::Object => None,
        }
    }
}

/// The values at `pointers` (at most [`MAX_POINTERS`]), in their order; `None` where the text has none. The whole text is judged.
pub(crate) fn find<'a>(text: &'a [u8], max_depth: usize, pointers: &[Pointer]) -> Result<Vec<Option<Value<'a>>>, Flaw> {
    debug_assert!(pointers.len() <= MAX_POINTERS);
    let mut scanner = Scanner::new(text, max_depth)?;
    let mut found = vec![None; pointers.len()];
    let all = if pointers.len() >= 64 { u64::MAX } else { (1 << pointers.len()) - 1 };
    scanner.wanted(pointers, all, 0, &mut found)?;
    scanner.end()?;
    Ok(found)
}

/// Judges a whole text; with `unique_keys`, an object that has a key twice (after escapes) is refused.
pub(crate) fn check(text: &[u8], max_depth: usize, unique_keys: bool) -> Result<(), Flaw> {
    let mut scanner = Scanner::new(text, max_depth)?;
    if unique_keys {
        scanner.value::<true>(0)?
    } else {
        scanner.value::<false>(0)?
    }
    scanner.end()
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    max_depth: usize,
}

/// A string's content between its quotes.
#[derive(Clone, Copy)]
struct Raw<'a> {
    text: &'a str,
    escaped: bool,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(bytes: &'a [u8], max_depth: usize) -> Result<Self, Flaw> {
        let text = std::str::from_utf8(bytes).map_err(|e| Flaw { at: e.valid_up_to(), kind: FlawKind::NotUtf8 })?;
        Ok(Self { text, bytes, at: 0, max_depth: max_depth.min(MAX_DEPTH) })
    }

    fn flaw<T>(&self, kind: FlawKind) -> Result<T, Flaw> {
        Err(Flaw { at: self.at, kind })
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is not white space, taken.
    fn next(&mut self) -> Option<u8> {
        self.space();
        let byte = self.bytes.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.bytes.get(self.at).copied()
    }

    /// Takes `byte`, which must come next.
    fn expect(&mut self, byte: u8) -> Result<(), Flaw> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.flaw(FlawKind::Syntax)
    }

    fn end(&mut self) -> Result<(), Flaw> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { self.flaw(FlawKind::Syntax) }
    }

    /// A string after its opening quote.
    fn string(&mut self) -> Result<Raw<'a>, Flaw> {
        let start = self.at;
        let mut escaped = false;
        loop {
            self.plain();
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let raw = Raw { text: &self.text[start..self.at], escaped, at: start };
                    self.at += 1;
                    return Ok(raw);
                }
                Some(b'\\') => {
                    escaped = true;
                    match self.bytes.get(self.at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                        Some(b'u') if self.bytes.get(self.at + 2..self.at + 6).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => self.at += 6,
                        _ => return self.flaw(FlawKind::Syntax),
                    }
                }
                _ => return self.flaw(FlawKind::Syntax),
            }
        }
    }

    /// Goes on to the next quote, backslash, control character or the end; eight bytes at a time.
    fn plain(&mut self) {
        const ONES: u64 = u64::MAX / 255;
        const HIGH: u64 = ONES * 0x80;
        let zero = |v: u64| v.wrapping_sub(ONES) & !v;
        while let Some(eight) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<8>) {
            let v = u64::from_le_bytes(*eight);
            let hits = (zero(v ^ (ONES * u64::from(b'"'))) | zero(v ^ (ONES * u64::from(b'\\'))) | (v.wrapping_sub(ONES * 0x20) & !v)) & HIGH;
            if hits != 0 {
                self.at += (hits.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
        }
        while self.bytes.get(self.at).is_some_and(|b| *b >= 0x20 && *b != b'"' && *b != b'\\') {
            self.at += 1;
        }
    }

    fn digits(&mut self) -> Result<(), Flaw> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start { self.flaw(FlawKind::Syntax) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<&'a str, Flaw> {
        let start = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1
        } else {
            self.digits()?
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn word(&mut self, word: &str) -> Result<(), Flaw> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        self.flaw(FlawKind::Syntax)
    }

    /// A scalar whose first byte comes next; strings without their quotes.
    fn scalar(&mut self) -> Result<Scalar<'a>, Flaw> {
        match self.bytes.get(self.at) {
            Some(b'"') => {
                self.at += 1;
                self.string().map(Scalar::Text)
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(Scalar::Number),
            Some(b't') => self.word("true").map(|()| Scalar::Bool(true)),
            Some(b'f') => self.word("false").map(|()| Scalar::Bool(false)),
            Some(b'n') => self.word("null").map(|()| Scalar::Null),
            _ => self.flaw(FlawKind::Syntax),
        }
    }

    /// One value at `depth`, judged and left behind; with `KEYS`, the keys of its objects too.
    fn value<const KEYS: bool>(&mut self, depth: usize) -> Result<(), Flaw> {
        let mut open = Nesting::default();
        let mut keys: Keys<'a> = Keys::default();
        loop {
            // A value comes next.
            match self.peek() {
                Some(b'{') => {
                    self.deeper(&mut open, depth, true)?;
                    if KEYS {
                        keys.open();
                    }
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        open.pop();
                        if KEYS {
                            keys.close(self.at)?;
                        }
                    } else {
                        self.expect(b'"')?;
                        let key = self.string()?;
                        if KEYS {
                            keys.push(key);
                        }
                        self.expect(b':')?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.deeper(&mut open, depth, false)?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                    self.at += 1;
                    open.pop();
                }
                _ => {
                    self.scalar()?;
                }
            }
            // A value has ended: close what ends with it, or go on to the next.
            loop {
                let Some(object) = open.top() else { return Ok(()) };
                match (self.next(), object) {
                    (Some(b','), false) => break,
                    (Some(b','), true) => {
                        self.expect(b'"')?;
                        let key = self.string()?;
                        if KEYS {
                            keys.push(key);
                        }
                        self.expect(b':')?;
                        break;
                    }
                    (Some(b'}'), true) => {
                        open.pop();
                        if KEYS {
                            keys.close(self.at)?;
                        }
                    }
                    (Some(b']'), false) => open.pop(),
                    _ => return self.flaw(FlawKind::Syntax),
                }
            }
        }
    }

    fn deeper(&mut self, open: &mut Nesting, depth: usize, object: bool) -> Result<(), Flaw> {
        if depth + open.depth >= self.max_depth {
            return self.flaw(FlawKind::TooDeep);
        }
        self.at += 1;
        open.push(object);
        Ok(())
    }

    /// One value whose place is the first `level` tokens of every pointer in `active`.
    fn wanted(&mut self, pointers: &[Pointer], active: u64, level: usize, found: &mut [Option<Value<'a>>]) -> Result<(), Flaw> {
        if active == 0 {
            return self.value::<false>(level);
        }
        let here = each(active).filter(|p| pointers[*p].tokens.len() == level).fold(0, |bits, p| bits | 1 << p);
        let below = active & !here;
        let value = match self.peek() {
            Some(open @ (b'{' | b'[')) => {
                if level >= self.max_depth {
                    return self.flaw(FlawKind::TooDeep);
                }
                self.at += 1;
                if open == b'{' {
                    self.object(pointers, below, level, found)?
                } else {
                    self.array(pointers, below, level, found)?
                }
                if open == b'{' { Value::Object } else { Value::Array }
            }
            _ => match self.scalar()? {
                Scalar::Null => Value::Null,
                Scalar::Bool(truth) => Value::Bool(truth),
                Scalar::Number(number) => Value::Number(number),
                Scalar::Text(raw) if here != 0 => Value::Text(raw.text()?),
                Scalar::Text(_) => return Ok(()),
            },
        };
        for p in each(here) {
            found[p] = Some(value.clone());
        }
        Ok(())
    }

    fn object(&mut self, pointers: &[Pointer], below: u64, level: usize, found: &mut [Option<Value<'a>>]) -> Result<(), Flaw> {
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut seen = 0;
        loop {
            self.expect(b'"')?;
            let key = self.string()?;
            let mut active = 0;
            if below != 0 {
                let name = key.bytes();
                for p in each(below) {
                    if pointers[p].tokens[level].as_bytes() == &*name {
                        active |= 1 << p;
                    }
                }
            }
            if active & seen != 0 {
                return Err(Flaw { at: key.at, kind: FlawKind::DuplicateKey });
            }
            seen |= active;
            self.expect(b':')?;
            self.wanted(pointers, active, level + 1, found)?;
            match self.next() {
                Some(b',') => self.space(),
                Some(b'}') => return Ok(()),
                _ => return self.flaw(FlawKind::Syntax),
            }
        }
    }

    fn array(&mut self, pointers: &[Pointer], below: u64, level: usize, found: &mut [Option<Value<'a>>]) -> Result<(), Flaw> {
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0_usize.. {
            let mut active = 0;
            for p in each(below) {
                if is_index(&pointers[p].tokens[level], index) {
                    active |= 1 << p;
                }
            }
            self.wanted(pointers, active, level + 1, found)?;
            match self.next() {
                Some(b',') => {}
                Some(b']') => return Ok(()),
                _ => return self.flaw(FlawKind::Syntax),
            }
        }
        Ok(())
    }
}

enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Raw<'a>),
}

/// The bits that are set.
fn each(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(next)
    })
}

/// Whether a pointer's token is this index; `00` and `+1` are none.
fn is_index(token: &str, index: usize) -> bool {
    let canonical = token == "0" || (token.starts_with(|c: char| c.is_ascii_digit() && c != '0') && token.bytes().all(|b| b.is_ascii_digit()));
    canonical && token.parse() == Ok(index)
}

/// Which of the open containers are objects: a bit each.
#[derive(Default)]
struct Nesting {
    bits: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Nesting {
    /// The caller has checked that there is room.
    fn push(&mut self, object: bool) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        self.bits[word] = self.bits[word] & !(1 << bit) | u64::from(object) << bit;
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }

    /// Whether the innermost container is an object.
    fn top(&self) -> Option<bool> {
        let at = self.depth.checked_sub(1)?;
        Some(self.bits[at / 64] >> (at % 64) & 1 == 1)
    }
}

/// The keys of the open objects, innermost last.
#[derive(Default)]
struct Keys<'a> {
    names: Vec<Cow<'a, [u8]>>,
    starts: Vec<usize>,
}

impl<'a> Keys<'a> {
    fn open(&mut self) {
        self.starts.push(self.names.len());
    }

    fn push(&mut self, key: Raw<'a>) {
        self.names.push(key.bytes());
    }

    fn close(&mut self, at: usize) -> Result<(), Flaw> {
        let start = self.starts.pop().unwrap_or(0);
        let names = &mut self.names[start..];
        let twice = if names.len() <= 8 {
            names.iter().enumerate().any(|(i, name)| names[..i].contains(name))
        } else {
            names.sort_unstable();
            names.windows(2).any(|pair| pair[0] == pair[1])
        };
        self.names.truncate(start);
        if twice { Err(Flaw { at, kind: FlawKind::DuplicateKey }) } else { Ok(()) }
    }
}

impl<'a> Raw<'a> {
    fn text(self) -> Result<Cow<'a, str>, Flaw> {
        if !self.escaped {
            return Ok(Cow::Borrowed(self.text));
        }
        String::from_utf8(unescape(self.text)).map(Cow::Owned).map_err(|_| Flaw { at: self.at, kind: FlawKind::LoneSurrogate })
    }

    /// For comparing: half surrogates keep their three bytes, so that different keys stay different.
    fn bytes(self) -> Cow<'a, [u8]> {
        if self.escaped { Cow::Owned(unescape(self.text)) } else { Cow::Borrowed(self.text.as_bytes()) }
    }
}

/// The escapes of a scanned string undone; a half surrogate becomes its three bytes, which are not UTF-8.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&kind, tail)) = rest.split_first() else { break };
        rest = tail;
        match kind {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (unit, tail) = unit(rest);
                rest = tail;
                let mut code = unit;
                if (0xD800..0xDC00).contains(&unit)
                    && let Some(low) = rest.strip_prefix(b"\\u")
                    && let (second @ 0xDC00..0xE000, tail) = self::unit(low)
                {
                    code = 0x10000 + ((unit - 0xD800) << 10) + (second - 0xDC00);
                    rest = tail;
                }
                match char::from_u32(code) {
                    Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => out.extend([0xE0 | (code >> 12) as u8, 0x80 | (code >> 6 & 0x3F) as u8, 0x80 | (code & 0x3F) as u8]),
                }
            }
            other => out.push(other),
        }
    }
    out
}

/// Four hexadecimal digits, which the scanner has seen, and what follows.
fn unit(text: &[u8]) -> (u32, &[u8]) {
    let (hex, rest) = text.split_at(text.len().min(4));
    (hex.iter().fold(0, |n, digit| n << 4 | char::from(*digit).to_digit(16).unwrap_or(0)), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::parse(text).expect("a pointer of this test")
    }

    fn get(text: &str, at: &str) -> Result<Option<String>, FlawKind> {
        let found = find(text.as_bytes(), 64, &[pointer(at)]).map_err(|flaw| flaw.kind)?;
        Ok(found.into_iter().next().flatten().and_then(|v| v.into_scalar().map(Cow::into_owned)))
    }

    #[track_caller]
    fn at(text: &str, pointer: &str, want: Result<Option<&str>, FlawKind>) {
        assert_eq!(get(text, pointer), want.map(|v| v.map(str::to_owned)), "{pointer} of {text}");
    }

    #[test]
    fn pointers_find_their_values() {
        at(r#"{"a":{"b":[1,{"c":"x"}]}}"#, "/a/b/1/c", Ok(Some("x")));
        at(r#" { "a" : -1.5e+3 } "#, "/a", Ok(Some("-1.5e+3")));
        at(r#"{"a/b":{"~":true}}"#, "/a~1b/~0", Ok(Some("true")));
        at(r#"{"":{"":"deep"}}"#, "//", Ok(Some("deep")));
        at("7", "", Ok(Some("7")));
        at(r#"{"a":null}"#, "/a", Ok(None));
        at(r#"{"a":[1]}"#, "/a/1", Ok(None));
        at(r#"{"a":[1]}"#, "/a/00", Ok(None));
        at(r#"{"a":[1]}"#, "/a/-", Ok(None));
        at(r#"{"a":{"0":"key"}}"#, "/a/0", Ok(Some("key")));
        at(r#"{"\u0061\ud83d\ude80":"\u00e9\/\n"}"#, "/a🚀", Ok(Some("é/\n")));
        at(r#"{"a":"\ud800"}"#, "/a", Err(FlawKind::LoneSurrogate));
        at(r#"{"b":"\ud800","a":1}"#, "/a", Ok(Some("1")));
    }

    #[test]
    fn several_pointers_share_one_pass() {
        let text = br#"{"type":"t","data":{"id":"1","more":[{"id":2}]},"x":[]}"#;
        let pointers: Vec<Pointer> = ["/data/more/0/id", "/type", "/data/id", "/none", "/data", "/x"].iter().map(|p| pointer(p)).collect();
        let found = find(text, 64, &pointers).expect("this is JSON");
        let want = [Some(Value::Number("2")), Some(Value::Text("t".into())), Some(Value::Text("1".into())), None, Some(Value::Object), Some(Value::Array)];
        assert_eq!(found, want);
    }

    #[test]
    fn duplicate_keys_on_the_way_are_refused() {
        at(r#"{"a":1,"a":2}"#, "/a", Err(FlawKind::DuplicateKey));
        at(r#"{"a":1,"\u0061":2}"#, "/a", Err(FlawKind::DuplicateKey));
        at(r#"{"a":{"b":1},"a":{}}"#, "/a/b", Err(FlawKind::DuplicateKey));
        at(r#"{"a":1,"b":2,"b":3}"#, "/a", Ok(Some("1")));
        at(r#"{"x":{"a":1,"a":2},"a":"ok"}"#, "/a", Ok(Some("ok")));
    }

    #[test]
    fn bad_pointers_are_refused() {
        assert!(Pointer::parse("a").is_err() && Pointer::parse("/~2").is_err() && Pointer::parse("/~").is_err());
        assert!(Pointer::parse(&"/a".repeat(33)).is_err());
    }

    #[track_caller]
    fn whole(text: impl AsRef<[u8]>, want: Result<(), FlawKind>) {
        let text = text.as_ref();
        assert_eq!(check(text, 64, true).map_err(|f| f.kind), want, "{}", String::from_utf8_lossy(text));
        if want != Err(FlawKind::DuplicateKey) {
            assert_eq!(check(text, 64, false).map_err(|f| f.kind), want);
            assert_eq!(find(text, 64, &[pointer("/a/b")]).map(drop).map_err(|f| f.kind), want);
        }
    }

    #[test]
    fn good_texts() {
        for text in [
            "0",
            "-0",
            "1e5",
            "1E-2",
            "0.5",
            "\"\"",
            "true",
            "false",
            "null",
            "[]",
            "{}",
            " [ 1 , \"a\" ] ",
            "{\"a\":{\"a\":[]}}",
            "\"\\u0000\\ud800\"",
            "\"\u{7f}\u{2028}\"",
            "[[],[[]],{}]",
            "\t\r\n {} \n",
            "1e400",
            "123456789012345678901234567890",
        ] {
            whole(text, Ok(()));
        }
    }

    #[test]
    fn texts_that_are_not_json() {
        for text in [
            "",
            " ",
            "01",
            "-",
            "-a",
            "+1",
            ".5",
            "1.",
            "1.e1",
            "1e",
            "1e+",
            "0x1",
            "1 2",
            "tru",
            "True",
            "nul",
            "NaN",
            "Infinity",
            "-Infinity",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1}",
            "{",
            "}",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{'a':1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\" 1}",
            "{1:2}",
            "{\"a\"::1}",
            "\"",
            "\"a",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\t\"",
            "\"\n\"",
            "\"\u{0}\"",
            "'a'",
            "[1]]",
            "{}{}",
            "{}#",
            "//\n{}",
            "/**/1",
            "[1]\u{a0}",
            "\u{feff}{}",
            "\u{feff}",
            "\u{2060}[]",
            "[\u{c}]",
            "[1,\u{b}2]",
            "\"\\",
            "[\"a\",\"",
            "{\"a\":\"b\"",
            "<null>",
            "*",
            "{\"a\":1,,\"b\":2}",
            "[\"a\"",
            "\\u0020[]",
            "1\u{0}",
        ] {
            whole(text, Err(FlawKind::Syntax));
        }
        for text in [&b"\"\xff\""[..], b"[\xc3]", b"{\"\xed\xa0\x80\":1}", b"\"\xc0\xaf\"", b"\xff\xfe[\0]\0", b"\"\\u\xe9\""] {
            whole(text, Err(FlawKind::NotUtf8));
        }
    }

    #[test]
    fn keys_are_unique_after_their_escapes() {
        whole(r#"{"a":1,"b":{"a":1,"\u0061":2}}"#, Err(FlawKind::DuplicateKey));
        whole(r#"[{"a":1},{"a":1}]"#, Ok(()));
        whole(r#"{"a":{"a":{"a":{}}},"b":[{"a":1}]}"#, Ok(()));
        whole(r#"{"\ud800":1,"\ud801":2}"#, Ok(()));
        let many: String = (0..1000).map(|i| format!("\"k{i}\":{i},")).collect();
        whole(format!("{{{many}\"x\":1}}"), Ok(()));
        whole(format!("{{{many}\"k7\":1}}"), Err(FlawKind::DuplicateKey));
    }

    #[test]
    fn depth_counts_containers() {
        let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        whole(nested(64), Ok(()));
        whole(nested(65), Err(FlawKind::TooDeep));
        let objects = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
        whole(objects(64), Ok(()));
        whole(objects(65), Err(FlawKind::TooDeep));
        assert!(check(nested(MAX_DEPTH).as_bytes(), usize::MAX, true).is_ok());
        assert!(check(nested(MAX_DEPTH + 1).as_bytes(), usize::MAX, true).is_err());
        assert!(check(&[b'['; 1_000_000], MAX_DEPTH, true).is_err());
        assert!(find(objects(65).as_bytes(), 64, &[pointer("/a/a/a")]).is_err());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![Just(serde_json::Value::Null), any::<bool>().prop_map(Into::into), any::<i64>().prop_map(Into::into), ".*".prop_map(Into::into)];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::hash_map(".*", inner, 0..6).prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into())
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_on_any_bytes(text in prop_oneof![prop::collection::vec(any::<u8>(), 0..64), "[\\[\\]{}\":,0-9a-z\\\\ eE.+-]{0,40}".prop_map(String::into_bytes)]) {
            let serde = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            let ours = check(&text, 64, false).is_ok();
            // serde skips strings that are not UTF-8 when it ignores them; nothing else may differ.
            prop_assert_eq!(ours, serde && std::str::from_utf8(&text).is_ok());
        }

        #[test]
        fn written_values_pass_and_are_found(value in json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.expect("a value can be written");
            prop_assert!(check(&text, 64, true).is_ok());
            if let Some(map) = value.as_object() {
                for (key, inner) in map {
                    let at = Pointer::parse(&format!("/{}", key.replace('~', "~0").replace('/', "~1"))).expect("an escaped pointer");
                    let found = find(&text, 64, &[at]).expect("this is JSON").remove(0).expect("the key is there");
                    if let Some(want) = inner.as_str() {
                        prop_assert_eq!(found, Value::Text(want.into()));
                    }
                }
            }
        }

        #[test]
        fn cut_texts_never_panic(value in json(), cut in any::<prop::sample::Index>()) {
            let text = serde_json::to_vec(&value).expect("a value can be written");
            let _ = find(&text[..cut.index(text.len() + 1)], 8, &[Pointer::parse("/a/0").expect("a pointer")]);
        }
    }
}
