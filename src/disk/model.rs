//! A disk for tests that can lose power, fail a sync, run full, and forget: what was not synced may be gone, in any part.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use redb::{Builder, Database, DatabaseError, StorageBackend};

use super::{Media, OpenError, guard, lock::Lock, open::found};

/// One file on a disk; cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Model(Arc<Mutex<Platter>>, Arc<(Mutex<bool>, Condvar)>);

#[derive(Debug, Default)]
struct Platter {
    /// What reads see.
    cached: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    /// Since the last sync, in order.
    pending: Vec<Write>,
    syncs: u64,
    failing_syncs: u64,
    failing_writes: bool,
    /// The control: a sync says yes and does nothing.
    lying: bool,
    /// The control: reopening trusts what the cache shows after a failed sync.
    no_settling: bool,
}

#[derive(Clone, Debug)]
enum Write {
    At(usize, Vec<u8>),
    Length(usize),
}

impl Write {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Length(len) => to.resize(*len, 0),
            Self::At(at, data) => {
                if to.len() < at + data.len() {
                    to.resize(at + data.len(), 0);
                }
                to[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self(Arc::default(), Arc::default())
    }

    /// The disk after a power cut: everything synced, and of the rest what the seed's bits say, the last of it torn at a sector.
    pub(crate) fn cut(&self, seed: u64) -> Self {
        let platter = guard(&self.0);
        let mut left = platter.durable.clone();
        let mut bits = seed;
        for write in &platter.pending {
            // xorshift: every seed another part.
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            match (seed, bits % 3, write) {
                (0, ..) | (_, 0, _) => {}
                (_, 1, Write::At(at, data)) => Write::At(*at, data[..(data.len() / 2).next_multiple_of(512).min(data.len())].to_vec()).apply(&mut left),
                (_, _, write) => write.apply(&mut left),
            }
        }
        Self(Arc::new(Mutex::new(Platter { cached: left.clone(), durable: left, ..Platter::default() })), Arc::default())
    }

    pub(crate) fn fail_syncs(&self, count: u64) {
        guard(&self.0).failing_syncs = count;
    }

    /// Syncs wait until they are let go.
    pub(crate) fn hold(&self, held: bool) {
        *guard(&self.1.0) = held;
        self.1.1.notify_all();
    }

    pub(crate) fn fail_writes(&self, failing: bool) {
        guard(&self.0).failing_writes = failing;
    }

    pub(crate) fn lie(&self) {
        guard(&self.0).lying = true;
    }

    pub(crate) fn trust_the_cache(&self) {
        guard(&self.0).no_settling = true;
    }

    pub(crate) fn syncs(&self) -> u64 {
        guard(&self.0).syncs
    }

    pub(crate) fn len(&self) -> usize {
        guard(&self.0).cached.len()
    }
}

impl Media for Model {
    fn lock(&self, _: &Path) -> Result<Lock, OpenError> {
        Ok(Lock::none())
    }

    fn prepare(&self, path: &Path) -> Result<(), OpenError> {
        if self.len() > 0 {
            return Ok(());
        }
        let database = self.open(&Builder::new(), path).map_err(|why| OpenError::new(path, why.to_string()))?;
        found(&database).map_err(|why| OpenError::new(path, why.to_string()))
    }

    fn open(&self, builder: &Builder, _: &Path) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.clone())
    }

    fn settle(&self, _: &Path) -> io::Result<()> {
        let whole = {
            let platter = guard(&self.0);
            if platter.no_settling {
                return Ok(());
            }
            platter.cached.clone()
        };
        let written = self.write(0, &whole).and_then(|()| self.sync_data());
        written.map_err(|_| io::Error::other("injected"))
    }

    fn length(&self, _: &Path) -> u64 {
        self.len() as u64
    }
}

impl StorageBackend for Model {
    fn len(&self) -> io::Result<u64> {
        Ok(Self::len(self) as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = guard(&self.0);
        let at = offset as usize;
        out.copy_from_slice(platter.cached.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        guard(&self.0).change(Write::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        drop(self.1.1.wait_while(guard(&self.1.0), |held| *held).unwrap_or_else(PoisonError::into_inner));
        let mut platter = guard(&self.0);
        platter.syncs += 1;
        if platter.failing_syncs > 0 {
            platter.failing_syncs -= 1;
            // As Linux does it: the pages count as clean from now on, whatever is on the disk.
            platter.pending.clear();
            return Err(io::Error::other("injected: no sync"));
        }
        if platter.lying {
            return Ok(());
        }
        let pending = std::mem::take(&mut platter.pending);
        pending.iter().for_each(|write| write.apply(&mut platter.durable));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        guard(&self.0).change(Write::At(offset as usize, data.to_vec()))
    }
}

impl Platter {
    fn change(&mut self, write: Write) -> io::Result<()> {
        if self.failing_writes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        write.apply(&mut self.cached);
        self.pending.push(write);
        Ok(())
    }
}
