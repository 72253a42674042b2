//! The replay records in memory: which keys are claimed, done or failed, and where their rows are. Pure, but for the shards' locks.
//!
//! A record takes 32 bytes beside the table's own. Times are seconds of the monotonic clock, so no step of the wall clock expires or
//! extends one.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, futures::OwnedNotified};

use super::record::{Digest, Kind};
use crate::event::EventId;

const SHARDS: usize = 64;
/// What an eviction makes room for: one in so many.
const EVICT_SHARE: usize = 64;

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A digest is a keyed hash already.
#[derive(Debug, Default)]
struct Pass(u64);

impl Hasher for Pass {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

type Map<V> = HashMap<Digest, V, BuildHasherDefault<Pass>>;

/// Where a record's row is and until when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Batch number and part; grows with every record, 0: no row.
    pub(super) row: u64,
    /// Seconds of the monotonic clock.
    pub(super) expires: u32,
    /// The row's expiry hour since 1970 in the upper 24 bits, the kind in the lower 8.
    hour_and_kind: u32,
}

impl Slot {
    pub(super) fn new(row: u64, expires: u32, hour: u32, kind: Kind) -> Self {
        Self { row, expires, hour_and_kind: hour << 8 | u32::from(kind.code()) }
    }

    pub(super) fn hour(&self) -> u32 {
        self.hour_and_kind >> 8
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::from_code(self.hour_and_kind as u8).unwrap_or(Kind::Failed)
    }
}

#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Mutex<Shard>]>,
    max: usize,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    records: Map<Slot>,
    /// Claims that are being delivered: these end with the process.
    flights: Map<Flight>,
}

#[derive(Debug)]
struct Flight {
    event_id: EventId,
    /// Told when it ends; made when the first copy waits.
    ended: Option<Arc<Notify>>,
}

/// What a claim found.
#[derive(Debug)]
pub(super) enum Begin {
    /// Nothing that counts: the caller's from now on. The row of a record that has expired or was forgotten, else 0.
    Fresh(u64),
    /// A failed record: the caller's from now on.
    Again(Slot),
    Done(Slot),
    InFlight(EventId),
    /// The same, and this resolves when it ends.
    Waiting(OwnedNotified),
}

/// What an eviction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evicted {
    pub(super) records: usize,
    /// Every record that expires before this is gone.
    pub(super) before: u32,
}

impl Index {
    pub(super) fn new(max: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), max: max.max(1), count: AtomicUsize::new(0) }
    }

    fn shard<T>(&self, digest: &Digest, work: impl FnOnce(&mut Shard) -> T) -> T {
        // The map uses the first bytes.
        let shard = &self.shards[usize::from(digest.0[15]) % SHARDS];
        work(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.len() > self.max
    }

    /// Over by a quarter: a file holds far more than the bound.
    pub(super) fn is_well_over(&self) -> bool {
        self.len() > self.max + self.max / 4
    }

    /// How many claims are being delivered.
    pub(super) fn flights(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).flights.len()).sum()
    }

    /// Claims a key, or says why not. `Fresh` and `Again` must end in [`Index::end`] or [`Index::abandon`].
    pub(super) fn begin(&self, digest: &Digest, fresh: EventId, wait: bool, now: u32) -> Begin {
        self.shard(digest, |shard| {
            if let Some(flight) = shard.flights.get_mut(digest) {
                return if wait { Begin::Waiting(flight.ended.get_or_insert_default().clone().notified_owned()) } else { Begin::InFlight(flight.event_id) };
            }
            let begin = match shard.records.get(digest).copied() {
                Some(slot) if slot.expires > now => match slot.kind() {
                    Kind::Done => return Begin::Done(slot),
                    Kind::Failed => Begin::Again(slot),
                    Kind::Forgotten => Begin::Fresh(slot.row),
                },
                expired => Begin::Fresh(expired.map_or(0, |slot| slot.row)),
            };
            shard.flights.insert(*digest, Flight { event_id: fresh, ended: None });
            begin
        })
    }

    /// Ends a claim with its record, unless a newer one is there, and wakes the copies that wait.
    pub(super) fn end(&self, digest: &Digest, slot: Slot) {
        let ended = self.shard(digest, |shard| {
            self.put(shard, digest, slot, true);
            shard.flights.remove(digest).and_then(|flight| flight.ended)
        });
        if let Some(ended) = ended {
            ended.notify_waiters();
        }
    }

    /// Ends a claim that came to nothing; an earlier record stays.
    pub(super) fn abandon(&self, digest: &Digest) {
        let ended = self.shard(digest, |shard| shard.flights.remove(digest).and_then(|flight| flight.ended));
        if let Some(ended) = ended {
            ended.notify_waiters();
        }
    }

    /// The record of a key, and whether it is in flight.
    pub(super) fn look(&self, digest: &Digest, now: u32) -> (Option<Slot>, bool) {
        self.shard(digest, |shard| (shard.records.get(digest).copied().filter(|slot| slot.expires > now), shard.flights.contains_key(digest)))
    }

    /// Takes in a record: of several of a key the highest row wins, and in the same row the `later`.
    pub(super) fn merge(&self, digest: &Digest, slot: Slot, later: bool) {
        self.shard(digest, |shard| self.put(shard, digest, slot, later));
    }

    fn put(&self, shard: &mut Shard, digest: &Digest, slot: Slot, later: bool) {
        match shard.records.entry(*digest) {
            Entry::Vacant(free) => {
                free.insert(slot);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            // Row 0 is newer than any: the store did not take it.
            Entry::Occupied(mut taken) if slot.row == 0 || taken.get().row < slot.row || (later && taken.get().row == slot.row) => {
                taken.insert(slot);
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Drops what has expired; says how many.
    pub(super) fn sweep(&self, now: u32) -> usize {
        self.retain(|slot| slot.expires > now)
    }

    /// At the bound, drops the records that would expire first.
    pub(super) fn evict(&self) -> Option<Evicted> {
        let excess = self.len().checked_sub(self.max).filter(|excess| *excess > 0)? + self.max / EVICT_SHARE;
        let mut expiries: Vec<u32> = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            expiries.extend(shard.records.values().map(|slot| slot.expires));
        }
        let excess = excess.clamp(1, expiries.len().max(1));
        let (_, last, _) = expiries.get_mut(..).filter(|all| !all.is_empty())?.select_nth_unstable(excess - 1);
        let last = *last;
        // Of those that expire in the very same second only as many as needed.
        let mut room = excess;
        let mut records = self.retain(|slot| slot.expires >= last);
        room = room.saturating_sub(records);
        records += self.retain(|slot| {
            let goes = slot.expires == last && room > 0;
            room -= usize::from(goes);
            !goes
        });
        Some(Evicted { records, before: last })
    }

    fn retain(&self, mut keep: impl FnMut(&Slot) -> bool) -> usize {
        let mut gone = 0;
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let before = shard.records.len();
            shard.records.retain(|_, slot| keep(slot));
            let after = shard.records.len();
            if shard.records.capacity() > 4 * after + 1024 {
                shard.records.shrink_to(2 * after);
            }
            gone += before - after;
            self.count.fetch_sub(before - after, Ordering::Relaxed);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u32) -> Digest {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        bytes[15] = n as u8;
        Digest(bytes)
    }

    fn slot(row: u64, expires: u32, kind: Kind) -> Slot {
        Slot::new(row, expires, 480_000, kind)
    }

    #[test]
    fn a_slot_keeps_its_parts() {
        let slot = Slot::new(5 << 16 | 3, 77, 16_000_000, Kind::Forgotten);
        assert_eq!((slot.row, slot.expires, slot.hour(), slot.kind()), (5 << 16 | 3, 77, 16_000_000, Kind::Forgotten));
        assert_eq!(size_of::<(Digest, Slot)>(), 32);
    }

    #[test]
    fn a_key_is_claimed_once() {
        let index = Index::new(10);
        let (key, first, second) = (digest(1), EventId::new(), EventId::new());
        assert!(matches!(index.begin(&key, first, false, 0), Begin::Fresh(_)));
        assert!(matches!(index.begin(&key, second, false, 0), Begin::InFlight(id) if id == first));
        index.end(&key, slot(1, 10, Kind::Failed));
        assert!(matches!(index.begin(&key, second, false, 0), Begin::Again(_)));
        index.abandon(&key);
        assert!(matches!(index.begin(&key, second, false, 0), Begin::Again(_)));
        index.end(&key, slot(2, 10, Kind::Done));
        assert!(matches!(index.begin(&key, second, false, 9), Begin::Done(_)));
        assert!(matches!(index.begin(&key, second, false, 10), Begin::Fresh(_)), "it has expired");
        assert_eq!(index.flights(), 1);
    }

    #[test]
    fn the_highest_row_wins() {
        let index = Index::new(10);
        let key = digest(1);
        index.merge(&key, slot(5, 10, Kind::Done), true);
        index.merge(&key, slot(4, 20, Kind::Failed), true);
        index.merge(&key, slot(5, 20, Kind::Failed), false);
        assert_eq!(index.look(&key, 0).0, Some(slot(5, 10, Kind::Done)));
        index.merge(&key, slot(6, 20, Kind::Forgotten), true);
        index.merge(&key, slot(6, 20, Kind::Failed), true);
        index.merge(&key, slot(6, 20, Kind::Forgotten), true);
        assert!(matches!(index.begin(&key, EventId::new(), false, 0), Begin::Fresh(_)));
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn the_nearest_expiry_goes_first() {
        let index = Index::new(128);
        (0..130).for_each(|n| index.merge(&digest(n), slot(u64::from(n) + 1, 100 + n, Kind::Done), true));
        assert!(index.is_over());
        assert_eq!(index.evict(), Some(Evicted { records: 4, before: 103 }));
        assert_eq!((index.len(), index.look(&digest(3), 0).0.is_none(), index.look(&digest(4), 0).0.is_some()), (126, true, true));
        assert_eq!(index.evict(), None);
        let same = Index::new(64);
        (0..70).for_each(|n| same.merge(&digest(n), slot(u64::from(n) + 1, 100, Kind::Done), true));
        assert_eq!(same.evict(), Some(Evicted { records: 7, before: 100 }));
        assert_eq!(same.len(), 63);
    }

    #[test]
    fn a_sweep_drops_what_has_expired() {
        let index = Index::new(1000);
        (0..100).for_each(|n| index.merge(&digest(n), slot(1, n, Kind::Done), true));
        assert_eq!((index.sweep(49), index.len()), (50, 50));
    }
}
