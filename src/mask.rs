//! What of a policy may be shown, to people and by the admin API. Pure.
//!
//! By construction: a text is shown where [`SHOWN`] says that its key holds nothing secret, and is masked everywhere else, under keys
//! that nobody knows as well. Of a secret its place is shown (`env:NAME`, `file:PATH`), of a URL neither user, password nor query.

use std::{borrow::Cow, ops::Range};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// In the place of what is not shown.
const REDACTED: &str = "[redacted]";

/// The keys whose texts may be shown, by their dotted names: `*` is one name, `**` everything below. Array elements count as the array.
const SHOWN: &[&str] = &[
    "server.**",
    "admin.listen",
    "admin.allowed_hosts",
    "admin.tls.**",
    "admin.capture.*",
    "admin.capture.*",
    "state.**",
    "queue.**",
    "log.**",
    "ip_sets.*",
    "providers.**",
    "filters.*.component",
    "filters.*.sha256",
    "filters.*.cpu",
    "filters.*.timeout",
    "filters.*.memory",
    "filters.*.when",
    "filters.*.on_error",
    "filters.*.quarantine.*",
    "filters.*.allow.*",
    "destinations.*.url",
    "destinations.*.urls",
    "destinations.*.path",
    "destinations.*.host",
    "destinations.*.timeout",
    "destinations.*.tls.*",
    "destinations.*.concurrency",
    "destinations.*.max_response",
    "destinations.*.idle_timeout",
    "destinations.*.format",
    "destinations.*.rate",
    "destinations.*.retry.*",
    "destinations.*.breaker.*",
    "destinations.*.sign",
    "destinations.*.sign.provider",
    "destinations.*.sign.variants",
    "destinations.*.sign.url",
    "routes.*.host",
    "routes.*.path",
    "routes.*.methods",
    "routes.*.allow_ips",
    "routes.*.client_cert.*",
    "routes.*.rate_limit.*",
    "routes.*.verify_failures.*",
    "routes.*.limits.*",
    "routes.*.verify.provider",
    "routes.*.verify.scheme",
    "routes.*.verify.algorithm",
    "routes.*.verify.encoding",
    "routes.*.verify.padding",
    "routes.*.verify.signature",
    "routes.*.verify.signature.**",
    "routes.*.verify.timestamp",
    "routes.*.verify.timestamp.**",
    "routes.*.verify.tolerance",
    "routes.*.verify.future",
    "routes.*.verify.signed",
    "routes.*.verify.key.*",
    "routes.*.verify.require",
    "routes.*.verify.require.**",
    "routes.*.verify.body_digest.*",
    "routes.*.verify.headers",
    "routes.*.verify.delivery_id.*",
    "routes.*.verify.event_type",
    "routes.*.verify.event_type.**",
    "routes.*.verify.event_types",
    "routes.*.verify.replay_key",
    "routes.*.verify.variants",
    "routes.*.verify.variants.**",
    "routes.*.verify.algorithms",
    "routes.*.verify.claims.**",
    "routes.*.verify.keys",
    "routes.*.verify.public_key",
    "routes.*.verify.public_keys",
    "routes.*.verify.public_key.*",
    "routes.*.verify.public_keys.*",
    "routes.*.verify.keys.*",
    "routes.*.query",
    "routes.*.replay.**",
    "routes.*.validate.*",
    "routes.*.filters",
    "routes.*.deliver",
    "routes.*.deliver.*",
    "routes.*.unmatched",
    "routes.*.acknowledge.content_type",
    "routes.*.enforce.*",
];

/// Keys that hold a secret, or say where it is, wherever they stand.
const SECRETS: &[&str] = &["secret", "secrets", "token", "password", "from"];

/// What may be seen of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    All,
    /// Where a secret is, not the secret.
    Place,
    Nothing,
}

/// What may be seen of the values at a key, named by its path.
fn show(path: &[&str]) -> Show {
    let within_secret = path.iter().position(|key| SECRETS.contains(key));
    if let Some(at) = within_secret {
        let below = &path[at + 1..];
        return match below {
            [] | ["from"] => Show::Place,
            ["label" | "not_after"] => Show::All,
            _ => Show::Nothing,
        };
    }
    if SHOWN.iter().any(|pattern| fits(path, pattern)) && !is_free(path) { Show::All } else { Show::Nothing }
}

fn fits(path: &[&str], pattern: &str) -> bool {
    let mut keys = path.iter();
    for part in pattern.split('.') {
        match (part, keys.next()) {
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(key)) if part == *key => {}
            _ => return false,
        }
    }
    keys.next().is_none()
}

/// The parts of a text that may not be seen.
fn hidden(show: Show, key: &str, text: &str) -> Vec<Range<usize>> {
    let from = |at: usize| std::iter::once(at..text.len()).collect();
    let literal = "literal:";
    match show {
        Show::Nothing if text == "none" => Vec::new(), // `verify = "none"`
        Show::Nothing => from(0),
        Show::Place if text.starts_with("env:") || text.starts_with("file:") => Vec::new(),
        Show::Place | Show::All if text.starts_with(literal) => from(literal.len()),
        Show::Place => from(0),
        Show::All if text.contains("PRIVATE KEY") => from(0),
        Show::All if key == "when" => condition(text),
        Show::All => url(text),
    }
}

/// Of a URL, and of a text with one in it: user and password, the query's values, and segments of the path that look like a token.
fn url(text: &str) -> Vec<Range<usize>> {
    let Some(scheme) = text.find("://") else {
        let query = text.find('?').filter(|_| text.starts_with("unix:"));
        return query.map(|at| at + 1..text.len()).into_iter().collect();
    };
    let from = scheme + 3;
    let end = |start: usize, stops: &[char]| text[start..].find(stops).map_or(text.len(), |at| start + at);
    let authority = from..end(from, &['/', '?', '#', '\\']);
    let mut ranges = Vec::new();
    // Where the password itself holds what ends an authority, the last `@` of all still does.
    let user = text[authority.clone()].rfind('@').map(|at| from + at).or_else(|| text[from..].rfind('@').map(|at| from + at));
    if let Some(at) = user {
        ranges.push(from..at);
    }
    let mut at = user.map_or(authority.end, |at| end(at, &['/', '?', '#']));
    let path_ends = end(at, &['?', '#']);
    while at < path_ends {
        let segment = at + 1..end(at + 1, &['/', '?', '#']);
        if text.get(segment.clone()).is_some_and(is_token) {
            ranges.push(segment.clone());
        }
        at = segment.end.max(at + 1);
    }
    if path_ends < text.len() {
        ranges.push(path_ends + 1..text.len());
    }
    ranges
}

/// Whether a segment of a path lets in whoever knows it, as with Slack's webhooks: long, of letters and digits.
fn is_token(segment: &str) -> bool {
    segment.len() >= 16 && segment.bytes().any(|byte| byte.is_ascii_digit()) && segment.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Of a condition that looks at a credential the texts that it compares with.
fn condition(text: &str) -> Vec<Range<usize>> {
    let lower = text.to_ascii_lowercase();
    let names_one = ["auth", "token", "secret", "password", "key", "cookie", "signature"].iter().any(|word| lower.contains(word));
    if !names_one {
        return Vec::new();
    }
    let mut ranges = Vec::new();
    let mut open: Option<(char, usize)> = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match open {
            None if c == '\'' || c == '"' => open = Some((c, at + 1)),
            Some((quote, from)) if c == quote && !escaped => {
                // A name in brackets says what is looked at.
                let is_name = text[..from - 1].trim_end().ends_with('[') && text[at + 1..].trim_start().starts_with(']');
                if !is_name {
                    ranges.push(from..at);
                }
                open = None;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    ranges.extend(open.map(|(_, from)| from..text.len()));
    ranges
}

/// The whole policy, as it may be shown.
pub(crate) fn json(policy: Value) -> Value {
    json_at(&mut Vec::new(), policy)
}

/// What stands at a path of it.
pub(crate) fn json_under(path: &[String], value: Value) -> Value {
    json_at(&mut path.to_vec(), value)
}

fn json_at(path: &mut Vec<String>, value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let shown = fields.into_iter().map(|(key, value)| {
                path.push(key);
                let value = json_at(path, value);
                (path.pop().unwrap_or_default(), value)
            });
            Value::Object(shown.collect())
        }
        Value::Array(items) => items.into_iter().map(|item| json_at(path, item)).collect(),
        Value::Bool(_) | Value::Null => value,
        Value::String(text) => {
            let keys: Vec<&str> = path.iter().map(String::as_str).collect();
            replaced(&text, &hidden(show(&keys), keys.last().unwrap_or(&""), &text)).into()
        }
        Value::Number(_) => {
            let keys: Vec<&str> = path.iter().map(String::as_str).collect();
            if show(&keys) == Show::All || is_plain_number(&keys) { value } else { REDACTED.into() }
        }
    }
}

/// Numbers are limits but where a table is free, or a secret is wanted.
fn is_plain_number(path: &[&str]) -> bool {
    !is_free(path) && !path.iter().any(|key| SECRETS.contains(key))
}

/// Whether a table takes anything, or a secret may have been put in its place by mistake.
fn is_free(path: &[&str]) -> bool {
    let request = path.windows(2).any(|pair| matches!(pair, ["headers", _] | ["keys", "body"]));
    request || matches!(path, ["filters", _, "config", ..] | ["routes", _, "verify"] | ["routes", _, "verify", "params", ..])
}

fn replaced(text: &str, ranges: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in ranges {
        out.push_str(&text[at..range.start]);
        if !range.is_empty() {
            out.push_str(REDACTED);
        }
        at = range.end;
    }
    out.push_str(&text[at..]);
    out
}

/// The text of a policy with everything overwritten that may not be shown, comments too; its length and its lines stay.
pub(crate) fn text(policy: &str) -> String {
    let mut masked = policy.as_bytes().to_vec();
    let mut cover = |range: Range<usize>| {
        let range = policy.floor_char_boundary(range.start)..policy.ceil_char_boundary(range.end);
        masked[range].iter_mut().filter(|byte| !matches!(**byte, b'\n' | b'\r')).for_each(|byte| *byte = b'*');
    };
    let (table, errors) = DeTable::parse_recoverable(policy);
    if errors.is_empty() {
        let mut seen = Seen { policy, texts: Vec::new(), hidden: Vec::new() };
        seen.table(&mut Vec::new(), table.get_ref());
        seen.hidden.iter().cloned().for_each(&mut cover);
        comments(policy, seen.texts).into_iter().for_each(&mut cover);
    } else {
        // Nothing says what is a value and what is not: only keys, headings and punctuation are left.
        unread(policy).into_iter().for_each(&mut cover);
    }
    // Whole characters were overwritten, by ASCII.
    String::from_utf8(masked).unwrap_or_default()
}

/// The places of all texts and numbers in a value.
pub(crate) fn values(value: &Spanned<DeValue<'_>>) -> Vec<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(table) => table.values().flat_map(values).collect(),
        DeValue::Array(items) => items.iter().flat_map(values).collect(),
        DeValue::Boolean(_) => Vec::new(),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => vec![value.span()],
    }
}

/// What a walk through a parsed policy finds.
struct Seen<'t> {
    policy: &'t str,
    /// Keys and texts: no `#` in them begins a comment.
    texts: Vec<Range<usize>>,
    hidden: Vec<Range<usize>>,
}

impl Seen<'_> {
    fn table(&mut self, path: &mut Vec<String>, table: &DeTable<'_>) {
        for (key, value) in table {
            self.texts.push(key.span());
            path.push(key.get_ref().to_string());
            self.value(path, value);
            path.pop();
        }
    }

    fn value(&mut self, path: &mut Vec<String>, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => return self.table(path, table),
            DeValue::Array(items) => return items.iter().for_each(|item| self.value(path, item)),
            DeValue::Boolean(_) => return,
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => {}
        }
        let keys: Vec<&str> = path.iter().map(String::as_str).collect();
        let show = show(&keys);
        let span = value.span();
        if !value.get_ref().is_str() {
            if show != Show::All && !is_plain_number(&keys) {
                self.hidden.push(span);
            }
            return;
        }
        self.texts.push(span.clone());
        let written = self.policy.get(span.clone()).unwrap_or_default();
        let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
        let Some(inside) = written.get(quotes..written.len().saturating_sub(quotes)) else { return self.hidden.push(span) };
        let from = span.start + quotes;
        let key = keys.last().unwrap_or(&"");
        let meant = value.get_ref().as_str().unwrap_or_default();
        if meant == inside {
            self.hidden.extend(hidden(show, key, inside).into_iter().map(|range| from + range.start..from + range.end));
        } else if show != Show::All || !hidden(show, key, meant).is_empty() {
            // Its escapes may hide where a secret begins and ends.
            self.hidden.push(from..from + inside.len());
        }
    }
}

/// The comments' texts: from each `#` outside of `texts` to the line's end.
fn comments(policy: &str, mut texts: Vec<Range<usize>>) -> Vec<Range<usize>> {
    texts.sort_by_key(|range| range.start);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = policy[at..].find('#').map(|next| at + next) {
        let last = texts.partition_point(|range| range.start <= next).checked_sub(1);
        if let Some(text) = last.map(|last| &texts[last]).filter(|range| range.end > next) {
            at = text.end;
            continue;
        }
        let end = policy[next..].find('\n').map_or(policy.len(), |end| next + end);
        found.push(next + 1..end);
        at = end;
    }
    found
}

/// Everything that may be a value: what follows a line's first `=`, and lines that hold no key.
fn unread(policy: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in policy.split_inclusive('\n') {
        let from = if line.trim_start().starts_with('[') && !line.contains(['"', '\'', '=']) { line.len() } else { line.find('=').map_or(0, |at| at + 1) };
        for (at, c) in line.char_indices().filter(|(at, _)| *at >= from) {
            if !(c.is_whitespace() || matches!(c, '"' | '\'' | '[' | ']' | '{' | '}' | '=' | ',')) {
                found.push(start + at..start + at + c.len_utf8());
            }
        }
        start += line.len();
    }
    found
}

/// A message without what may be secret of the value it is about, which stands at a key with this dotted name.
pub(crate) fn message<'m>(message: &'m str, key: &str, value: Option<&str>) -> Cow<'m, str> {
    let mut message = Cow::Borrowed(message);
    let path: Vec<&str> = key.split('.').map(|key| key.split('[').next().unwrap_or_default()).collect();
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        // Who quotes a value has read it as something, and no secret is read so; what is left are the tables that take anything.
        let show = if is_free(&path) || path.iter().any(|key| SECRETS.contains(key)) { show(&path) } else { Show::All };
        let ranges = hidden(show, path.last().unwrap_or(&""), value);
        if !ranges.is_empty() && message.contains(value) {
            message = message.replace(value, &replaced(value, &ranges)).into();
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_json(policy: &str) -> Value {
        let policy: toml::Table = toml::from_str(policy).expect("TOML");
        json(serde_json::to_value(policy).expect("JSON"))
    }

    #[test]
    fn what_is_safe_is_shown() {
        let check = |key: &str, value: &str, shown: &str| {
            let mut policy = Value::from(value);
            for part in key.split('.').rev() {
                policy = serde_json::json!({ part: policy });
            }
            let mut got = json(policy);
            for part in key.split('.') {
                got = got[part].take();
            }
            assert_eq!(got, shown, "{key} = {value}");
        };
        check("server.public_url", "https://hooks.example.com", "https://hooks.example.com");
        check("routes.a.path", "/tenants/{tenant}/github", "/tenants/{tenant}/github");
        check("routes.a.deliver", "billing", "billing");
        check("routes.a.deliver.when", "event.type == 'push'", "event.type == 'push'");
        check(
            "routes.a.deliver.when",
            "headers['x-token'] == 'hunter2' || body.a == \"b\\\"c\"",
            "headers['x-token'] == '[redacted]' || body.a == \"[redacted]\"",
        );
        check("routes.a.verify", "none", "none");
        check("routes.a.verify", "hunter2", "[redacted]");
        check("routes.a.verify.provider", "github", "github");
        check("routes.a.verify.secret", "env:SECRET", "env:SECRET");
        check("routes.a.verify.secret", "literal:hunter2", "literal:[redacted]");
        check("routes.a.verify.secret", "hunter2", "[redacted]");
        check("routes.a.verify.secrets.from", "file:a/b", "file:a/b");
        check("routes.a.verify.secrets.label", "old", "old");
        check("routes.a.verify.params.account", "hunter2", "[redacted]");
        check("destinations.a.headers.X-Env", "hunter2", "[redacted]");
        check("providers.a.keys.headers.Authorization", "Bearer hunter2", "[redacted]");
        check("providers.a.keys.body", "hunter2", "[redacted]");
        check("providers.a.headers", "webhook", "webhook");
        check("routes.a.verify.keys", "https://me:hunter2@login.example.com/keys", "https://[redacted]@login.example.com/keys");
        check("routes.a.verify.keys", "-----BEGIN PRIVATE KEY-----", "[redacted]");
        check("destinations.a.headers.X-Env.from", "env:SECRET", "env:SECRET");
        check("destinations.a.sign.secret", "env:SECRET", "env:SECRET");
        check("filters.a.config.deep.er", "hunter2", "[redacted]");
        check("filters.a.allow.secrets", "env:GEO", "env:GEO");
        check("nobody.knows.this", "hunter2", "[redacted]");
        check("admin.token", "env:TOKEN", "env:TOKEN");
        let url = "destinations.a.url";
        check(url, "https://10.0.0.5:9000/hooks", "https://10.0.0.5:9000/hooks");
        check(url, "https://me:hunter2@a.example/hooks", "https://[redacted]@a.example/hooks");
        check(url, "https://hunter2@a.example/", "https://[redacted]@a.example/");
        check(url, "https://me:hunt/er2@a.example/hooks", "https://[redacted]@a.example/hooks");
        check(url, "https://a.example/hooks?token=hunter2", "https://a.example/hooks?[redacted]");
        check(url, "https://a.example/services/T0/XyZ12345678901234567", "https://a.example/services/T0/[redacted]");
        check(url, "unix:/run/app.sock:/hooks?token=hunter2", "unix:/run/app.sock:/hooks?[redacted]");
        check("routes.a.deliver", "http://me:hunter2@127.0.0.1/", "http://[redacted]@127.0.0.1/");
    }

    #[test]
    fn numbers_are_shown_but_where_they_could_be_secrets() {
        let shown = as_json("[server]\nworkers = 4\n[queue]\nmax = 5\n[filters.a.config]\npin = 4711\non = true\n[routes.a]\nverify = { secret = 4711 }\n");
        assert_eq!(
            (shown["server"]["workers"].as_u64(), shown["queue"]["max"].as_u64(), shown["filters"]["a"]["config"]["on"].as_bool()),
            (Some(4), Some(5), Some(true))
        );
        assert!(!shown.to_string().contains("4711"), "{shown}");
    }

    #[test]
    fn a_policys_text_keeps_its_places() {
        let check = |policy: &str, want: &str| {
            let masked = super::text(policy);
            assert_eq!(masked, want);
            assert_eq!(masked.len(), policy.len());
        };
        check("[routes.a]\npath = \"/a\" # was: hünter2\n", "[routes.a]\npath = \"/a\" #**************\n");
        check("[routes.a]\nverify = { secret = \"hünter2\", x = 1 }\n", "[routes.a]\nverify = { secret = \"********\", x = 1 }\n");
        check("[routes.a]\nverify = { provider = \"a\", scret = \"hunter2\" }\n", "[routes.a]\nverify = { provider = \"a\", scret = \"*******\" }\n");
        check("[destinations.a]\nurl = \"http://me:hunter2\\u0040a/\"\n", "[destinations.a]\nurl = \"*************************\"\n");
        check("[routes.a.b]\n\"#c\" = \"hun#ter2\"\n", "[routes.a.b]\n\"#c\" = \"********\"\n");
        check("[admin]\ntoken = '''hun\nter2'''\n", "[admin]\ntoken = '''***\n****'''\n");
        check("[admin]\ntoken = \"literal:hunter2\"\n", "[admin]\ntoken = \"literal:*******\"\n");
        check("[admin]\ntoken = \"\\u0065nv:hunter2\"\n", "[admin]\ntoken = \"****************\"\n");
        // Where the syntax fails nothing tells a value from the rest.
        check("[admin]\ntoken = \"hunter2\nlisten = [\"a\"]\n\"hunter2\",\n", "[admin]\ntoken = \"*******\nlisten = [\"*\"]\n\"*******\",\n");
    }

    #[test]
    fn messages_hold_no_secret() {
        let check = |key: &str, value: &str, want: &str| assert_eq!(super::message(&format!("`{value}` is bad"), key, Some(value)), want);
        check("routes.a.path", "a", "`a` is bad");
        check("routes.a.verify.params.b", "hunter2", "`[redacted]` is bad");
        check("routes.a.verify.secrets[1].from", "hunter2", "`[redacted]` is bad");
        check("destinations.a.urls[0]", "ftp://me:hunter2@a/", "`ftp://[redacted]@a/` is bad");
    }
}
