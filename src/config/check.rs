//! Rules across rooms: what no table can judge alone.

use std::time::Duration;

use super::{Config, RouteConfig};
use crate::{
    clock::Clock,
    deliver, filter, route,
    section::{Section, nearest},
};

/// The table of all routes; a problem where two of them would take the same requests.
pub(super) fn table(root: &Section<'_>, names: &[String], routes: &[Option<RouteConfig>]) -> Option<route::Table> {
    let entries = routes.iter().enumerate().filter_map(|(index, route)| {
        let route = route.as_ref()?;
        Some(route::Entry {
            host: route.host.clone(),
            path: route.path.clone(),
            methods: route.methods.clone(),
            handshakes: route.verify.handshake_methods(),
            index,
        })
    });
    match route::Table::build(entries.collect()) {
        Ok(table) => Some(table),
        Err(ambiguities) => {
            let parent = root.opt_section("routes");
            for found in ambiguities {
                let (a, b) = (&names[found.a], &names[found.b]);
                if let Some(section) = parent.as_ref().and_then(|parent| parent.opt_section(b)) {
                    section.problem(
                        "path",
                        format!("routes `{a}` and `{b}` take the same requests: {}", found.why),
                        "give one of them another path, host or method",
                    );
                }
            }
            None
        }
    }
}

const PLAIN: &str = "events travel to another machine in plain HTTP";

/// The names that stand in metrics, in headers to receivers, and in front of other names.
pub(super) fn names(root: &Section<'_>) {
    for kind in ["routes", "filters", "destinations"] {
        for (name, section) in root.sections(kind) {
            if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                section.itself(format!("`{}` is not a name", name.escape_debug()), "1 to 64 of letters, digits, `-`, `_` and `.`");
            }
        }
    }
}

/// Warns of what is weak, or of no effect, once everything is read.
pub(super) fn across(root: &Section<'_>, config: &Config) {
    let Some(routes) = root.opt_section("routes") else { return };
    let now = Clock::system().now();
    for route in &config.routes {
        let Some(section) = routes.opt_section(&route.name) else { continue };
        if route.client_cert.is_some() && config.listen.tls.is_none() && route.enforce.client_cert {
            section.problem(
                "client_cert",
                "no client can show a certificate: the gate does not do TLS (`tls = false`)",
                "let the gate do TLS, or have what stands in front check the certificate",
            );
        }
        if let Some(name) = route.deliver.path_params().find(|name| !route.path.params().iter().any(|known| **known == ***name)) {
            let known: Vec<&str> = route.path.params().iter().map(|name| &**name).collect();
            let help = match nearest(name, &known) {
                Some(near) => format!("did you mean `path.{near}`?"),
                None => format!("write it into the path: a segment {{{name}}}"),
            };
            section.problem("deliver", format!("a condition asks for `path.{name}`, which the path {} does not have", route.path), help);
        }
        if route.verify.is_none() {
            section.warn("verify", "anybody may send here: `verify` is \"none\"", "guard the route with `allow_ips` or `client_cert`, or verify the sender");
        }
        for label in route.verify.expired(now.wall_ms) {
            section.warn("verify", format!("the secret {label} verifies nothing any more: its `not_after` is over"), "remove it, or give a new one");
        }
        let twin = config.routes.iter().take_while(|other| other.name != route.name).find(|other| route.verify.accepts_what_is_meant_for(&other.verify));
        if let Some(twin) = twin {
            section.warn_of(
                "shared-secret",
                "verify",
                format!("what is signed for the route `{}` is accepted here too: one secret, and the signature does not cover the URL", twin.name),
                "give each route a secret of its own",
            );
        }
        let has_window = route.verify.attempt_window().is_some();
        match &route.replay {
            None if !has_window => section.warn("replay", "nothing stops a captured request from being sent again", "remove `replay = false`"),
            Some(rule) if rule.dedupe.is_some() => {
                section.warn("replay", "`dedupe` drops accidental doubles and protects from no attacker: the header is not signed", "");
            }
            Some(_) if !route.verify.is_none() && !route.verify.keys_replays() && !has_window => section.warn(
                "verify",
                "nothing unique is signed: copies of an event cannot be told from new ones",
                "where the sender sets a header of its own: replay = { dedupe = { header = \"Idempotency-Key\" } }",
            ),
            _ => {}
        }
        if route.deliver.anonymous().is_some_and(crate::deliver::Settings::is_plain_network) {
            section.warn("deliver", PLAIN, "use https://, unless the network between is your own");
        }
        signatures(&section, route, config);
        if let (Some(most), Some(timeout)) = (route.answers_within, slowest(route, config))
            && timeout > most
        {
            section.warn_of(
                "late-answer",
                "deliver",
                format!("the receiver may take {}, but the sender waits {}", humantime::format_duration(timeout), humantime::format_duration(most)),
                "lower the destination's `timeout`",
            );
        }
    }
    for settings in config.destinations.iter().filter(|settings| settings.signer().is_some_and(|signer| signer.is_over(now.wall_ms))) {
        if let Some(section) = root.opt_section("destinations").and_then(|parent| parent.opt_section(&settings.name)) {
            section.warn("sign", "nothing can be signed any more: the `not_after` of every secret is over", "give a new one");
        }
    }
    for settings in config.destinations.iter().filter(|settings| settings.is_plain_network()) {
        if let Some(section) = root.opt_section("destinations").and_then(|parent| parent.opt_section(&settings.name)) {
            section.warn(if section.has("urls") { "urls" } else { "url" }, PLAIN, "use https://, unless the network between is your own");
        }
    }
    if config.listen.tls.is_none()
        && let Some(server) = root.opt_section("server")
    {
        server.warn("tls", "webhooks arrive in plain HTTP", "have TLS end in front of the gate, on the same machine or network");
    }
}

/// Whether what reaches a receiver of the route is signed as that receiver expects, and by whom.
fn signatures(section: &Section<'_>, route: &RouteConfig, config: &Config) {
    let named = config.destinations.iter().filter(|settings| route.deliver.has(&settings.name));
    let receivers: Vec<&deliver::Settings> = named.chain(route.deliver.anonymous()).collect();
    for (settings, signer) in receivers.iter().filter_map(|settings| Some((settings, settings.signer()?))) {
        let name = &settings.name;
        let help = "leave `sign` out of that destination, or deliver what is not verified to another one";
        if route.verify.is_none() {
            section.problem(
                "verify",
                format!("`{name}` is signed by the gate, and this route verifies nobody: an event that was not verified is never signed"),
                help,
            );
        } else if !route.enforce.verify {
            section.problem(
                "enforce",
                format!("`{name}` is signed by the gate, and this route lets events pass that were not verified: those are never signed"),
                help,
            );
        } else if !route.enforce.query && signer.covers_query() {
            section.problem(
                "enforce",
                format!("`{name}` is signed with its query by the gate, and this route lets query parameters pass that nobody signed"),
                "enforce `query`, or list the parameters that may pass in the route's `query`",
            );
        }
    }
    if route.verify.is_none() || !route.verify.signs() {
        return;
    }
    for settings in receivers.iter().filter(|settings| settings.may_check()) {
        let name = &settings.name;
        if let Some(filter) = route.filters.first() {
            section.warn_of(
                "broken-signature",
                "filters",
                format!("a filter such as `{filter}` may change what `{name}` gets, and a receiver that checks the sender's signature will then refuse it"),
                "let the gate sign for it: sign = { provider = \"…\", secret = \"env:…\" } in [destinations]; or sign = \"none\", if it checks none",
            );
        }
        let wait = longest_wait(route, settings, config);
        if let Some(window) = route.verify.attempt_window().filter(|window| wait > *window) {
            section.warn_of(
                "stale-signature",
                "deliver",
                format!(
                    "an event may reach `{name}` {} after it came, and a receiver that checks the signed time takes it for {} only",
                    humantime::format_duration(wait),
                    humantime::format_duration(window)
                ),
                "let the gate sign for it, as that is done for every attempt: sign = { … } in [destinations]; or sign = \"none\", if it checks none",
            );
        }
    }
}

/// How long it may take, from a request's whole body to the receiver's whole request: filters, then one attempt.
fn longest_wait(route: &RouteConfig, settings: &deliver::Settings, config: &Config) -> Duration {
    let filters = config.filters.iter().filter(|filter| route.filters.iter().any(|name| name == filter.name()));
    filters.map(filter::Settings::timeout).sum::<Duration>() + settings.timeout()
}

/// The longest that a required branch of the route may take.
fn slowest(route: &RouteConfig, config: &Config) -> Option<Duration> {
    let named = config.destinations.iter().chain(route.deliver.anonymous());
    named.filter(|settings| route.deliver.required().any(|name| **name == *settings.name)).map(|settings| settings.timeout()).max()
}
