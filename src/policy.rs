//! One generation of the policy, opened: what a request keeps from its first step to its last.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    client,
    clock::Clock,
    config::{Config, RouteConfig},
    deliver, filter, guard,
    keys::Keys,
    observe::metrics::{Metrics, RouteMetrics},
    problem::Problem,
    ranges, route, verify,
};

pub(crate) struct Policy {
    /// Counted from 1, one more with every reload.
    pub(crate) generation: u64,
    pub(crate) clients: client::Rule,
    /// What providers sign where they sign the URL: scheme, host and port, no slash at the end.
    pub(crate) public_url: Option<String>,
    pub(crate) table: Arc<route::Table>,
    /// For explaining refusals.
    pub(crate) catalogue: Arc<verify::Catalogue>,
    /// By the table's index.
    pub(crate) routes: Vec<Arc<Route>>,
    /// The policy as the admin API shows it, without secrets.
    pub(crate) shown: serde_json::Value,
}

/// One route: its rules as read, and what had to be opened for them.
pub(crate) struct Route {
    pub(crate) name: Arc<str>,
    rules: Arc<RouteConfig>,
    pub(crate) guards: guard::Guards,
    pub(crate) filters: Vec<Arc<filter::Filter>>,
    /// The policy's, all of them.
    pub(crate) destinations: Arc<deliver::Destinations>,
    pub(crate) metrics: RouteMetrics,
    /// The headers whose value lets its bearer in.
    pub(crate) credentials: Vec<http::HeaderName>,
    /// The query parameters of the kind.
    pub(crate) credential_params: Arc<[String]>,
}

impl Deref for Route {
    type Target = RouteConfig;

    fn deref(&self) -> &RouteConfig {
        &self.rules
    }
}

/// What opening a policy needs and every generation shares.
pub(crate) struct Opener {
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) engine: filter::Engine,
    pub(crate) limiters: guard::rate::Limiters,
    pub(crate) inspector: Arc<deliver::inspector::Store>,
    pub(crate) keys: Arc<Keys>,
    /// The address ranges in use, for whoever keeps them current.
    pub(crate) ranges: Arc<ranges::Book>,
    /// Of the generation in force.
    kept: Mutex<Kept>,
}

/// What was opened, by name, with the settings that made it: what these still say goes on as it is.
#[derive(Default)]
struct Kept {
    filters: HashMap<String, (filter::Settings, Arc<filter::Filter>)>,
    destinations: HashMap<String, (deliver::Settings, Arc<deliver::Destination>)>,
}

/// A policy whose every part is open, not yet in force.
pub(crate) struct Opened {
    policy: Policy,
    kept: Kept,
}

impl Opener {
    pub(crate) fn new(clock: Clock, metrics: Arc<Metrics>, engine: filter::Engine, inspector: Arc<deliver::inspector::Store>, keys: Arc<Keys>) -> Self {
        let limiters = guard::rate::Limiters::new(clock.clone());
        Self { clock, metrics, engine, limiters, inspector, keys, ranges: Arc::default(), kept: Mutex::default() }
    }

    /// Opens a config: compiles its filters, makes its clients. Blocking; either all of it stands afterwards, or the problems say what
    /// does not. What is in force is left as it is: see [`Opener::keep`].
    pub(crate) fn open(&self, config: &Config, generation: u64) -> Result<Opened, Vec<Problem>> {
        let mut problems = Vec::new();
        let kept = {
            let before = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            Kept { filters: self.filters(config, &before, &mut problems), destinations: self.destinations(config, &before, &mut problems) }
        };
        let filters = &kept.filters;
        let destinations: Arc<deliver::Destinations> = Arc::new(kept.destinations.values().map(|(_, destination)| destination.clone()).collect());
        let mut routes = Vec::with_capacity(config.routes.len());
        for rules in &config.routes {
            let name: Arc<str> = rules.name.as_str().into();
            for source in rules.verify.sources() {
                problems.extend(self.keys.connect(&source).err().map(|why| Problem::error(format!("routes.{name}.verify"), None, why)));
            }
            let provider = rules.verify.provider().map_or("", |provider| provider);
            routes.push(Arc::new(Route {
                guards: guard::Guards {
                    allow: rules.allow.clone(),
                    cert: rules.client_cert.clone(),
                    limits: self.limiters.limits(&name, &rules.rate_limit),
                    failures: rules.verify_failures.as_ref().map(|limit| self.limiters.failures(&name, limit)),
                    head: rules.head,
                },
                filters: rules.filters.iter().filter_map(|name| filters.get(name)).map(|(_, filter)| filter.clone()).collect(),
                destinations: destinations.clone(),
                metrics: self.metrics.route(&name, provider, rules.verify.labels()),
                credentials: rules.verify.credential_headers(),
                credential_params: rules.verify.credential_params().into(),
                rules: rules.clone(),
                name,
            }));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let policy = Policy {
            generation,
            clients: config.clients.clone(),
            public_url: config.public_url.clone(),
            table: config.table.clone(),
            catalogue: config.catalogue.clone(),
            routes,
            shown: serde_json::json!({ "generation": generation, "policy": config.shown }),
        };
        Ok(Opened { policy, kept })
    }

    /// Puts what was opened in the place of what is in force, and hands out the policy: the last step of a change.
    pub(crate) fn keep(&self, opened: Opened) -> Policy {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, (_, filter)) in &opened.kept.filters {
            if !kept.filters.get(name).is_some_and(|(_, before)| Arc::ptr_eq(before, filter)) {
                filter.begin();
            }
        }
        *kept = opened.kept;
        opened.policy
    }

    /// Every named destination, and those that routes name by their URL. One whose settings did not change is the same as before, with
    /// its connections and what it knows of its receivers.
    fn destinations(&self, config: &Config, before: &Kept, problems: &mut Vec<Problem>) -> HashMap<String, (deliver::Settings, Arc<deliver::Destination>)> {
        let named = config.destinations.iter().map(|settings| (format!("destinations.{}.tls", settings.name), settings));
        let anonymous = config.routes.iter().filter_map(|route| Some((format!("routes.{}.deliver", route.name), route.deliver.anonymous()?)));
        let open = |(key, settings): (String, &deliver::Settings)| {
            let destination = match before.destinations.get(&settings.name) {
                Some((known, destination)) if known == settings => destination.clone(),
                _ => match deliver::Destination::open(settings, self.metrics.destination(&settings.name), &self.inspector) {
                    Ok(destination) => destination,
                    Err(why) => {
                        problems.push(Problem::error(key, None, why));
                        return None;
                    }
                },
            };
            Some((settings.name.clone(), (settings.clone(), destination)))
        };
        named.chain(anonymous).filter_map(open).collect()
    }

    /// The filters by name. One whose settings did not change is the same as before, with its instances and its quarantine.
    fn filters(&self, config: &Config, before: &Kept, problems: &mut Vec<Problem>) -> HashMap<String, (filter::Settings, Arc<filter::Filter>)> {
        let open = |settings: &filter::Settings| {
            let filter = match before.filters.get(settings.name()) {
                Some((known, filter)) if known.same_as(settings) => filter.clone(),
                _ => match filter::Filter::load(&self.engine, settings, self.clock.clone(), &self.metrics) {
                    Ok(filter) => filter,
                    Err(fault) => {
                        problems.push(Problem::error(format!("filters.{}.{}", settings.name(), fault.key()), None, fault.to_string()));
                        return None;
                    }
                },
            };
            Some((settings.name().to_owned(), (settings.clone(), filter)))
        };
        config.filters.iter().filter_map(open).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{problem::Source, section::Inputs};

    const ROUTE: &str = "[routes.r]\npath = \"/r\"\nverify = \"none\"\ndeliver = \"http://127.0.0.1:1/\"\n";

    fn config(text: &str, token: &str) -> Config {
        let read = crate::config::read(
            Source { name: "t.toml".into(), text: format!("{ROUTE}{text}") },
            Inputs::memory(&[("TOKEN", token)], &[("bad.wasm", b"no component"), ("worse.wasm", b"\0asm")]),
        );
        read.config.unwrap_or_else(|| panic!("{text}: {:?}", read.problems))
    }

    fn opener() -> Opener {
        let clock = Clock::hand(0);
        let metrics = Metrics::with_clock("0", clock.clone());
        let engine = filter::Engine::new(None);
        Opener::new(clock.clone(), metrics.clone(), engine, Arc::default(), Keys::new(None, clock, metrics))
    }

    fn destination(policy: &Policy, name: &str) -> Arc<deliver::Destination> {
        policy.routes[0].destinations.get(name).expect("it is there").clone()
    }

    const TWO: &str =
        "[destinations.a]\nurl = \"http://127.0.0.1:2/\"\nheaders = { X-Token = { from = \"env:TOKEN\" } }\n[destinations.b]\nurl = \"http://127.0.0.1:3/\"\n";

    #[test]
    fn destinations_that_did_not_change_go_on() {
        let opener = opener();
        let open = |text: &str, token: &str| opener.keep(opener.open(&config(text, token), 1).unwrap_or_else(|problems| panic!("{problems:?}")));
        let first = open(TWO, "one");
        let check = |policy: &Policy, same: [bool; 3]| {
            let got = ["a", "b", "r"].map(|name| Arc::ptr_eq(&destination(&first, name), &destination(policy, name)));
            assert_eq!(got, same);
        };
        check(&open(TWO, "one"), [true, true, true]);
        check(&open(&format!("{TWO}timeout = \"1s\"\n"), "one"), [true, false, true]);
        check(&open(TWO, "another"), [false, false, true]);
    }

    #[test]
    fn a_policy_that_cannot_be_opened_tells_all_and_changes_nothing() {
        let opener = opener();
        let first = opener.keep(opener.open(&config(TWO, "one"), 1).unwrap_or_else(|problems| panic!("{problems:?}")));
        let bad = config("[filters.one]\ncomponent = \"bad.wasm\"\n[filters.two]\ncomponent = \"worse.wasm\"\n", "one");
        let problems = opener.open(&bad, 2).err().expect("no components");
        assert_eq!(problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>(), ["filters.one.component", "filters.two.component"]);
        let again = opener.keep(opener.open(&config(TWO, "one"), 2).unwrap_or_else(|problems| panic!("{problems:?}")));
        assert!(Arc::ptr_eq(&destination(&first, "a"), &destination(&again, "a")));
    }
}
