//! What the state keeps in the file: replay rows by expiry hour, filter values; how it gets there and back.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::{
    index::{Index, Slot},
    kv::{Namespaces, Written},
    record::{self, Digest, Draft, Rows, Stored},
};
use crate::{
    clock::{Clock, Now},
    disk::Rooms,
    event::EventId,
};

const REPLAY: TableDefinition<'static, (u32, u64), &[u8]> = TableDefinition::new("replay");
const ANSWERS: TableDefinition<'static, (u32, u64), &[u8]> = TableDefinition::new("replay_answers");
const KV: TableDefinition<'static, (&str, &str), (u64, &[u8])> = TableDefinition::new("kv");

/// Rows that one commit sweeps: 256 of each table take some milliseconds.
const SWEEP_ROWS: usize = 256;
/// The lower bits of a row's number: which part of the batch.
const PART_BITS: u32 = 16;

const MS_PER_HOUR: i64 = 3_600_000;

/// Seconds of the monotonic clock, as the index counts.
pub(super) fn mono_secs(now: Now) -> u32 {
    u32::try_from(now.mono.0 / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Hours since 1970.
pub(super) fn hour_of(unix_secs: u32) -> u32 {
    unix_secs / 3600
}

pub(super) fn unix_secs(wall_ms: i64) -> u32 {
    u32::try_from(wall_ms.max(0).saturating_add(999) / 1000).unwrap_or(u32::MAX)
}

/// What one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    parts: Vec<Part>,
    kv: HashMap<(Box<str>, Box<str>), Written>,
}

#[derive(Debug)]
struct Part {
    hour: u32,
    /// The last expiry of its records, in seconds of the monotonic clock.
    expires: u32,
    rows: Rows,
}

impl Batch {
    /// Adds a record; says its bytes and its row, which is never below `after`: the key's record before this one.
    pub(super) fn push(&mut self, number: u64, draft: &Draft<'_>, expires: u32, after: u64) -> (usize, u64) {
        let hour = hour_of(draft.expires_unix);
        let at = match self.parts.iter().rposition(|part| part.hour == hour && !part.rows.is_full()) {
            Some(at) if row_number(number, at) >= after => at,
            _ => {
                self.parts.push(Part { hour, expires: 0, rows: Rows::new() });
                self.parts.len() - 1
            }
        };
        let part = &mut self.parts[at];
        part.expires = part.expires.max(expires);
        (part.rows.push(draft), row_number(number, at))
    }

    pub(super) fn put(&mut self, namespace: &str, key: &str, written: Written) -> usize {
        let bytes = namespace.len() + key.len() + written.as_ref().map_or(0, |(_, value)| value.len()) + 64;
        self.kv.insert((namespace.into(), key.into()), written);
        bytes
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.kv.is_empty()
    }

    /// The record of a digest in a part of this batch that is not written yet.
    pub(super) fn find(&self, row: u64, digest: &Digest) -> Option<Found> {
        let part = self.parts.get((row & ((1 << PART_BITS) - 1)) as usize)?;
        find(&part.rows.entries, || Ok(Some(part.rows.answers.clone())), digest, false).ok().flatten()
    }
}

fn row_number(number: u64, part: usize) -> u64 {
    number << PART_BITS | part as u64
}

/// The batch that a row belongs to.
pub(super) fn batch_of(row: u64) -> u64 {
    row >> PART_BITS
}

/// A record as it was stored.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) event_id: EventId,
    pub(super) attempts: u16,
    pub(super) done_branches: Vec<Box<str>>,
    pub(super) answer: Option<Stored>,
}

/// The last entry of a digest in a row; its answer is looked up only when it has one.
fn find(row: &[u8], answers: impl FnOnce() -> Result<Option<Vec<u8>>, redb::Error>, digest: &Digest, sealed: bool) -> Result<Option<Found>, redb::Error> {
    let mut last = None;
    for entry in record::entries(row, sealed)? {
        let entry = entry?;
        if entry.digest == *digest {
            last = Some(entry);
        }
    }
    let Some(entry) = last else { return Ok(None) };
    let answer = match &entry.answer {
        Some(at) => match answers()? {
            Some(row) => Some(record::answer(&row, sealed, at.clone(), entry.event_id)?),
            None => None,
        },
        None => None,
    };
    Ok(Some(Found { event_id: entry.event_id, attempts: entry.attempts, done_branches: entry.done_branches(), answer }))
}

/// Reads a record from its row in the file.
pub(super) fn read(tables: &ReadTransaction, slot: Slot, digest: &Digest) -> Result<Option<Found>, redb::Error> {
    let key = (slot.hour(), slot.row);
    let Some(row) = tables.open_table(REPLAY)?.get(key)? else { return Ok(None) };
    let answers = || Ok(tables.open_table(ANSWERS)?.get(key)?.map(|row| row.value().to_vec()));
    find(row.value(), answers, digest, true)
}

#[cfg(test)]
pub(super) fn count(tables: &ReadTransaction) -> Result<(u64, u64), redb::Error> {
    use redb::ReadableTableMetadata;
    Ok((tables.open_table(REPLAY)?.len()?, tables.open_table(ANSWERS)?.len()?))
}

/// Everything in memory, and how it is written.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) index: Index,
    pub(super) kv: Mutex<Namespaces>,
    clock: Clock,
    /// Expiry hours that have rows, each with the last expiry of its records in seconds of the monotonic clock.
    hours: Mutex<BTreeMap<u32, u32>>,
    sweeps: Mutex<VecDeque<Sweep>>,
    /// The commit under way takes the last rows of the first sweep.
    sweep_ends: AtomicBool,
    /// The highest batch number that is in the file.
    highest: AtomicU64,
    loaded: AtomicBool,
}

/// An hour to be taken from the file; rows from `below` on were written after it had expired.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    hour: u32,
    below: u64,
}

impl Store {
    pub(super) fn new(max_records: usize, clock: Clock) -> Self {
        Self {
            index: Index::new(max_records),
            kv: Mutex::default(),
            clock,
            hours: Mutex::default(),
            sweeps: Mutex::default(),
            sweep_ends: AtomicBool::new(false),
            highest: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
        }
    }

    /// Lines up every hour whose records have all expired before `limit`, in seconds of the monotonic clock; says how many.
    pub(super) fn line_up(&self, limit: u32) -> usize {
        let mut hours = guard(&self.hours);
        let due: Vec<u32> = hours.iter().filter(|(_, expires)| **expires < limit).map(|(hour, _)| *hour).collect();
        let below = row_number(self.highest.load(Ordering::Acquire) + 1, 0);
        let mut sweeps = guard(&self.sweeps);
        for hour in &due {
            hours.remove(hour);
            sweeps.push_back(Sweep { hour: *hour, below });
        }
        due.len()
    }

    fn sweep_some(&self, tables: &WriteTransaction) -> Result<(), redb::Error> {
        let Some(sweep) = guard(&self.sweeps).front().copied() else { return Ok(()) };
        let range = || (sweep.hour, 0)..(sweep.hour, sweep.below);
        let mut ends = true;
        for table in [REPLAY, ANSWERS] {
            let mut table = tables.open_table(table)?;
            let gone = table.extract_from_if(range(), |_, _| true)?.take(SWEEP_ROWS).try_fold(0, |n, row| row.map(|_| n + 1))?;
            ends &= gone < SWEEP_ROWS;
        }
        self.sweep_ends.store(ends, Ordering::Release);
        Ok(())
    }

    /// `first`: at the start. After a failure the memory's expiry, by the monotonic clock, stands.
    fn load_replay(&self, tables: &ReadTransaction, now: Now, first: bool) -> Result<(), redb::Error> {
        let table = match tables.open_table(REPLAY) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(why) => return Err(why.into()),
        };
        let this_hour = u32::try_from(now.wall_ms.max(0) / MS_PER_HOUR).unwrap_or(u32::MAX);
        let (wall, mono) = (u32::try_from(now.wall_ms.max(0) / 1000).unwrap_or(u32::MAX), mono_secs(now));
        for row in table.iter()? {
            let (key, row) = row?;
            let (hour, number) = key.value();
            self.highest.fetch_max(batch_of(number), Ordering::AcqRel);
            if hour < this_hour {
                guard(&self.hours).entry(hour).or_insert(0);
                continue;
            }
            let mut last = 0;
            for entry in record::entries(row.value(), true)? {
                let entry = entry?;
                let left = entry.expires_unix.saturating_sub(wall);
                let expires = mono.saturating_add(left);
                last = last.max(expires);
                if left > 0 {
                    self.index.merge(&entry.digest, Slot::new(number, expires, hour, entry.kind), first);
                }
            }
            let mut hours = guard(&self.hours);
            let known = hours.entry(hour).or_insert(0);
            *known = last.max(*known);
            drop(hours);
            // Bounded memory even where the file holds far more than the bound.
            if self.index.is_well_over() {
                self.index.evict();
            }
        }
        self.index.evict();
        Ok(())
    }

    fn load_kv(&self, tables: &ReadTransaction, now: Now) -> Result<(), redb::Error> {
        let table = match tables.open_table(KV) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(why) => return Err(why.into()),
        };
        let mut kv = guard(&self.kv);
        for row in table.iter()? {
            let (key, value) = row?;
            let ((namespace, key), (expires, value)) = (key.value(), value.value());
            kv.load(namespace, key, value, expires, now);
        }
        Ok(())
    }
}

impl Rooms for Store {
    type Batch = Batch;

    fn opened(&self, tables: &ReadTransaction) -> Result<(), redb::Error> {
        let now = self.clock.now();
        let first = !self.loaded.swap(true, Ordering::AcqRel);
        self.load_replay(tables, now, first)?;
        // After a failure the memory knows better: its changes wait to be written.
        if first { self.load_kv(tables, now) } else { Ok(()) }
    }

    fn write(&self, number: u64, batch: &Batch, tables: &WriteTransaction) -> Result<(), redb::Error> {
        if !batch.parts.is_empty() {
            let mut replay = tables.open_table(REPLAY)?;
            let mut answers = tables.open_table(ANSWERS)?;
            for (at, part) in batch.parts.iter().enumerate() {
                let key = (part.hour, row_number(number, at));
                let write = |table: &mut redb::Table<'_, (u32, u64), &[u8]>, row: &[u8]| -> Result<(), redb::Error> {
                    let mut row = row.to_vec();
                    record::seal(&mut row);
                    table.insert(key, row.as_slice())?;
                    Ok(())
                };
                write(&mut replay, &part.rows.entries)?;
                if part.rows.has_answers() {
                    write(&mut answers, &part.rows.answers)?;
                }
            }
        }
        if !batch.kv.is_empty() {
            let mut kv = tables.open_table(KV)?;
            for ((namespace, key), written) in &batch.kv {
                match written {
                    Some((expires, value)) => drop(kv.insert((&**namespace, &**key), (*expires, &value[..]))?),
                    None => drop(kv.remove((&**namespace, &**key))?),
                }
            }
        }
        self.sweep_some(tables)
    }

    fn committed(&self, number: u64, batch: &Batch) {
        self.highest.fetch_max(number, Ordering::AcqRel);
        if !batch.parts.is_empty() {
            let mut hours = guard(&self.hours);
            for part in &batch.parts {
                let expires = hours.entry(part.hour).or_insert(0);
                *expires = part.expires.max(*expires);
            }
        }
        if self.sweep_ends.swap(false, Ordering::AcqRel) {
            guard(&self.sweeps).pop_front();
        }
    }

    fn wants_more(&self) -> bool {
        !guard(&self.sweeps).is_empty()
    }
}

/// What is guarded here is whole between any two statements that may panic.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
