//! The policy file to a [`Config`] that cannot be wrong.
//!
//! Every room reads its own tables; this one reads what belongs to no other, looks names up across rooms, and hands out either a
//! config or every problem of the file. Nothing is opened here but the files that the policy names.

mod check;
pub(crate) mod diff;
mod route;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use self::{diff::outline, route::RouteConfig};

use crate::{
    admin, client, clock, deliver, filter, guard, listen, mask, observe,
    problem::{Problem, Source},
    ranges,
    section::{self, Inputs, Reader, Section},
    state, verify,
};

/// A policy, read and checked.
pub(crate) struct Config {
    pub(crate) listen: listen::Settings,
    pub(crate) clients: client::Rule,
    /// What providers sign where they sign the URL; else `https://` and the Host of the request.
    pub(crate) public_url: Option<String>,
    pub(crate) admin: Option<admin::Settings>,
    pub(crate) state: state::Settings,
    pub(crate) log: observe::setup::Settings,
    pub(crate) filters: Vec<filter::Settings>,
    pub(crate) destinations: Vec<deliver::Settings>,
    /// In the file's order; a route's place is its index in `table`.
    pub(crate) routes: Vec<Arc<RouteConfig>>,
    pub(crate) table: Arc<crate::route::Table>,
    /// How published address ranges are kept current.
    pub(crate) ip_ranges: ranges::Settings,
    /// Those that `allow_ips` of some route names.
    pub(crate) ranges: Vec<Arc<ranges::Ranges>>,
    /// The shipped presets and the policy's own providers.
    pub(crate) catalogue: Arc<verify::Catalogue>,
    /// Every file that was read, for the watcher.
    pub(crate) files: BTreeSet<PathBuf>,
    /// The policy as written, without what [`mask`] keeps back: for the admin API.
    pub(crate) shown: serde_json::Value,
}

/// How reading went: problems and warnings in any case, a config where there was no error.
pub(crate) struct Read {
    pub(crate) source: Source,
    pub(crate) problems: Vec<Problem>,
    /// Every file that was asked for, also by a policy that was refused.
    pub(crate) files: BTreeSet<PathBuf>,
    pub(crate) config: Option<Config>,
}

/// The state directory: `$STATE_DIRECTORY`, else `/var/lib/hooklatch` for a policy under `/etc`, else `./var`.
pub(crate) fn state_directory(policy: &Path) -> PathBuf {
    // systemd hands out several directories parted by colons; the first is ours.
    let given = std::env::var("STATE_DIRECTORY").ok().and_then(|dirs| dirs.split(':').next().map(str::to_owned));
    match given.filter(|dir| !dir.is_empty()) {
        Some(dir) => dir.into(),
        None if policy.starts_with("/etc") => "/var/lib/hooklatch".into(),
        None => "var".into(),
    }
}

/// Reads the policy file at `path`; an unreadable one is the only error, everything else is a problem in it.
pub(crate) fn load(path: &Path) -> Result<Read, String> {
    let bytes = section::bounded(path).map_err(|why| format!("the policy file {} cannot be read: {why}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|why| format!("the policy file {} is not UTF-8: {why}", path.display()))?;
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    let inputs = Inputs::system(base, state_directory(path));
    let mut read = read(Source { name: path.display().to_string(), text }, inputs);
    read.files.insert(path.to_owned());
    if let Some(config) = &mut read.config {
        config.files.insert(path.to_owned());
    }
    Ok(read)
}

/// Reads a policy's text.
pub(crate) fn read(source: Source, inputs: Inputs) -> Read {
    let reader = Reader::new(source, inputs);
    let config = {
        let table = reader.parse();
        // With a syntax error half a file would be judged: say what the syntax is first.
        if reader.failed() {
            None
        } else {
            let section = reader.root(&table);
            let config = root(&section);
            section.finish();
            config.map(|config| Config { shown: shown(&reader.root(&table)), ..config })
        }
    };
    let failed = reader.failed();
    let files = reader.inputs.files();
    let problems = reader.problems();
    let config = config.filter(|_| !failed).map(|config| Config { files: files.clone(), ..config });
    Read { source: reader.source, problems, files, config }
}

/// Tables of features that later releases bring.
const NOT_BUILT: &[(&str, &str)] = &[
    ("queue", "the durable queue comes with a later release; until then every destination is delivered at once"),
    ("shadow", "judging live traffic by a second policy comes with a later release"),
    ("subscriptions", "subscriptions come with a later release"),
    ("events", "the event catalogue comes with a later release"),
];

fn root(root: &Section<'_>) -> Option<Config> {
    for (table, what) in NOT_BUILT {
        root.not_built(table, what);
    }
    let server = root.opt_section("server");
    let listen = match &server {
        Some(section) => listen::read(section, clock::Clock::system().now()),
        None => Some(listen::Settings::default()),
    };
    let clients = server.as_ref().map(client::Rule::read).unwrap_or_default();
    let ip_ranges = server.as_ref().map(ranges::Settings::read).unwrap_or_default();
    let shelf = ranges::Shelf::new(root.inputs(), &ip_ranges);
    let public_url = server.as_ref().and_then(public_url);
    if let Some(section) = server {
        section.finish();
    }
    let admin = admin::read(root);
    let state = state::read(root.opt_section("state"), root.inputs());
    let log = observe::setup::read(root);
    let catalogue = verify::Catalogue::read(root);
    let sets = guard::allow::IpSets::read(root);
    let filters: Vec<_> = root.sections("filters").into_iter().map(|(name, section)| filter::read(&name, section)).collect();
    let mut destinations: Vec<_> = root.sections("destinations").into_iter().map(|(name, section)| deliver::read(&name, section, &catalogue)).collect();
    let limits = listen.as_ref().map(|settings| settings.limits.clone()).unwrap_or_default();
    let context = route::Context {
        limits: &limits,
        client_ca: listen.as_ref().and_then(|settings| settings.tls.as_ref()).map_or(&[], |tls| &tls.client_ca),
        body_given: root.opt_section("server").and_then(|server| server.opt_section("limits")).is_some_and(|limits| limits.has("body")),
        catalogue: &catalogue,
        shelf: &shelf,
        sets: &sets,
        filters: &root.opt_section("filters").map(|section| section.keys()).unwrap_or_default(),
        destinations: &root.opt_section("destinations").map(|section| section.keys()).unwrap_or_default(),
    };
    let sections = root.sections("routes");
    if sections.is_empty() {
        root.problem("routes", "there is no route", "add one: [routes.NAME] with `path`, `verify` and `deliver`");
    }
    let names: Vec<String> = sections.iter().map(|(name, _)| name.clone()).collect();
    let mut routes: Vec<_> = sections.into_iter().map(|(name, section)| route::read(&name, section, &context)).collect();
    for settings in destinations.iter_mut().flatten() {
        for route in routes.iter().flatten().filter(|route| route.deliver.has(&settings.name)).collect::<Vec<_>>() {
            settings.comes_from(&route.verify);
        }
    }
    let table = check::table(root, &names, &routes);
    verify::share_guards(routes.iter_mut().flatten().map(|route| &mut route.verify).collect());
    check::names(root);
    // Every table has been read: only now may a missing one end it.
    let config = Config {
        listen: listen?,
        clients,
        public_url,
        admin,
        state: state?,
        log,
        filters: filters.into_iter().collect::<Option<_>>()?,
        destinations: destinations.into_iter().collect::<Option<_>>()?,
        routes: routes.into_iter().map(|route| route.map(Arc::new)).collect::<Option<_>>()?,
        table: Arc::new(table?),
        ip_ranges,
        ranges: shelf.into_all(),
        catalogue: Arc::new(catalogue),
        files: BTreeSet::new(),
        shown: serde_json::Value::Null, // filled in when the unknown keys have been told: it asks for every key
    };
    check::across(root, &config);
    Some(config)
}

/// `public_url`: scheme, host and port, without a path.
fn public_url(server: &Section<'_>) -> Option<String> {
    let text = server.opt_string("public_url")?;
    let trimmed = text.strip_suffix('/').unwrap_or(&text);
    let good = url::Url::parse(trimmed).is_ok_and(|url| {
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.path() == "/" && bare
    });
    if !good {
        server.problem("public_url", format!("`{text}` is not a base URL"), "write it like \"https://hooks.example.com\", without a path");
        return None;
    }
    Some(trimmed.to_owned())
}

/// The policy as JSON, without what must not be shown.
fn shown(root: &Section<'_>) -> serde_json::Value {
    mask::json(serde_json::Value::Object(whole(root)))
}

/// All of it, with its secrets.
fn whole(root: &Section<'_>) -> serde_json::Map<String, serde_json::Value> {
    root.keys().into_iter().filter_map(|key| root.item(&key)?.json().map(|value| (key, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Severity;

    /// What reading says, a line each: `E key: message` or `W key: message`.
    fn said(text: &str) -> Vec<String> {
        let inputs = Inputs::memory(&[("SECRET", "a secret of some length")], &[]);
        let read = read(Source { name: "t.toml".into(), text: text.into() }, inputs);
        assert_eq!(read.config.is_none(), read.problems.iter().any(|problem| problem.severity == Severity::Error));
        let letter = |problem: &Problem| if problem.severity == Severity::Error { 'E' } else { 'W' };
        let code = |problem: &Problem| problem.code.map(|code| format!("[{code}] ")).unwrap_or_default();
        read.problems.iter().map(|problem| format!("{} {}: {}{}", letter(problem), problem.key, code(problem), problem.message)).collect()
    }

    const LEAST: &str =
        "[routes.github]\npath = \"/github\"\nverify = { provider = \"github\", secret = \"env:SECRET\" }\ndeliver = \"http://127.0.0.1:3000/hooks\"\n";

    #[test]
    fn the_least_policy_works() {
        assert_eq!(said(LEAST), [""; 0]);
    }

    #[test]
    fn one_run_says_everything() {
        let text = "[server]\nlissten = [\"0.0.0.0:1\"]\n[queue]\n[routes.a]\npath = 5\nverify = { provider = \"githup\", secret = \"env:NOPE\" }\nfilters = [\"redact\"]\nspeed = 1\n";
        let said = said(text).join("\n");
        for what in ["server.lissten", "queue", "routes.a.path", "githup", "NOPE", "redact", "routes.a.speed", "deliver"] {
            assert!(said.contains(what), "{what} is not in\n{said}");
        }
    }

    #[test]
    fn routes_that_take_the_same_requests_are_refused() {
        let twice =
            format!("{LEAST}[routes.b]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:SECRET\" }}\ndeliver = \"builtin:inspector\"\n");
        assert!(said(&twice).iter().any(|line| line.starts_with("E routes.b.path: routes `github` and `b`")), "{:?}", said(&twice));
    }

    #[test]
    fn a_table_that_is_not_known_is_refused() {
        assert_eq!(said(&format!("{LEAST}[sever]\nlisten = [\"0.0.0.0:1\"]\n")), ["E sever: unknown key `sever`"]);
        assert_eq!(said(&format!("listen = 1\n{LEAST}")), ["E listen: unknown key `listen`"]);
    }

    #[test]
    fn names_are_words() {
        for name in ["\"\"", "\"a b\"", "\"a\\nb\"", "\"ä\""] {
            let said = said(&LEAST.replace("routes.github", &format!("routes.{name}")));
            assert!(said.len() == 1 && said[0].ends_with("is not a name"), "{said:?}");
        }
    }

    #[test]
    fn what_can_never_work_or_is_open_on_the_way_is_said() {
        let old = said(&LEAST.replace(
            "secret = \"env:SECRET\"",
            "secrets = [\"env:SECRET\", { from = \"literal:another secret of some length\", label = \"old\", not_after = 2001-01-01 }]",
        ));
        assert_eq!(
            old.last().map(String::as_str),
            Some("W routes.github.verify: the secret old verifies nothing any more: its `not_after` is over"),
            "{old:?}"
        );
        let shared = said(&format!("{LEAST}{}", LEAST.replace("github]", "b]").replace("/github", "/b")));
        assert_eq!(
            shared,
            [
                "W routes.b.verify: [shared-secret] what is signed for the route `github` is accepted here too: one secret, and the signature does not cover the URL"
            ]
        );
        let plain = said(&LEAST.replace("127.0.0.1:3000", "receiver.example:3000"));
        assert_eq!(plain, ["W routes.github.deliver: events travel to another machine in plain HTTP"]);
        let header = said(&format!("{LEAST}[destinations.a]\nurl = \"https://a.example\"\nheaders = {{ Authorization = \"Bearer x\" }}\n"));
        assert_eq!(header, ["W destinations.a.headers.Authorization: a credential stands in the policy file"]);
    }

    #[test]
    fn conditions_name_parameters_that_the_path_has() {
        let check = |path: &str, when: &str, want: &[&str]| {
            let deliver = format!("deliver = [{{ when = \"{when}\", to = \"http://127.0.0.1:3000/\" }}]");
            let text = LEAST.replace("deliver = \"http://127.0.0.1:3000/hooks\"", &deliver).replace("\"/github\"", &format!("\"{path}\""));
            assert_eq!(said(&text), want, "{path} {when}");
        };
        check("/{tenant}/github", "path.tenant == 'a' || has(path.tenant) || path['tenant'] == 'b'", &[]);
        let wrong = ["E routes.github.deliver: a condition asks for `path.tenat`, which the path /{tenant}/github does not have"];
        check("/{tenant}/github", "path.tenat == 'a'", &wrong);
        check("/{tenant}/github", "path.tenant == 'a' && !has(path.tenat)", &wrong);
        check("/{tenant}/github", "path['tenat'] == 'a'", &wrong);
    }

    #[test]
    fn public_url_is_a_base() {
        let check = |url: &str, good: bool| {
            let said = said(&format!("{LEAST}[server]\npublic_url = \"{url}\"\n"));
            assert_eq!(said.is_empty(), good, "{url}: {said:?}");
            assert!(!said.join("").contains("hunter2"), "{said:?}");
        };
        for good in ["https://hooks.example.com", "https://hooks.example.com/", "http://127.0.0.1:8080"] {
            check(good, true);
        }
        for bad in ["hooks.example.com", "https://a/b", "https://a?b", "https://a#b", "https://me:hunter2@a", "https://:hunter2@a", "ftp://a"] {
            check(bad, false);
        }
    }

    #[test]
    fn what_was_not_verified_is_never_signed() {
        let signed = format!(
            "{}[destinations.inner]\nurl = \"http://127.0.0.1:1/\"\nsign = {{ provider = \"square\", secret = \"env:SECRET\" }}\n",
            LEAST.replace("\"http://127.0.0.1:3000/hooks\"", "[\"inner\", { to = \"builtin:inspector\", required = false }]")
        );
        let with = |more: &str| said(&signed.replace("deliver =", &format!("{more}\ndeliver =")));
        assert_eq!(with(""), [""; 0]);
        for more in ["enforce = false", "enforce = { verify = false }", "enforce = { default = false, query = true }"] {
            assert_eq!(
                with(more),
                ["E routes.github.enforce: `inner` is signed by the gate, and this route lets events pass that were not verified: those are never signed"],
                "{more}"
            );
        }
        assert_eq!(with("enforce = { allow_ips = false }"), [""; 0]);
        assert!(with("enforce = { query = false }")[0].starts_with("E routes.github.enforce: `inner` is signed with its query"), "a URL is signed");
        assert_eq!(said(&signed.replace("square", "github").replace("deliver =", "enforce = { query = false }\ndeliver =")), [""; 0]);
        let nobody = said(&signed.replace("verify = { provider = \"github\", secret = \"env:SECRET\" }", "verify = \"none\""));
        assert!(nobody.iter().any(|line| line.starts_with("E routes.github.verify: `inner` is signed by the gate")), "{nobody:?}");
    }

    #[test]
    fn signs_that_cannot_be_are_named() {
        let check = |sign: &str, want: &str| {
            let text = format!("{LEAST}[destinations.inner]\nurl = \"http://127.0.0.1:1/\"\nsign = {sign}\n");
            assert_eq!(said(&text), [format!("E destinations.inner.sign{want}")], "{sign}");
        };
        check("\"github\"", ": `github` is no way to sign");
        check("{ provider = \"githup\", secret = \"env:SECRET\" }", ".provider: there is no provider `githup`");
        check("{ provider = \"github\" }", ".secret: `destinations.inner.sign.secret` is missing");
        check(
            "{ provider = \"mailgun\", secret = \"env:SECRET\" }",
            ": `mailgun` cannot be signed here: its signature stands in the body (the form field `signature`), which is passed on as it is",
        );
        check("{ provider = \"github\", secret = \"env:SECRET\", url = \"hooks\" }", ".url: `hooks` is not the URL of a receiver");
        check("{ provider = \"github\", secret = \"env:SECRET\", tolerance = \"5m\" }", ".tolerance: unknown key `tolerance`");
        let inspector = said(&format!("{LEAST}[destinations.seen]\nurl = \"builtin:inspector\"\nsign = \"none\"\n"));
        assert_eq!(inspector, ["E destinations.seen.sign: `sign` means nothing to the inspector"]);
        let inline = said(&format!(
            "{LEAST}[destinations.inner]\nurl = \"http://127.0.0.1:1/\"\nsign = {{ scheme = \"hmac\", algorithm = \"sha256\", signature = {{ header = \"X-Inner\", encoding = \"hex\" }}, signed = \"{{body}}\", secret = \"env:SECRET\" }}\n"
        ));
        assert_eq!(inline, [""; 0]);
    }

    #[test]
    fn signatures_that_a_receiver_would_refuse_are_foreseen() {
        let filters = "[filters.redact]\ncomponent = \"redact.wasm\"\n";
        let route = |provider: &str, more: &str, to: &str| {
            format!("[routes.a]\npath = \"/a\"\nverify = {{ provider = \"{provider}\", secret = \"env:SECRET\" }}\n{more}\ndeliver = \"{to}\"\n")
        };
        let read = |text: String| {
            let inputs = Inputs::memory(&[("SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")], &[("redact.wasm", b"\0asm")]);
            let read = read(Source { name: "t.toml".into(), text }, inputs);
            read.problems.iter().filter_map(|problem| Some((problem.code?, problem.key.clone()))).collect::<Vec<_>>()
        };
        let said = |code: &'static str, key: &str| (code, format!("routes.a.{key}"));
        let direct = "http://127.0.0.1:1/";
        let destination = |sign: &str| format!("[destinations.inner]\nurl = \"{direct}\"\ntimeout = \"10s\"\n{sign}\n");
        let sign = "sign = { provider = \"stripe\", secret = \"env:SECRET\" }";
        // A filter, and who checks what it leaves.
        assert_eq!(read(filters.to_owned() + &route("github", "filters = [\"redact\"]", direct)), [said("broken-signature", "filters")]);
        assert_eq!(read(filters.to_owned() + &route("gitlab", "filters = [\"redact\"]", direct)), [], "a token stays good");
        assert_eq!(read(filters.to_owned() + &route("github", "filters = [\"redact\"]", "builtin:inspector")), []);
        assert_eq!(read(filters.to_owned() + &destination(sign) + &route("github", "filters = [\"redact\"]", "inner")), []);
        assert_eq!(read(filters.to_owned() + &destination("sign = \"none\"") + &route("github", "filters = [\"redact\"]", "inner")), []);
        // Paddle's times are good for 5 s, and it waits as long.
        assert_eq!(read(route("paddle", "", direct)), [said("stale-signature", "deliver"), said("late-answer", "deliver")]);
        assert_eq!(read(destination(sign) + &route("paddle", "", "inner")), [said("late-answer", "deliver")]);
        assert_eq!(read(destination("timeout = \"3s\"").replace("timeout = \"10s\"\n", "") + &route("paddle", "", "inner")), []);
        assert_eq!(read(route("stripe", "", direct)), []);
        // One secret: providers that sign alike are one.
        let twins = |a: &str, b: &str| read(route(a, "", direct).replace("routes.a", "routes.b").replace("/a\"", "/b\"") + &route(b, "", direct));
        assert_eq!(twins("lithic", "increase"), [said("shared-secret", "verify")]);
        assert_eq!(twins("github", "gitea"), []);
        assert_eq!(twins("gitlab", "gitlab"), [said("shared-secret", "verify")]);
        assert_eq!(twins("square", "square").iter().filter(|(code, _)| *code == "shared-secret").count(), 0, "the URL is signed");
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        // A secret in every place that a policy has for one, or that takes any text.
        let text = r#"
[admin]
token = "literal:hunter2hunter2hunter2" # hunter2
[providers.own]
scheme = "hmac"
algorithm = "sha256"
signature = { header = "X-Signature", encoding = "hex" }
signed = "{param:account}.{body}"
params = ["account"]
[filters.a]
component = "a.wasm"
config = { password = "hunter2", deep = [{ any = "hunter2" }, "hunter2"] }
when = "headers['x-token'] == 'hunter2'"
allow = { secrets = ["literal:hunter2hunter2hunter2"] }
[destinations.a]
url = "https://me:hunter2@a.example/hooks?key=hunter2"
headers = { Authorization = "Bearer hunter2", X-Any = "hunter2", X-From = { from = "literal:hunter2" } }
[destinations.b]
urls = ["https://hunter2@b.example", "https://c.example/services/hunter2hunter2hunter2"]
[routes.a]
path = "/a"
verify = { provider = "own", secrets = ["literal:hunter2hunter2hunter2", { from = "literal:hunter2hunter2hunter22", label = "old" }], params = { account = "hunter2" } }
filters = ["a"]
deliver = [{ to = "a", when = "query.token == 'hunter2'" }, { to = "http://me:hunter2@127.0.0.1/", required = false }]
acknowledge = { body = "hunter2" }
"#;
        let read = read(Source { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[("a.wasm", b"")]));
        let printed = read.source.render(&read.problems, false);
        assert!(!printed.contains("hunter2"), "{printed}");
        let shown = read.config.unwrap_or_else(|| panic!("warnings only: {printed}")).shown;
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        // And all the rest can be read.
        let route = &shown["routes"]["a"];
        assert_eq!((route["path"].as_str(), route["verify"]["provider"].as_str(), route["deliver"][0]["to"].as_str()), (Some("/a"), Some("own"), Some("a")));
        assert_eq!(shown["destinations"]["a"]["url"], "https://[redacted]@a.example/hooks?[redacted]");
        assert_eq!(shown["filters"]["a"]["when"], "headers['x-token'] == '[redacted]'");
    }

    #[test]
    fn no_mistake_beside_a_secret_prints_it() {
        for line in [
            "verify = { provider = \"github\", secret = \"hunter2\", foo = 1 }",
            "verify = { provider = \"github\", secret = \"literal:hunter2\", foo = 1 }",
            "verify = { provider = \"github\", secrt = \"hunter2\" }",
            "verify = { provider = \"githb\", secrt = \"hunter2\" }",
            "verify = { provider = \"githb\", secret = \"hunter2\" }",
            "verify = { provider = \"github\", secret = { form = \"hunter2\" } }",
            "verify = { provider = \"github\", secrets = \"hunter2\" }",
            "verify = { provider = \"github\", secrets = [\"hunter2\", 5] }",
            "verify = { provider = \"twilio\", secret = \"hunter2, params = 5 }",
            "verify = \"hunter2\"",
            "verify = { provider = \"github\", secret = \"env:NOPE\" } # was hunter2",
            "hunter = \"hunter2\"",
            "deliver = \"htps://me:hunter2@a/\"",
            "deliver = \"http://me:hunter2@a:99999/\"",
        ] {
            let text = format!("[routes.a]\npath = 5\n{line}\n");
            let read = read(Source { name: "t.toml".into(), text }, Inputs::memory(&[], &[]));
            assert!(read.config.is_none(), "{line}");
            let printed = read.source.render(&read.problems, false) + &read.problems.iter().map(ToString::to_string).collect::<String>();
            assert!(!printed.contains("hunter2"), "{line}\n{printed}");
        }
    }
}
