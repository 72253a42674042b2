//! Keeps the lists current while the gate runs: one task, one page at a time, once a day by default.
//!
//! What is decided (when to ask, whether to believe a list) is pure and stands at the foot; the task only sleeps, asks and stores.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use tokio::sync::Notify;

use super::{Feed, Fetcher, Known, Origin, REFRESH, Ranges, cache};
use crate::{
    clock::{Clock, Mono},
    egress::TlsSettings,
    observe::{events, metrics::Metrics},
    section::Section,
};

/// `[server] ip_ranges`: how published lists are kept current.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How long between two looks; `None`: nothing is fetched, and what was fetched before does not count.
    pub(crate) refresh: Option<Duration>,
    pub(crate) tls: TlsSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self { refresh: Some(REFRESH), tls: TlsSettings::default() }
    }
}

impl Settings {
    /// Reads `ip_ranges = { refresh = "24h", ca = "…" }` of `[server]`; `refresh = false` turns fetching off.
    pub(crate) fn read(server: &Section<'_>) -> Self {
        let mut read = Self::default();
        let Some(section) = server.opt_section("ip_ranges") else { return read };
        if let Some(item) = section.item("refresh") {
            read.refresh = match item.as_bool() {
                Some(false) => None,
                Some(true) => Some(REFRESH),
                None => item.duration(),
            };
            if read.refresh.is_some_and(|every| every < Duration::from_secs(1)) {
                item.problem("lists cannot be fetched this often", "a second or more; \"24h\" is the default, `false` turns it off");
            }
        }
        if let Some(tls) = section.has("ca").then(|| TlsSettings::read_ca(&section)).flatten() {
            read.tls = tls;
        }
        section.finish();
        read
    }
}

/// The lists in use, and how they are to be kept current: what the task works from. One for each process.
#[derive(Default)]
pub(crate) struct Book {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Default)]
struct Open {
    ranges: Vec<Arc<Ranges>>,
    /// With nothing in it, nothing is fetched.
    fetching: Option<(Duration, Fetcher)>,
}

impl Book {
    /// Takes over a policy's lists. What was fetched for the policy before is not lost: a list of the same pages goes on with it.
    ///
    /// Blocking: reads the system's roots. Where there are none the lists stay as they are, and that is said.
    pub(crate) fn adopt(&self, ranges: &[Arc<Ranges>], settings: &Settings) {
        let wanted = settings.refresh.filter(|_| ranges.iter().any(|ranges| ranges.feed().is_some()));
        let fetching = wanted.and_then(|every| match Fetcher::new(&settings.tls) {
            Ok(fetcher) => Some((every, fetcher)),
            Err(why) => {
                ranges.iter().filter(|ranges| ranges.feed().is_some()).for_each(|ranges| events::ranges_not_fetched(&ranges.name, &why));
                None
            }
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for new in ranges.iter().filter(|_| settings.refresh.is_some()) {
            let before = open.ranges.iter().find(|old| old.name == new.name && old.feed() == new.feed()).map(|old| old.known());
            if let Some(known) = before.filter(|known| known.origin == Origin::Fetched && known.at_ms > new.known().at_ms) {
                new.known.store(known);
            }
        }
        *open = Open { ranges: ranges.to_vec(), fetching };
        drop(open);
        self.changed.notify_one();
    }

    /// Every list in use that has a date, in Unix seconds.
    fn dates(&self) -> Vec<(Arc<str>, i64)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.ranges.iter().filter_map(|ranges| Some((ranges.name.clone(), ranges.known().at_ms?.div_euclid(1000)))).collect()
    }

    fn feeds(&self) -> (Vec<Arc<Ranges>>, Option<(Duration, Fetcher)>) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        (open.ranges.iter().filter(|ranges| ranges.feed().is_some()).cloned().collect(), open.fetching.clone())
    }
}

/// Fetches what is due, for ever. Cancelled between two steps it leaves nothing half done.
pub(crate) async fn run(book: Arc<Book>, state_dir: PathBuf, clock: Clock, metrics: Arc<Metrics>) {
    let mut turns: BTreeMap<Arc<str>, (Feed, Turn)> = BTreeMap::new();
    loop {
        show(&book, &metrics);
        let (ranges, fetching) = book.feeds();
        let Some((every, fetcher)) = fetching else {
            turns.clear();
            book.changed.notified().await;
            continue;
        };
        turns.retain(|name, (feed, _)| ranges.iter().any(|ranges| ranges.name == *name && ranges.feed() == Some(&*feed)));
        let now = clock.now();
        for ranges in &ranges {
            if let Some(feed) = ranges.feed() {
                let age = ranges.known().at_ms.map(|at| Duration::from_millis(u64::try_from(now.wall_ms.saturating_sub(at)).unwrap_or(0)));
                turns.entry(ranges.name.clone()).or_insert_with(|| (feed.clone(), Turn::first(every, age, now.mono, rand::random())));
            }
        }
        let next = turns.iter().min_by_key(|(_, (_, turn))| turn.at).map(|(name, (_, turn))| (name.clone(), turn.at));
        let Some((name, at)) = next else {
            book.changed.notified().await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep(at.since(now.mono)) => {}
            () = book.changed.notified() => continue,
        }
        let Some(ranges) = ranges.into_iter().find(|ranges| ranges.name == name) else { continue };
        let ended = refresh(&ranges, &fetcher, &state_dir, &clock).await;
        let now = clock.now();
        if let Some((_, turn)) = turns.get_mut(&name) {
            turn.ended(ended.is_ok(), every, now.mono, rand::random());
        }
        match ended {
            Ok((known, change)) => {
                let change = change.as_ref().map(|change| (change.added.len(), change.removed.len()));
                events::ranges_fetched(&name, known, change);
            }
            Err(why) => events::ranges_not_fetched(&name, &why),
        }
    }
}

/// Sets the age of every list in use.
fn show(book: &Book, metrics: &Metrics) {
    let dates = book.dates();
    metrics.set_ip_ranges(dates.iter().map(|(name, at)| (&**name, *at)));
}

/// Asks once, and puts what was found in force. Hands out how many networks there are and what changed.
async fn refresh(ranges: &Arc<Ranges>, fetcher: &Fetcher, state_dir: &std::path::Path, clock: &Clock) -> Result<(usize, Option<Change>), String> {
    let feed = ranges.feed().ok_or("nothing is published")?;
    let path = cache::file(state_dir, &ranges.name);
    let kept = {
        let (path, feed) = (path.clone(), feed.clone());
        tokio::task::spawn_blocking(move || cache::parts(&path, &feed)).await.ok().flatten()
    };
    let before = ranges.known();
    // Marks are worth something only where what they stand for is in force: after a lock was written anew the page is read anew.
    let marks: Vec<cache::Part> = kept.map(|(_, parts)| parts).unwrap_or_default();
    let in_force = Known::new(marks.iter().flat_map(|part| part.networks.iter().copied()).collect(), Origin::Cache, None).nets == before.nets;
    let parts = fetcher.parts(feed, if in_force { &marks } else { &[] }).await?;
    let at_ms = clock.now().wall_ms;
    let known = Known::new(parts.iter().flat_map(|part| part.networks.iter().copied()).collect(), Origin::Fetched, Some(at_ms));
    believable(&before.nets, &known.nets)?;
    let change = Change::between(&before.nets, &known.nets);
    let count = known.nets.len();
    ranges.known.store(Arc::new(known));
    let written = tokio::task::spawn_blocking(move || cache::write(&path, at_ms, &parts)).await;
    if let Ok(Err(why)) = written {
        events::ranges_not_kept(&ranges.name, &why);
    }
    Ok((count, change))
}

/// What came and went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) added: Vec<IpNet>,
    pub(crate) removed: Vec<IpNet>,
}

impl Change {
    /// `None` where both are the same; either is sorted.
    pub(crate) fn between(old: &[IpNet], new: &[IpNet]) -> Option<Self> {
        let without = |from: &[IpNet], other: &[IpNet]| from.iter().filter(|net| other.binary_search(net).is_err()).copied().collect::<Vec<_>>();
        let change = Self { added: without(new, old), removed: without(old, new) };
        (change != Self::default()).then_some(change)
    }
}

/// A list may become this many times as long, or as short, from one look to the next; more is a mistake until a person says otherwise.
const FACTOR: usize = 3;
/// Lists that differ by no more networks than this are never refused for it.
const SLACK: usize = 8;
/// The shortest prefixes that a list may hold: nobody's own network is wider.
const WIDEST: (u8, u8) = (8, 16);

/// Whether a fetched list may take the place of the one in force. The error says what is odd, and what to do where it is right.
pub(crate) fn believable(old: &[IpNet], new: &[IpNet]) -> Result<(), String> {
    const HELP: &str = "if it is right, pin it with `hooklatch providers --lock`";
    if new.is_empty() {
        return Err("the list is empty".to_owned());
    }
    if let Some(wide) = new.iter().find(|net| net.prefix_len() < if net.addr().is_ipv4() { WIDEST.0 } else { WIDEST.1 }) {
        return Err(format!("the list holds {wide}, wider than any sender's network"));
    }
    if old.is_empty() {
        return Ok(());
    }
    let odd = |was: usize, is: usize| is.abs_diff(was) > SLACK && (is > was.saturating_mul(FACTOR) || was > is.saturating_mul(FACTOR));
    if odd(old.len(), new.len()) {
        return Err(format!("the list went from {} networks to {} at once; {HELP}", old.len(), new.len()));
    }
    let space = |nets: &[IpNet]| nets.iter().filter(|net| net.addr().is_ipv4()).fold(0_u64, |sum, net| sum + (1 << (32 - net.prefix_len())));
    let (was, is) = (space(old), space(new));
    if is > was.saturating_mul(16) && is - was > 1 << 20 {
        return Err(format!("the list went from {was} IPv4 addresses to {is} at once; {HELP}"));
    }
    Ok(())
}

/// When a list is asked for next.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Turn {
    at: Mono,
    failures: u32,
}

impl Turn {
    /// The first look: when the list that is known is as old as `every`, spread so that a fleet that starts together does not ask together.
    fn first(every: Duration, age: Option<Duration>, now: Mono, luck: f64) -> Self {
        let left = age.map_or(Duration::ZERO, |age| every.saturating_sub(age));
        let spread = (every / 10).min(Duration::from_secs(30)).mul_f64(luck);
        Self { at: now.plus(left + spread), failures: 0 }
    }

    /// After a look: the interval, a tenth more or less; after a failure a minute, doubled each time, at most the interval.
    fn ended(&mut self, good: bool, every: Duration, now: Mono, luck: f64) {
        self.failures = if good { 0 } else { self.failures.saturating_add(1) };
        let wait = match self.failures {
            0 => every,
            failures => every.min(Duration::from_secs(60).saturating_mul(1 << (failures - 1).min(16))),
        };
        self.at = now.plus(wait.mul_f64(0.9 + luck * 0.2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(all: &[&str]) -> Vec<IpNet> {
        Known::new(all.iter().map(|net| net.parse().expect("a network")).collect(), Origin::Fetched, None).nets
    }

    fn many(count: u32) -> Vec<IpNet> {
        (0..count).map(|i| IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + i)))).collect()
    }

    #[test]
    fn odd_lists_are_not_believed() {
        let check = |old: &[IpNet], new: &[IpNet], want: &str| match believable(old, new) {
            Ok(()) => assert_eq!(want, "", "{} to {}", old.len(), new.len()),
            Err(why) => assert!(!want.is_empty() && why.contains(want), "{} to {}: {why}", old.len(), new.len()),
        };
        check(&many(20), &[], "is empty");
        check(&[], &many(500), "");
        check(&many(20), &many(60), "");
        check(&many(20), &many(61), "from 20 networks to 61");
        check(&many(60), &many(20), "");
        check(&many(60), &many(19), "from 60 networks to 19");
        check(&many(1), &many(9), "");
        check(&many(9), &many(1), "");
        check(&many(1), &many(10), "from 1 networks to 10");
        check(&many(2), &nets(&["0.0.0.0/0"]), "0.0.0.0/0");
        check(&many(2), &nets(&["::/0"]), "::/0");
        check(&[], &nets(&["10.0.0.0/7"]), "10.0.0.0/7");
        check(&nets(&["192.0.2.0/24"]), &nets(&["10.0.0.0/8"]), "256 IPv4 addresses to 16777216");
        check(&nets(&["10.0.0.0/8"]), &nets(&["192.0.2.0/24"]), "");
        check(&nets(&["192.0.2.0/24"]), &nets(&["198.51.0.0/16"]), "");
    }

    #[test]
    fn changes_are_named() {
        assert_eq!(Change::between(&nets(&["10.0.0.0/8"]), &nets(&["10.0.0.0/8"])), None);
        let change = Change::between(&nets(&["10.0.0.0/8", "192.0.2.0/24"]), &nets(&["10.0.0.0/8", "2001:db8::/32"])).expect("a change");
        assert_eq!((change.added, change.removed), (nets(&["2001:db8::/32"]), nets(&["192.0.2.0/24"])));
    }

    #[test]
    fn looks_are_spread_and_failures_back_off() {
        let (day, minute) = (Duration::from_secs(86_400), Duration::from_secs(60));
        let first = |age: Option<Duration>, luck| Turn::first(day, age, Mono(0), luck).at.since(Mono(0));
        assert_eq!(first(None, 0.0), Duration::ZERO);
        assert_eq!(first(None, 1.0), Duration::from_secs(30));
        assert_eq!(first(Some(day * 2), 0.5), Duration::from_secs(15));
        assert_eq!(first(Some(day / 2), 0.0), day / 2);
        let mut turn = Turn { at: Mono(0), failures: 0 };
        let mut after = |good, luck| {
            turn.ended(good, day, Mono(0), luck);
            turn.at.since(Mono(0)).as_secs()
        };
        assert_eq!((after(true, 0.0), after(true, 0.5)), (77_760, 86_400));
        assert_eq!([(); 4].map(|()| after(false, 0.5)), [60, 120, 240, 480]);
        assert_eq!((0..40).map(|_| after(false, 0.5)).last(), Some(86_400));
        assert_eq!(after(false, 0.5), 86_400);
        assert_eq!(after(true, 0.5), 86_400);
        assert_eq!(after(false, 0.5), 60);
        assert_eq!(Turn::first(minute, Some(minute), Mono(5), 0.0).at, Mono(5));
    }
}
