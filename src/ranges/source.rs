//! Where a provider's addresses stand: a list in its definition, and the page it publishes them on. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Map, Value};
use url::Url;

use crate::section::{Item, Section};

/// The most networks that a published list may hold.
const MAX_NETS: usize = 20_000;

/// `ip_ranges` of a provider: a list, or `{ url, json, where, list }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// What holds until something newer is known.
    pub(crate) list: Vec<IpNet>,
    pub(crate) feed: Option<Feed>,
}

/// A published list of addresses, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feed {
    /// `https` only. Several: the list is all of them together.
    pub(crate) urls: Vec<Url>,
    /// `None`: text with a network a line.
    json: Option<Path>,
}

/// Which values of a JSON document are the networks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path {
    steps: Vec<Step>,
    /// Members that the object around a value must have; a list of them must hold one of the words.
    wanted: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    /// `*`: every element or member.
    Each,
}

impl Source {
    /// Whether nothing is published.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.feed.is_none()
    }

    pub(crate) fn read(item: &Item<'_>) -> Option<Self> {
        if !item.is_table() {
            let list = item.items()?;
            if list.is_empty() {
                item.problem("`ip_ranges` is empty", "leave the key out where nothing is published");
            }
            return Some(Self { list: list.iter().filter_map(network).collect(), feed: None });
        }
        let section = item.section()?;
        let list = section.item("list").and_then(|item| item.items()).unwrap_or_default().iter().filter_map(network).collect();
        let feed = Feed::read(&section);
        section.finish();
        Some(Self { list, feed: Some(feed?) })
    }
}

impl Feed {
    fn read(section: &Section<'_>) -> Option<Self> {
        let urls = match section.item("url") {
            None => {
                section.problem("url", "`url` is missing", "name the page: ip_ranges = { url = \"https://…\", json = \"/…\" }");
                None
            }
            Some(item) => {
                let items = if item.is_array() { item.items()? } else { vec![item] };
                items.iter().map(address).collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().filter(|urls| !urls.is_empty())
            }
        };
        let wanted = section.opt_section("where").map(|table| {
            let wanted = table.keys().into_iter().filter_map(|name| {
                let item = table.item(&name)?;
                let words = if item.is_array() { item.strings()? } else { vec![item.string()?] };
                Some((name, words))
            });
            let wanted: BTreeMap<_, _> = wanted.collect();
            table.finish();
            wanted
        });
        let json = match section.opt_string("json") {
            Some(text) => match steps(&text) {
                Ok(steps) => Some(Path { steps, wanted: wanted.unwrap_or_default() }),
                Err(why) => {
                    section.problem("json", format!("`{text}` is no way into a JSON document: {why}"), "write it like \"/hooks\" or \"/items/*/cidr\"");
                    return None;
                }
            },
            None => {
                if wanted.is_some() {
                    section.problem("where", "`where` is for JSON", "say where the networks stand: json = \"/…\"");
                }
                None
            }
        };
        Some(Self { urls: urls?, json })
    }

    /// The networks of one fetched document; the error says what is wrong with it.
    pub(crate) fn extract(&self, body: &[u8]) -> Result<Vec<IpNet>, String> {
        let mut texts = Vec::new();
        let document;
        match &self.json {
            None => {
                let text = std::str::from_utf8(body).map_err(|_| "the list is not text".to_owned())?;
                texts.extend(text.lines().map(|line| line.split('#').next().unwrap_or("").trim()).filter(|line| !line.is_empty()));
            }
            Some(path) => {
                document = serde_json::from_slice::<Value>(body).map_err(|why| format!("the list is not JSON: {why}"))?;
                path.walk(&document, &path.steps, None, &mut texts)?;
            }
        }
        if texts.len() > MAX_NETS {
            return Err(format!("the list has {} entries, more than {MAX_NETS}", texts.len()));
        }
        let mut nets = texts.into_iter().map(|text| parse(text).ok_or_else(|| format!("`{}` is not a network", shown(text)))).collect::<Result<Vec<_>, _>>()?;
        nets.sort_unstable();
        nets.dedup();
        if nets.is_empty() { Err("the list is empty".to_owned()) } else { Ok(nets) }
    }
}

impl Path {
    fn walk<'v>(&self, value: &'v Value, steps: &[Step], around: Option<&'v Map<String, Value>>, into: &mut Vec<&'v str>) -> Result<(), String> {
        let Some((step, rest)) = steps.split_first() else {
            if !self.wanted.iter().all(|(name, words)| around.and_then(|object| object.get(name)).is_some_and(|value| says(value, words))) {
                return Ok(());
            }
            let items = match value {
                Value::Array(items) => items.as_slice(),
                other => std::slice::from_ref(other),
            };
            return items.iter().try_for_each(|item| {
                into.push(item.as_str().ok_or("an entry of the list is not text")?);
                Ok(())
            });
        };
        match (step, value) {
            (Step::Each, Value::Array(items)) => items.iter().try_for_each(|item| self.walk(item, rest, None, into)),
            (Step::Each, Value::Object(members)) => members.values().try_for_each(|member| self.walk(member, rest, Some(members), into)),
            (Step::Each, _) => Err("`*` stands where the document has neither a list nor an object".to_owned()),
            (Step::Name(name), Value::Object(members)) => match members.get(name) {
                Some(member) => self.walk(member, rest, Some(members), into),
                // Beside `*` a member may be absent here and there; where all are, the list is empty.
                None if self.steps.contains(&Step::Each) => Ok(()),
                None => Err(format!("the document has no `{name}`")),
            },
            (Step::Name(name), _) => Err(format!("`{name}` is asked of what is not an object")),
        }
    }
}

/// Whether a member is, or lists, one of the words.
fn says(value: &Value, words: &[String]) -> bool {
    let one = |value: &Value| value.as_str().is_some_and(|text| words.iter().any(|word| word == text));
    match value {
        Value::Array(items) => items.iter().any(one),
        other => one(other),
    }
}

fn steps(text: &str) -> Result<Vec<Step>, &'static str> {
    let pointer = crate::validate::json::Pointer::parse(text)?;
    Ok(pointer.tokens().iter().map(|token| if token == "*" { Step::Each } else { Step::Name(token.clone()) }).collect())
}

/// A network or a single address; bits beyond the prefix are cleared.
fn parse(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().map(|net| net.trunc()).ok().or_else(|| text.parse::<IpAddr>().map(IpNet::from).ok())
}

/// What of an entry goes into a message.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// A network in a definition: with no bit beyond its prefix.
fn network(item: &Item<'_>) -> Option<IpNet> {
    let text = item.string()?;
    let net = parse(&text).filter(|net| text.parse::<IpNet>().is_ok_and(|written| written == *net) || text.parse::<IpAddr>().is_ok());
    if net.is_none() {
        item.problem(format!("`{text}` is not a network"), "write it like \"192.0.2.0/24\", with no bits set after the prefix");
    }
    net
}

fn address(item: &Item<'_>) -> Option<Url> {
    match crate::fetch::check_url(&item.string()?) {
        Ok(url) => Some(url),
        Err(why) => {
            item.problem(why, "a list is fetched from an address like \"https://api.example.com/ranges\"");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source as Text,
        section::{Inputs, Reader},
    };

    fn read(text: &str) -> (Option<Source>, String) {
        let reader = Reader::new(Text { name: "t.toml".into(), text: format!("ip_ranges = {text}") }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let source = root.item("ip_ranges").and_then(|item| Source::read(&item));
        (source, reader.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn sources_are_read_and_explained() {
        let check = |text: &str, want: &str| {
            let said = read(text).1;
            if want.is_empty() { assert_eq!(said, "", "{text}") } else { assert!(said.contains(want), "{text}: {said}") }
        };
        check("[\"192.0.2.0/24\", \"2001:db8::1\"]", "");
        check("{ url = \"https://a.example/x\", json = \"/hooks\" }", "");
        check("{ url = [\"https://a.example/x\", \"https://b.example\"], list = [\"192.0.2.1\"] }", "");
        check("{ url = \"https://a.example/x\", json = \"/items/*/cidr\", where = { product = [\"a\", \"b\"], direction = \"egress\" } }", "");
        check("[]", "is empty");
        check("[\"10.0.0.1/8\"]", "not a network");
        check("[\"host.example\"]", "not a network");
        check("{ json = \"/hooks\" }", "`url` is missing");
        check("{ url = \"http://a.example\" }", "only https URLs are fetched");
        check("{ url = \"https://me:pw@a.example\" }", "must not hold credentials");
        check("{ url = \"https://a.example\", json = \"hooks\" }", "starts with `/`");
        check("{ url = \"https://a.example\", where = { a = \"b\" } }", "is for JSON");
        check("{ url = \"https://a.example\", josn = \"\" }", "did you mean `json`");
    }

    #[test]
    fn lists_are_cut_out_of_documents() {
        let check = |source: &str, body: &str, want: Result<&str, &str>| {
            let (source, said) = read(&format!("{{ url = \"https://a.example\"{source} }}"));
            assert_eq!(said, "");
            let got = source.and_then(|source| source.feed).expect("a feed").extract(body.as_bytes());
            match (got, want) {
                (Ok(nets), Ok(want)) => assert_eq!(nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), want, "{body}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{body}: {why}"),
                (got, want) => panic!("{body}: {got:?}, not {want:?}"),
            }
        };
        check("", "# all of them\n192.0.2.0/24 # web\r\n\n 2001:db8::1\n", Ok("192.0.2.0/24 2001:db8::1/128"));
        check("", "<html>", Err("`<html>` is not a network"));
        check("", "# none\n", Err("is empty"));
        check("", "\u{1b}[0m", Err("\\u{1b}[0m"));
        let github = r#"{"web":["203.0.113.0/24"],"hooks":["192.30.252.0/22","192.30.252.0/22","2a0a:a440::/29"]}"#;
        check(", json = \"/hooks\"", github, Ok("192.30.252.0/22 2a0a:a440::/29"));
        check(", json = \"/api\"", github, Err("no `api`"));
        check(", json = \"/hooks\"", "{}{", Err("not JSON"));
        check(", json = \"/hooks\"", r#"{"hooks":[1]}"#, Err("not text"));
        check(", json = \"/hooks\"", r#"{"hooks":[]}"#, Err("is empty"));
        check(", json = \"\"", r#"["192.0.2.1","192.0.2.2"]"#, Ok("192.0.2.1/32 192.0.2.2/32"));
        check(
            ", json = \"/*/ip_ranges\"",
            r#"{"us":{"ip_ranges":["192.0.2.0/25"]},"eu":{"ip_ranges":["192.0.2.128/25"]},"x":{}}"#,
            Ok("192.0.2.0/25 192.0.2.128/25"),
        );
        let atlassian = r#"{"items":[{"cidr":"192.0.2.1/32","product":["jira","bitbucket"],"direction":["egress"]},
            {"cidr":"192.0.2.2/32","product":["bitbucket"],"direction":["ingress"]},{"cidr":"192.0.2.3/32","product":["trello"],"direction":["egress"]}]}"#;
        check(", json = \"/items/*/cidr\"", atlassian, Ok("192.0.2.1/32 192.0.2.2/32 192.0.2.3/32"));
        check(", json = \"/items/*/cidr\", where = { product = \"bitbucket\", direction = \"egress\" }", atlassian, Ok("192.0.2.1/32"));
        check(", json = \"/items/*/cidr\", where = { product = [\"jira\", \"trello\"] }", atlassian, Ok("192.0.2.1/32 192.0.2.3/32"));
        check(", json = \"/items/*/cidr\", where = { product = \"halp\" }", atlassian, Err("is empty"));
    }
}
