//! Finds the values that rules name in a JSON text and writes the text anew with only their bytes changed.
//!
//! One pass, no tree. Objects and arrays that no rule can reach into are stepped over by their brackets, so the
//! JSON in there is not judged: whether a body is well formed is the gate's `validate` step.

use std::borrow::Cow;
use std::fmt;

use crate::rules::{Action, Rules, Segment};

/// How deep rules reach. Deeper values are an error, since a rule with `**` could have meant them.
const MAX_DEPTH: usize = 256;

#[derive(Debug, PartialEq)]
pub enum Error {
    NotJson { at: usize },
    TooDeep,
    Hash(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { at } => {
                write!(f, "the body is not JSON at byte {at}, so nothing can be redacted in it: set `not_json = \"pass\"` to let such bodies through")
            }
            Self::TooDeep => write!(f, "the body is nested deeper than {MAX_DEPTH} levels where a rule reaches"),
            Self::Hash(why) => write!(f, "cannot hash: {why}"),
        }
    }
}

/// Hashes under a named key, or without one.
pub type Hash<'a> = &'a dyn Fn(Option<&str>, &[u8]) -> Result<Vec<u8>, String>;

/// The redacted text; none if no rule fits anything in it, or it is empty.
pub fn redact(text: &[u8], rules: &Rules, hash: Hash<'_>) -> Result<Option<Vec<u8>>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut editor = Editor { text, at: 0, depth: 0, rules, hash, states: Vec::new(), edits: Vec::new() };
    for rule in 0..rules.rules.len() {
        editor.enter(State { rule, step: 0 });
    }
    editor.space();
    editor.value(0, editor.states.len())?;
    editor.space();
    if editor.at != text.len() {
        return editor.not_json();
    }
    Ok(editor.finish())
}

/// A rule that reaches the value at hand by its first `step` segments.
#[derive(Clone, Copy, PartialEq)]
struct State {
    rule: usize,
    step: usize,
}

/// Bytes of the text and what stands there instead.
struct Edit {
    from: usize,
    to: usize,
    with: Vec<u8>,
}

struct Editor<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    rules: &'a Rules,
    hash: Hash<'a>,
    /// The states of the value at hand and, below, those of the values around it.
    states: Vec<State>,
    /// In the text's order, without overlap.
    edits: Vec<Edit>,
}

/// The members of one object or the elements of one array, as far as removal cares.
#[derive(Default)]
struct Row {
    /// The end of the last one read, once one stays.
    previous_end: Option<usize>,
    /// Where the removal of everything so far begins, while none stays.
    leading: Option<(usize, usize)>,
}

impl<'a> Editor<'a> {
    /// Reads one value, which the states from `from` to `to` reach.
    fn value(&mut self, from: usize, to: usize) -> Result<(), Error> {
        match self.peek() {
            Some(b'{' | b'[') if from < to => {
                if self.depth == MAX_DEPTH {
                    return Err(Error::TooDeep);
                }
                self.depth += 1;
                let done = self.container(from, to);
                self.depth -= 1;
                done
            }
            _ => self.skip(),
        }
    }

    fn container(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let object = self.peek() == Some(b'{');
        let close = if object { b'}' } else { b']' };
        self.at += 1;
        self.space();
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        let mut row = Row::default();
        for index in 0_usize.. {
            let start = self.at;
            if let Some((begin, _)) = row.leading.take_if(|_| row.previous_end.is_none()) {
                self.edits.push(Edit { from: begin, to: start, with: Vec::new() });
            }
            let name = if object { self.name()? } else { Cow::Owned(index.to_string().into_bytes()) };
            let base = self.states.len();
            let fits = self.step(from, to, &name);
            let value = self.at;
            match fits.map(|rule| &self.rules.rules[rule].action) {
                Some(Action::Remove) => {
                    self.skip()?;
                    match row.previous_end {
                        Some(end) => self.edits.push(Edit { from: end, to: self.at, with: Vec::new() }),
                        None => row.leading = Some((start, self.at)),
                    }
                    row.previous_end = row.previous_end.map(|_| self.at);
                }
                Some(action) => {
                    self.skip()?;
                    match self.replacement(action, value, self.at)? {
                        Some(with) if with != self.text[value..self.at] => {
                            self.edits.push(Edit { from: value, to: self.at, with });
                        }
                        _ => {}
                    }
                    row.previous_end = Some(self.at);
                }
                None => {
                    self.value(base, self.states.len())?;
                    row.previous_end = Some(self.at);
                }
            }
            self.states.truncate(base);
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                }
                Some(byte) if byte == close => {
                    self.at += 1;
                    break;
                }
                _ => return self.not_json(),
            }
        }
        if let Some((begin, end)) = row.leading {
            self.edits.push(Edit { from: begin, to: end, with: Vec::new() });
        }
        Ok(())
    }

    /// Reads a member's name and the colon, up to the value; the name comes back without its escapes.
    fn name(&mut self) -> Result<Cow<'a, [u8]>, Error> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return self.not_json();
        }
        self.string()?;
        let name = unescape(&self.text[start + 1..self.at - 1]);
        self.space();
        if self.peek() != Some(b':') {
            return self.not_json();
        }
        self.at += 1;
        self.space();
        Ok(name)
    }

    /// Pushes the states of the child of that name. The first rule that ends there, if one does.
    fn step(&mut self, from: usize, to: usize, name: &[u8]) -> Option<usize> {
        let base = self.states.len();
        let mut fits: Option<usize> = None;
        for index in from..to {
            let State { rule, step } = self.states[index];
            let path = &self.rules.rules[rule].path;
            let next = match &path[step] {
                Segment::Deep => step,
                Segment::Any => step + 1,
                Segment::Name(wanted) if wanted.as_bytes() == name => step + 1,
                Segment::Name(_) => continue,
            };
            // A path that ends in `**` means everything below.
            if next == path.len() || (next + 1 == path.len() && path[next] == Segment::Deep && step == next) {
                fits = Some(fits.map_or(rule, |other| other.min(rule)));
            } else {
                self.enter_from(base, State { rule, step: next });
            }
        }
        fits
    }

    fn enter(&mut self, state: State) {
        self.enter_from(0, state);
    }

    /// Adds a state and, where its next segment may stand for nothing, the state behind that segment.
    fn enter_from(&mut self, base: usize, mut state: State) {
        let path = &self.rules.rules[state.rule].path;
        loop {
            if !self.states[base..].contains(&state) {
                self.states.push(state);
            }
            if path[state.step] != Segment::Deep || state.step + 1 == path.len() {
                return;
            }
            state.step += 1;
        }
    }

    /// What stands in a value's place; none: it stays. Null stays, since nothing is in it.
    fn replacement(&self, action: &Action, from: usize, to: usize) -> Result<Option<Vec<u8>>, Error> {
        let raw = &self.text[from..to];
        if raw == b"null" {
            return Ok(None);
        }
        let content = if raw[0] == b'"' { unescape(&raw[1..raw.len() - 1]) } else { Cow::Borrowed(raw) };
        let text = match action {
            Action::Remove => return Ok(None),
            Action::Mask { with, keep: 0 } => with.clone(),
            Action::Mask { with, .. } if matches!(raw[0], b'{' | b'[') => with.clone(),
            Action::Mask { keep, .. } => {
                let content = String::from_utf8_lossy(&content);
                let length = content.chars().count();
                // Half at most: the end of a short value would give it away.
                let hidden = length - (*keep).min(length / 2);
                content.chars().enumerate().map(|(n, c)| if n < hidden { '*' } else { c }).collect()
            }
            Action::Hash { key } => {
                let digest = (self.hash)(key.as_deref(), &content).map_err(Error::Hash)?;
                let mut text = String::from(if key.is_some() { "hmac-sha256:" } else { "sha256:" });
                for byte in digest {
                    for half in [byte >> 4, byte & 15] {
                        text.push(char::from_digit(half.into(), 16).unwrap_or('0'));
                    }
                }
                text
            }
        };
        Ok(Some(quote(&text)))
    }

    /// Steps over one value.
    fn skip(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') => {
                let mut open = 0_usize;
                while let Some(byte) = self.peek() {
                    match byte {
                        b'"' => {
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => open += 1,
                        b'}' | b']' => open -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if open == 0 {
                        return Ok(());
                    }
                }
                self.not_json()
            }
            _ => {
                let start = self.at;
                while let Some(b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.') = self.peek() {
                    self.at += 1;
                }
                match &self.text[start..self.at] {
                    b"true" | b"false" | b"null" => Ok(()),
                    [b'-' | b'0'..=b'9', ..] => Ok(()),
                    _ => {
                        self.at = start;
                        self.not_json()
                    }
                }
            }
        }
    }

    /// Steps over a string, at whose first quote this begins.
    fn string(&mut self) -> Result<(), Error> {
        self.at += 1;
        loop {
            match self.text[self.at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) {
                Some(n) if self.text[self.at + n] == b'"' => {
                    self.at += n + 1;
                    return Ok(());
                }
                Some(n) if self.at + n + 2 <= self.text.len() => self.at += n + 2,
                _ => {
                    self.at = self.text.len();
                    return self.not_json();
                }
            }
        }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn not_json<T>(&self) -> Result<T, Error> {
        Err(Error::NotJson { at: self.at })
    }

    fn finish(self) -> Option<Vec<u8>> {
        if self.edits.is_empty() {
            return None;
        }
        let added: usize = self.edits.iter().map(|edit| edit.with.len()).sum();
        let mut output = Vec::with_capacity(self.text.len() + added);
        let mut at = 0;
        for edit in &self.edits {
            output.extend_from_slice(&self.text[at..edit.from]);
            output.extend_from_slice(&edit.with);
            at = edit.to;
        }
        output.extend_from_slice(&self.text[at..]);
        Some(output)
    }
}

/// The content of a JSON string, of which `raw` is what stands between the quotes. A lone surrogate becomes U+FFFD.
fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    let mut output = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        at += 1;
        if byte != b'\\' {
            output.push(byte);
            continue;
        }
        let escaped = raw.get(at).copied().unwrap_or(b'\\');
        at += 1;
        output.push(match escaped {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let unit = hex4(raw, at);
                at += 4;
                let mut code = unit;
                if (0xd800..0xdc00).contains(&unit) && raw.get(at..at + 2) == Some(br"\u") {
                    let low = hex4(raw, at + 2);
                    if (0xdc00..0xe000).contains(&low) {
                        at += 6;
                        code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    }
                }
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                output.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            other => other,
        });
    }
    Cow::Owned(output)
}

/// Four hexadecimal digits; what is none becomes a lone surrogate, and so U+FFFD.
fn hex4(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).and_then(|digits| digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))).unwrap_or(0xd800)
}

/// A JSON string of that content.
fn quote(content: &str) -> Vec<u8> {
    let mut output = Vec::with_capacity(content.len() + 2);
    output.push(b'"');
    for byte in content.bytes() {
        match byte {
            b'"' | b'\\' => output.extend_from_slice(&[b'\\', byte]),
            0..0x20 => output.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => output.push(byte),
        }
    }
    output.push(b'"');
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(fields: &str, body: &str) -> Result<Option<String>, Error> {
        let rules = Rules::read(&format!(r#"{{"fields":{fields}}}"#)).unwrap();
        // Not SHA-256, but as good for seeing what is hashed.
        let hash = |key: Option<&str>, data: &[u8]| match key {
            Some("env:GONE") => Err("no such secret".to_owned()),
            Some(key) => Ok([key.as_bytes(), b":", data].concat()),
            None => Ok(data.to_vec()),
        };
        Ok(redact(body.as_bytes(), &rules, &hash)?.map(|body| String::from_utf8(body).unwrap()))
    }

    fn check(fields: &str, body: &str, expected: &str) {
        let got = run(fields, body).unwrap();
        assert_eq!(got.as_deref().unwrap_or(body), expected, "{fields} on {body}");
        assert_eq!(got.is_none(), body == expected, "an unchanged body is not copied");
    }

    fn remove(pointers: &[&str], body: &str, expected: &str) {
        let fields: Vec<_> = pointers.iter().map(|p| format!(r#"{{"pointer":"{p}","action":"remove"}}"#)).collect();
        check(&format!("[{}]", fields.join(",")), body, expected);
    }

    #[test]
    fn masks() {
        check(r#"["/a"]"#, r#"{"a":1}"#, r#"{"a":"[redacted]"}"#);
        check(r#"["/a/b"]"#, r#"{ "a" : { "b" : "x" , "c":2 } }"#, r#"{ "a" : { "b" : "[redacted]" , "c":2 } }"#);
        check(r#"["/a"]"#, r#"{"a":{"b":[1,"}"]},"c":1}"#, r#"{"a":"[redacted]","c":1}"#);
        check(r#"["/a"]"#, r#"{"a":true, "a":false}"#, r#"{"a":"[redacted]", "a":"[redacted]"}"#);
        check(r#"[{"pointer":"/a","with":"\"\\\n"}]"#, r#"{"a":1}"#, r#"{"a":"\"\\\u000a"}"#);
        check(r#"["/a"]"#, r#"{"a":null}"#, r#"{"a":null}"#);
    }

    #[test]
    fn masks_all_but_the_end() {
        let field = r#"[{"pointer":"/n","keep":4}]"#;
        check(field, r#"{"n":"4111111111111234"}"#, r#"{"n":"************1234"}"#);
        check(field, r#"{"n":4111111111111234}"#, r#"{"n":"************1234"}"#);
        check(field, r#"{"n":"12345678"}"#, r#"{"n":"****5678"}"#);
        check(field, r#"{"n":"12345"}"#, r#"{"n":"***45"}"#);
        check(field, r#"{"n":"1"}"#, r#"{"n":"*"}"#);
        check(field, r#"{"n":""}"#, r#"{"n":""}"#);
        check(field, r#"{"n":"\u00e4\ud83d\ude00abcdef"}"#, r#"{"n":"****cdef"}"#);
        check(field, r#"{"n":[1]}"#, r#"{"n":"[redacted]"}"#);
    }

    #[test]
    fn removes_with_the_right_comma() {
        remove(&["/a"], r#"{"a":1}"#, r#"{}"#);
        remove(&["/a"], r#"{"a":1,"b":2}"#, r#"{"b":2}"#);
        remove(&["/b"], r#"{"a":1,"b":2}"#, r#"{"a":1}"#);
        remove(&["/b"], r#"{"a":1,"b":2,"c":3}"#, r#"{"a":1,"c":3}"#);
        remove(&["/a", "/b"], r#"{"a":1,"b":2,"c":3}"#, r#"{"c":3}"#);
        remove(&["/b", "/c"], r#"{"a":1,"b":2,"c":3}"#, r#"{"a":1}"#);
        remove(&["/a", "/c"], r#"{"a":1,"b":2,"c":3}"#, r#"{"b":2}"#);
        remove(&["/a", "/b", "/c"], r#"{ "a":1, "b":2, "c":3 }"#, r#"{  }"#);
        remove(&["/a", "/b/x"], r#"{"a":1,"b":{"x":1,"y":2}}"#, r#"{"b":{"y":2}}"#);
        remove(&["/a"], "{\n  \"a\": 1,\n  \"b\": 2\n}\n", "{\n  \"b\": 2\n}\n");
        remove(&["/b"], "{\n  \"a\": 1,\n  \"b\": 2\n}\n", "{\n  \"a\": 1\n}\n");
        remove(&["/1"], "[1, 2, 3]", "[1, 3]");
        remove(&["/*"], "[1, 2, 3]", "[]");
        remove(&["/0", "/1"], "[1, 2, 3]", "[3]");
    }

    #[test]
    fn hashes_what_is_meant_not_how_it_is_written() {
        let field = r#"[{"pointer":"/a","action":"hash"}]"#;
        check(field, r#"{"a":"AB"}"#, r#"{"a":"sha256:4142"}"#);
        check(field, r#"{"a":"\u0041B"}"#, r#"{"a":"sha256:4142"}"#);
        check(field, r#"{"a":12}"#, r#"{"a":"sha256:3132"}"#);
        check(field, r#"{"a":null}"#, r#"{"a":null}"#);
        check(r#"[{"pointer":"/a","action":"hash","key":"k"}]"#, r#"{"a":"A"}"#, r#"{"a":"hmac-sha256:6b3a41"}"#);
        let gone = run(r#"[{"pointer":"/a","action":"hash","key":"env:GONE"}]"#, r#"{"a":"A"}"#);
        assert_eq!(gone, Err(Error::Hash("no such secret".into())));
    }

    #[test]
    fn stars_reach_every_child() {
        check(r#"["/*/a"]"#, r#"{"x":{"a":1},"y":[{"a":2}]}"#, r#"{"x":{"a":"[redacted]"},"y":[{"a":2}]}"#);
        check(r#"["/y/*/a"]"#, r#"{"y":[{"a":1},{"b":2},3]}"#, r#"{"y":[{"a":"[redacted]"},{"b":2},3]}"#);
        check(r#"["/y/1"]"#, r#"{"y":[1,2,3]}"#, r#"{"y":[1,"[redacted]",3]}"#);
        check(r#"["/01"]"#, r#"[1,2]"#, r#"[1,2]"#);
    }

    #[test]
    fn two_stars_reach_every_depth() {
        check(r#"["/**/e"]"#, r#"{"e":1,"x":{"e":{"e":2},"y":[[{"e":3}]]}}"#, r#"{"e":"[redacted]","x":{"e":"[redacted]","y":[[{"e":"[redacted]"}]]}}"#);
        check(r#"["/x/**/e"]"#, r#"{"e":1,"x":{"e":2}}"#, r#"{"e":1,"x":{"e":"[redacted]"}}"#);
        check(r#"["/x/**"]"#, r#"{"e":1,"x":{"e":2,"f":{}}}"#, r#"{"e":1,"x":{"e":"[redacted]","f":"[redacted]"}}"#);
        check(r#"["/**/a/**/b"]"#, r#"{"a":{"a":{"b":1}},"b":2}"#, r#"{"a":{"a":{"b":"[redacted]"}},"b":2}"#);
    }

    #[test]
    fn the_first_rule_counts() {
        check(r#"[{"pointer":"/a/x","with":"1"},{"pointer":"/a/*","with":"2"}]"#, r#"{"a":{"x":0,"y":0}}"#, r#"{"a":{"x":"1","y":"2"}}"#);
        check(r#"[{"pointer":"/a","with":"1"},"/a/x"]"#, r#"{"a":{"x":0}}"#, r#"{"a":"1"}"#);
    }

    #[test]
    fn names_are_compared_without_their_escapes() {
        check(r#"["/a~1b"]"#, r#"{"a/b":1,"a\/b":2}"#, r#"{"a/b":"[redacted]","a\/b":"[redacted]"}"#);
        check(r#"["/\u00e4"]"#, r#"{"\u00e4":1,"ä":2}"#, r#"{"\u00e4":"[redacted]","ä":"[redacted]"}"#);
        check(r#"["/"]"#, r#"{"":1}"#, r#"{"":"[redacted]"}"#);
    }

    #[test]
    fn everything_else_stays_byte_for_byte() {
        let body = "\r\n{\"n\":1.0e+2,\t\"s\":\"\\u00e4\\/ \u{7f}\", \"big\":123456789012345678901234567890, \"a\":0} \n";
        check(r#"["/a"]"#, body, &body.replace(":0}", ":\"[redacted]\"}"));
        check(r#"["/none"]"#, body, body);
        check(r#"["/a"]"#, "", "");
        check(r#"["/a"]"#, "7", "7");
    }

    #[test]
    fn what_is_not_json_is_an_error_and_never_a_panic() {
        for (body, at) in [
            ("a=b", 0),
            ("{", 1),
            (r#"{"a""#, 4),
            (r#"{"a":"#, 5),
            (r#"{"a":1"#, 6),
            (r#"{"a":1]"#, 6),
            (r#"{"a":1}}"#, 7),
            (r#"{"a":1,}"#, 7),
            (r#"{"a":"x"#, 7),
            (r#"{"a":"\"#, 7),
            (r#"{"a":[1,{"b":"#, 13),
            ("nul", 0),
            ("\u{feff}{}", 0),
            (" ", 1),
        ] {
            assert_eq!(run(r#"["/a"]"#, body), Err(Error::NotJson { at }), "{body}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(run(r#"["/**/a"]"#, &deep), Err(Error::TooDeep));
        assert_eq!(run(r#"["/a"]"#, &deep), Err(Error::NotJson { at: 100_000 }));
    }

    #[test]
    fn cutting_a_body_anywhere_is_an_error() {
        let body = r#"{"a":{"b":"x\"\u00e4","c":[1,null,true]},"d":-1.5e3}"#;
        for end in 1..body.len() {
            if body.is_char_boundary(end) {
                assert!(run(r#"["/a/b","/**/c"]"#, &body[..end]).is_err(), "{}", &body[..end]);
            }
        }
    }
}
