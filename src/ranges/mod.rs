//! Where providers send from: their published address ranges, kept current beside the requests.
//!
//! What is known of a provider is, from weak to strong: the list in its definition, `hooklatch.lock` beside the policy, the cache in
//! the state directory, what was fetched while the gate runs. A policy never waits for the network, and a list is never empty: a
//! fetched one that is empty, or that shrank or grew suddenly, is refused and the one before stays. Requests read an atomic pointer.
//! Never here: the choice of who is let in, which is `guard/allow.rs`.

mod cache;
mod fetch;
pub(crate) mod lock;
mod refresh;
mod set;
mod source;

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use self::lock::Lock;
pub(crate) use self::{
    fetch::Fetcher,
    refresh::{Book, Change, Settings, believable, run},
    set::IpSet,
    source::{Feed, Source},
};
use crate::section::Inputs;

/// The day that the lists in `providers.toml` were last compared with what is published: 24 November 2026, Unix milliseconds.
const SHIPPED_MS: i64 = 1_795_478_400_000;

/// One provider's addresses, as they are known now.
pub(crate) struct Ranges {
    pub(crate) name: Arc<str>,
    feed: Option<Feed>,
    known: ArcSwap<Known>,
}

/// A list of addresses and where it is from.
pub(crate) struct Known {
    /// Sorted, each once.
    pub(crate) nets: Vec<IpNet>,
    set: IpSet,
    pub(crate) origin: Origin,
    /// When it was published or fetched, Unix milliseconds; `None` for a list that has no date.
    pub(crate) at_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Definition,
    Lock,
    Cache,
    Fetched,
}

impl Known {
    pub(crate) fn new(mut nets: Vec<IpNet>, origin: Origin, at_ms: Option<i64>) -> Self {
        nets.sort_unstable();
        nets.dedup();
        Self { set: nets.iter().copied().collect(), nets, origin, at_ms }
    }
}

impl Ranges {
    pub(crate) fn new(name: &str, feed: Option<Feed>, known: Known) -> Self {
        Self { name: name.into(), feed, known: ArcSwap::from_pointee(known) }
    }

    /// A list that never changes.
    #[cfg(test)]
    pub(crate) fn fixed(name: &str, nets: &[&str]) -> Arc<Self> {
        let nets = nets.iter().map(|net| net.parse().expect("a network")).collect();
        Arc::new(Self::new(name, None, Known::new(nets, Origin::Definition, None)))
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.known.load().set.contains(ip)
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    pub(crate) fn feed(&self) -> Option<&Feed> {
        self.feed.as_ref()
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.load();
        f.debug_struct("Ranges").field("name", &self.name).field("nets", &known.nets.len()).field("origin", &known.origin).finish()
    }
}

/// What one reading of a policy knows of providers' addresses: one [`Ranges`] for each that it names.
pub(crate) struct Shelf<'a> {
    inputs: &'a Inputs,
    /// Whether what was fetched before counts: not where the policy turns fetching off.
    cached: bool,
    lock: OnceCell<Lock>,
    opened: RefCell<BTreeMap<String, Arc<Ranges>>>,
}

impl<'a> Shelf<'a> {
    pub(crate) fn new(inputs: &'a Inputs, settings: &Settings) -> Self {
        Self { inputs, cached: settings.refresh.is_some(), lock: OnceCell::new(), opened: RefCell::default() }
    }

    /// The best that is known of a provider's addresses without asking; no network where nothing is. The error is for the policy's author.
    pub(crate) fn open(&self, name: &str, source: &Source, shipped: bool) -> Result<Arc<Ranges>, String> {
        if let Some(ranges) = self.opened.borrow().get(name) {
            return Ok(Arc::clone(ranges));
        }
        let listed = Known::new(source.list.clone(), Origin::Definition, shipped.then_some(SHIPPED_MS));
        let known = match &source.feed {
            None => listed,
            Some(feed) => {
                let locked = self.lock()?.get(name, feed);
                let cached = if self.cached { self.inputs.state_dir().and_then(|dir| cache::read(&cache::file(dir, name), feed)) } else { None };
                // Of the two the newer: a team that locks anew means it.
                let newest = [locked, cached].into_iter().flatten().max_by_key(|known| (known.at_ms, known.origin));
                newest.unwrap_or(listed)
            }
        };
        let ranges = Arc::new(Ranges::new(name, source.feed.clone(), known));
        self.opened.borrow_mut().insert(name.to_owned(), Arc::clone(&ranges));
        Ok(ranges)
    }

    fn lock(&self) -> Result<&Lock, String> {
        if let Some(lock) = self.lock.get() {
            return Ok(lock);
        }
        let path = self.inputs.resolve(lock::NAME);
        let lock = match self.inputs.read(&path) {
            Ok(bytes) => Lock::parse(&bytes).map_err(|why| format!("{}: {why}", path.display()))?,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Lock::default(),
            Err(why) => return Err(format!("{} cannot be read: {why}", path.display())),
        };
        Ok(self.lock.get_or_init(|| lock))
    }

    /// All that the policy named.
    pub(crate) fn into_all(self) -> Vec<Arc<Ranges>> {
        self.opened.into_inner().into_values().collect()
    }
}

/// Where the cache stands in a state directory.
fn folder(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("ranges")
}

/// How long between two looks at a published list, unless the policy says otherwise.
pub(crate) const REFRESH: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source as Text,
        section::{Reader, Section},
    };

    fn source(text: &str) -> Source {
        let reader = Reader::new(Text { name: "t.toml".into(), text: format!("ip_ranges = {text}") }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root: Section<'_> = reader.root(&table);
        root.item("ip_ranges").and_then(|item| Source::read(&item)).expect("a source")
    }

    const FEED: &str = "{ url = \"https://a.example/x\", json = \"/hooks\", list = [\"192.0.2.0/24\"] }";

    fn locked(at: &str, from: &str) -> Vec<u8> {
        format!("version = 1\n[ip_ranges.a]\nfetched = \"{at}\"\nfrom = [\"{from}\"]\nnetworks = [\"198.51.100.0/24\"]\n").into_bytes()
    }

    #[test]
    fn the_strongest_copy_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let check = |lock: Option<&str>, cached_ms: Option<i64>, refresh: bool, want: (Origin, &str)| {
            let base = tempfile::tempdir().expect("a folder");
            let state = dir.path().join(format!("{:?}", base.path().file_name()));
            if let Some(at) = lock {
                std::fs::write(base.path().join(lock::NAME), locked(at, "https://a.example/x")).expect("written");
            }
            let source = source(FEED);
            if let Some(at_ms) = cached_ms {
                let parts = vec![cache::Part { networks: vec!["203.0.113.0/24".parse().expect("a network")], ..cache::Part::of("https://a.example/x") }];
                cache::write(&cache::file(&state, "a"), at_ms, &parts).expect("written");
            }
            let inputs = Inputs::system(base.path().to_owned(), state);
            let shelf = Shelf::new(&inputs, &Settings { refresh: refresh.then_some(REFRESH), ..Settings::default() });
            let known = shelf.open("a", &source, true).expect("no problem").known();
            assert_eq!((known.origin, known.nets[0].to_string().as_str()), want, "{lock:?} {cached_ms:?}");
            assert!(shelf.into_all().len() == 1);
        };
        let day = 24 * 3600 * 1000;
        check(None, None, true, (Origin::Definition, "192.0.2.0/24"));
        check(Some("2026-11-20T00:00:00Z"), None, true, (Origin::Lock, "198.51.100.0/24"));
        check(None, Some(1), true, (Origin::Cache, "203.0.113.0/24"));
        check(Some("1970-01-02T00:00:00Z"), Some(day + 1), true, (Origin::Cache, "203.0.113.0/24"));
        check(Some("1970-01-02T00:00:00Z"), Some(day - 1), true, (Origin::Lock, "198.51.100.0/24"));
        check(Some("1970-01-02T00:00:00Z"), Some(day + 1), false, (Origin::Lock, "198.51.100.0/24"));
        check(None, Some(1), false, (Origin::Definition, "192.0.2.0/24"));
    }

    #[test]
    fn what_another_page_said_does_not_count() {
        let base = tempfile::tempdir().expect("a folder");
        std::fs::write(base.path().join(lock::NAME), locked("2026-11-20T00:00:00Z", "https://other.example/x")).expect("written");
        let inputs = Inputs::system(base.path().to_owned(), base.path().to_owned());
        let shelf = Shelf::new(&inputs, &Settings::default());
        assert_eq!(shelf.open("a", &source(FEED), true).expect("no problem").known().origin, Origin::Definition);
    }

    #[test]
    fn a_lock_that_cannot_be_read_is_no_empty_lock() {
        let base = tempfile::tempdir().expect("a folder");
        std::fs::write(base.path().join(lock::NAME), "version = 1\n<<<<<<< ours\n").expect("written");
        let inputs = Inputs::system(base.path().to_owned(), base.path().to_owned());
        let shelf = Shelf::new(&inputs, &Settings::default());
        assert!(shelf.open("a", &source(FEED), true).is_err_and(|why| why.contains("hooklatch.lock")));
        assert!(shelf.open("b", &source("[\"192.0.2.0/24\"]"), true).is_ok(), "a list without a page needs no lock");
    }
}
