//! Which addresses may call a route: `allow_ips`, and the named sets of `[ip_sets]`. Pure; a provider's own ranges are those that
//! `ranges/` knows at the moment of the request.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    ranges::{IpSet, Ranges},
    reject::{Reason, Reject},
    section::{Item, Section, nearest},
};

/// One address or prefix as the policy writes it; `Err` is the message and what to do.
fn net(text: &str) -> Result<IpNet, (String, String)> {
    let read = match text.parse::<IpAddr>() {
        Ok(ip) => Ok(IpNet::from(ip)),
        Err(_) => text.parse::<IpNet>(),
    };
    match read {
        Ok(net) if net.addr() == net.network() => Ok(net),
        Ok(net) => Err((
            format!("`{text}` has bits set beyond its prefix"),
            format!("write \"{}\" for the network or \"{}\" for the one address", net.trunc(), net.addr()),
        )),
        Err(_) => Err((format!("`{text}` is neither an address nor a prefix"), "write it like \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"".to_owned())),
    }
}

/// The prefixes of a list in the policy; what cannot be read is a problem.
pub(crate) fn nets(section: &Section<'_>, key: &str) -> Vec<IpNet> {
    let Some(items) = section.item(key).and_then(|item| item.items()) else { return Vec::new() };
    items.iter().filter_map(net_item).collect()
}

fn net_item(item: &Item<'_>) -> Option<IpNet> {
    match net(&item.string()?) {
        Ok(net) => Some(net),
        Err((message, help)) => {
            item.problem(message, help);
            None
        }
    }
}

/// The named address lists of `[ip_sets]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct IpSets(BTreeMap<String, Vec<IpNet>>);

impl IpSets {
    /// Reads `[ip_sets]` from the policy's root.
    pub(crate) fn read(root: &Section<'_>) -> Self {
        let Some(section) = root.opt_section("ip_sets") else { return Self::default() };
        let mut sets = BTreeMap::new();
        for name in section.keys() {
            let items = section.item(&name).and_then(|item| item.items());
            if items.as_ref().is_some_and(Vec::is_empty) {
                section.problem(&name, format!("the address set `{name}` is empty"), "an empty set lets nobody in: name its addresses or remove it");
            }
            sets.insert(name, items.iter().flatten().filter_map(net_item).collect());
        }
        Self(sets)
    }

    pub(crate) fn nets(&self, name: &str) -> Option<&[IpNet]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Where the names in `allow_ips` are looked up.
pub(crate) struct Names<'a> {
    pub(crate) sets: &'a IpSets,
    /// A provider's published ranges.
    pub(crate) ranges: &'a dyn Fn(&str) -> Published,
    /// Every provider's name, for hints.
    pub(crate) providers: &'a [&'a str],
}

/// What is known of a provider's addresses.
pub(crate) enum Published {
    Known(Arc<Ranges>),
    /// There is no such provider.
    NoProvider,
    /// It publishes none.
    Nothing,
    /// It publishes them, and nobody has fetched them yet.
    NotYet,
    /// `hooklatch.lock` cannot be read.
    Unreadable(String),
}

/// `allow_ips` of one route: who may call it.
#[derive(Clone, Debug)]
pub(crate) struct Allow {
    set: Arc<IpSet>,
    providers: Arc<[Arc<Ranges>]>,
}

impl Allow {
    /// Reads `allow_ips`, such as `["provider:github", "set:office", "10.0.0.0/8"]`; `None` where the route has none.
    pub(crate) fn read(route: &Section<'_>, names: &Names<'_>) -> Option<Self> {
        let item = route.item("allow_ips")?;
        let items = item.items()?;
        if items.is_empty() {
            item.problem("`allow_ips` is empty", "an empty list lets nobody in: name addresses, or remove the key to let everybody in");
        }
        let (mut set, mut providers) = (IpSet::default(), Vec::new());
        for item in &items {
            let wide = |net: IpNet| {
                if net.prefix_len() == 0 {
                    item.warn(format!("`{net}` lets every address in"), "name the sender's own ranges, or remove `allow_ips`");
                }
            };
            match named(item, names) {
                Named::Nets(nets) => {
                    for net in nets {
                        wide(net);
                        set.insert(net);
                    }
                }
                Named::Provider(ranges) => {
                    ranges.known().nets.iter().copied().for_each(wide);
                    providers.push(ranges);
                }
            }
        }
        Some(Self { set: Arc::new(set), providers: providers.into() })
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.set.contains(ip) || self.is_provider(ip)
    }

    /// Whether the address is in the route's own `provider:` ranges, to which limits per address do not apply.
    pub(crate) fn is_provider(&self, ip: IpAddr) -> bool {
        self.providers.iter().any(|ranges| ranges.contains(ip))
    }

    pub(crate) fn check(&self, ip: IpAddr) -> Result<(), Reject> {
        if self.contains(ip) {
            return Ok(());
        }
        Err(Reject::new(Reason::IpNotAllowed, format!("{ip} is not in allow_ips")))
    }
}

enum Named {
    Nets(Vec<IpNet>),
    Provider(Arc<Ranges>),
}

fn named(item: &Item<'_>, names: &Names<'_>) -> Named {
    let nothing = || Named::Nets(Vec::new());
    let Some(text) = item.string() else { return nothing() };
    let near = |name: &str, known: &[&str], kind: &str| match nearest(name, known) {
        Some(near) => format!("did you mean \"{kind}:{near}\"?"),
        None if known.is_empty() => format!("there is no {kind} to name"),
        None if known.len() > 12 => format!("`hooklatch {kind}s` lists all"),
        None => format!("known: {}", known.join(", ")),
    };
    match text.split_once(':') {
        Some(("set", name)) => Named::Nets(names.sets.0.get(name).cloned().unwrap_or_else(|| {
            let help = if names.sets.0.is_empty() { format!("add it: [ip_sets] {name} = [\"192.0.2.0/24\"]") } else { near(name, &names.sets.names(), "set") };
            item.problem(format!("there is no address set `{name}`"), help);
            Vec::new()
        })),
        Some(("provider", name)) => {
            let (message, help) = match (names.ranges)(name) {
                Published::Known(ranges) => return Named::Provider(ranges),
                Published::NoProvider => (format!("there is no provider `{name}`"), near(name, names.providers, "provider")),
                Published::Nothing => (format!("the provider `{name}` publishes no addresses"), "remove it, or name the addresses you know".to_owned()),
                Published::NotYet => (
                    format!("the addresses of `{name}` were never fetched, and none are shipped"),
                    "run `hooklatch providers --lock` once and commit hooklatch.lock".to_owned(),
                ),
                Published::Unreadable(why) => (why, String::new()),
            };
            item.problem(message, help);
            nothing()
        }
        _ => Named::Nets(net_item(item).into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn read(text: &str) -> (Option<Allow>, Vec<String>) {
        let reader = Reader::new(Source { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let sets = IpSets::read(&root);
        let ranges = |name: &str| match name {
            "github" => Published::Known(Ranges::fixed("github", &["192.30.252.0/22", "2a0a:a440::/29"])),
            "square" => Published::Nothing,
            "bitbucket" => Published::NotYet,
            _ => Published::NoProvider,
        };
        let allow = Allow::read(&root, &Names { sets: &sets, ranges: &ranges, providers: &["github", "square"] });
        root.finish();
        (allow, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn check(list: &str, inside: &[&str], outside: &[&str]) {
        let (allow, problems) = read(&format!("allow_ips = {list}\n[ip_sets]\noffice = [\"198.51.100.0/24\", \"2001:db8::/32\"]\n"));
        assert_eq!(problems, [""; 0], "{list}");
        let allow = allow.expect("no problems");
        let ask = |ip: &&str| allow.check(ip.parse().expect("an address")).is_ok();
        assert_eq!(inside.iter().filter(|ip| !ask(ip)).collect::<Vec<_>>(), [&""; 0], "{list}");
        assert_eq!(outside.iter().filter(|ip| ask(ip)).collect::<Vec<_>>(), [&""; 0], "{list}");
    }

    #[test]
    fn addresses_are_in_or_out() {
        check(r#"["10.0.0.0/8"]"#, &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], &["9.255.255.255", "11.0.0.0", "::10.1.2.3", "::1", "2002:a01:203::"]);
        check(r#"["192.0.2.7"]"#, &["192.0.2.7"], &["192.0.2.6", "192.0.2.8"]);
        check(r#"["::1"]"#, &["::1"], &["127.0.0.1", "::2"]);
        check(r#"["::ffff:10.0.0.0/104"]"#, &["10.9.9.9", "::ffff:10.9.9.9"], &["11.0.0.0"]);
        check(r#"["2001:db8:1::/48", "2001:db8::/64"]"#, &["2001:db8:1:2::3", "2001:db8::1"], &["2001:db8:0:1::", "2001:db8:2::"]);
        check(r#"["set:office"]"#, &["198.51.100.200", "2001:db8:ffff::1"], &["198.51.101.0", "192.30.252.1"]);
        check(r#"["provider:github", "set:office"]"#, &["192.30.255.255", "2a0a:a447::1", "198.51.100.1"], &["192.31.0.0", "2a0a:a448::"]);
    }

    #[test]
    fn provider_ranges_are_told_apart() {
        let (allow, _) = read("allow_ips = [\"provider:github\", \"10.0.0.0/8\"]");
        let allow = allow.expect("no problems");
        assert!(allow.is_provider("::ffff:192.30.252.9".parse().expect("an address")));
        assert!(!allow.is_provider("10.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn bad_lists_say_why() {
        let check = |text: &str, want: &[&str]| assert_eq!(read(text).1, want, "{text}");
        check("", &[]);
        check("allow_ips = []", &["allow_ips: `allow_ips` is empty (an empty list lets nobody in: name addresses, or remove the key to let everybody in)"]);
        check("allow_ips = \"10.0.0.0/8\"", &["allow_ips: `allow_ips` is a string, not an array (put it in brackets: [\"…\"])"]);
        check("allow_ips = [\"0.0.0.0/0\"]", &["allow_ips[0]: `0.0.0.0/0` lets every address in (name the sender's own ranges, or remove `allow_ips`)"]);
        check(
            "allow_ips = [\"10.0.0.1/8\"]",
            &["allow_ips[0]: `10.0.0.1/8` has bits set beyond its prefix (write \"10.0.0.0/8\" for the network or \"10.0.0.1\" for the one address)"],
        );
        for bad in ["10.0.0.0/33", "10.0.0", "010.0.0.1", "10.0.0.1:80", "hooks.example.com", ""] {
            check(
                &format!("allow_ips = [\"{bad}\"]"),
                &[&format!("allow_ips[0]: `{bad}` is neither an address nor a prefix (write it like \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\")")],
            );
        }
        check("allow_ips = [\"provider:gihub\"]", &["allow_ips[0]: there is no provider `gihub` (did you mean \"provider:github\"?)"]);
        check("allow_ips = [\"provider:square\"]", &["allow_ips[0]: the provider `square` publishes no addresses (remove it, or name the addresses you know)"]);
        check(
            "allow_ips = [\"provider:bitbucket\"]",
            &[
                "allow_ips[0]: the addresses of `bitbucket` were never fetched, and none are shipped (run `hooklatch providers --lock` once and commit hooklatch.lock)",
            ],
        );
        check("allow_ips = [\"set:office\"]", &["allow_ips[0]: there is no address set `office` (add it: [ip_sets] office = [\"192.0.2.0/24\"])"]);
        check(
            "allow_ips = [\"set:ofice\"]\nip_sets = { office = [\"10.0.0.1\"] }",
            &["allow_ips[0]: there is no address set `ofice` (did you mean \"set:office\"?)"],
        );
        check(
            "ip_sets = { office = [] }",
            &["ip_sets.office: the address set `office` is empty (an empty set lets nobody in: name its addresses or remove it)"],
        );
    }
}
