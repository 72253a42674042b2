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
    ranges, route,
};

pub(crate) struct Policy {
    /// Counted from 1, one more with every reload.
    pub(crate) generation: u64,
    pub(crate) clients: client::Rule,
    /// What providers sign where they sign the URL: scheme, host and port, no slash at the end.
    pub(crate) public_url: Option<String>,
    pub(crate) table: Arc<route::Table>,
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
    /// Filters of the generation before, by name, with what made them.
    filters: Mutex<HashMap<String, (filter::Settings, Arc<filter::Filter>)>>,
}

impl Opener {
    pub(crate) fn new(clock: Clock, metrics: Arc<Metrics>, engine: filter::Engine, inspector: Arc<deliver::inspector::Store>, keys: Arc<Keys>) -> Self {
        let limiters = guard::rate::Limiters::new(clock.clone());
        Self { clock, metrics, engine, limiters, inspector, keys, ranges: Arc::default(), filters: Mutex::default() }
    }

    /// Opens a config: compiles its filters, makes its clients. Blocking; either all of it stands afterwards, or the problem says what
    /// does not.
    pub(crate) fn open(&self, config: &Config, generation: u64) -> Result<Policy, Problem> {
        let filters = self.filters(config)?;
        let destinations = Arc::new(self.destinations(config)?);
        let mut routes = Vec::with_capacity(config.routes.len());
        for rules in &config.routes {
            let name: Arc<str> = rules.name.as_str().into();
            for source in rules.verify.sources() {
                self.keys.connect(&source).map_err(|why| Problem::error(format!("routes.{name}.verify"), None, why))?;
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
                filters: rules.filters.iter().filter_map(|name| filters.get(name).cloned()).collect(),
                destinations: destinations.clone(),
                metrics: self.metrics.route(&name, provider, rules.verify.labels()),
                credentials: rules.verify.credential_headers(),
                credential_params: rules.verify.credential_params().into(),
                rules: rules.clone(),
                name,
            }));
        }
        Ok(Policy {
            generation,
            clients: config.clients.clone(),
            public_url: config.public_url.clone(),
            table: config.table.clone(),
            routes,
            shown: serde_json::json!({ "generation": generation, "policy": config.shown }),
        })
    }

    /// Every named destination, and those that routes name by their URL.
    fn destinations(&self, config: &Config) -> Result<deliver::Destinations, Problem> {
        let anonymous = config.routes.iter().filter_map(|route| route.deliver.anonymous());
        let open = |settings: &deliver::Settings| {
            deliver::Destination::open(settings, self.metrics.destination(&settings.name), &self.inspector)
                .map_err(|why| Problem::error(format!("destinations.{}", settings.name), None, why))
        };
        config.destinations.iter().chain(anonymous).map(open).collect()
    }

    /// The filters by name. One whose settings did not change is the same as before, with its instances and its quarantine.
    fn filters(&self, config: &Config) -> Result<HashMap<String, Arc<filter::Filter>>, Problem> {
        let mut kept = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_name = HashMap::new();
        let mut next = HashMap::new();
        for settings in &config.filters {
            let filter = match kept.get(settings.name()) {
                Some((known, filter)) if known.same_as(settings) => filter.clone(),
                _ => filter::Filter::load(&self.engine, settings, self.clock.clone(), &self.metrics)
                    .map_err(|fault| Problem::error(format!("filters.{}", settings.name()), None, fault.to_string()))?,
            };
            next.insert(settings.name().to_owned(), (settings.clone(), filter.clone()));
            by_name.insert(settings.name().to_owned(), filter);
        }
        *kept = next;
        Ok(by_name)
    }
}
