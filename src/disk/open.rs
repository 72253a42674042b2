//! Opening the file: made once and for all, checked, never replaced.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use rand::{TryRng, rngs::SysRng};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError, TableError, TableHandle};
use tracing::info;

use super::{CHECK_BELOW, META, NUMBERS, OpenError, Rooms, lock::Lock, panic_text};
use crate::clock::Clock;

/// Version of everything that is in the file; another one is refused.
const FORMAT: u32 = 1;
const FORMAT_NAME: &str = "format";
const DIGEST_KEY_NAME: &str = "digest_key";
/// Memory for pages.
const CACHE: usize = 64 << 20;

/// Where the bytes live: files, or a model disk in tests.
pub(crate) trait Media: Send + Sync + 'static {
    fn lock(&self, dir: &Path) -> Result<Lock, OpenError>;
    /// Makes the file if there is none.
    fn prepare(&self, path: &Path) -> Result<(), OpenError>;
    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError>;
    /// After a failed write or sync: writes the whole file anew and syncs it.
    ///
    /// The system counts pages as clean after a failed sync although they are not on the disk, and shows them to whoever opens the file. A
    /// commit on top of them would be synced without them.
    fn settle(&self, path: &Path) -> io::Result<()>;
    fn length(&self, path: &Path) -> u64;
}

/// The file system.
#[derive(Debug)]
pub(crate) struct Files;

impl Media for Files {
    fn lock(&self, dir: &Path) -> Result<Lock, OpenError> {
        Lock::take(dir)
    }

    /// A new file is made whole under another name and then renamed, so that an empty or half a file under the right name is always
    /// damage, and never taken for a new store.
    fn prepare(&self, path: &Path) -> Result<(), OpenError> {
        match path.try_exists() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(why) => return Err(OpenError::new(path, format!("cannot be looked at: {why}"))),
        }
        let draft = path.with_extension("new");
        let failed = |why: &dyn std::fmt::Display| OpenError::new(path, format!("cannot be made: {why}"));
        // Only a crash in these few lines leaves one; it never held anything.
        match std::fs::remove_file(&draft) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(failed(&why)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        drop(options.open(&draft).map_err(|why| failed(&why))?);
        let database = Builder::new().set_cache_size(CACHE).create(&draft).map_err(|why| failed(&why))?;
        found(&database).map_err(|why| failed(&why))?;
        database.close().map_err(|why| failed(&why))?;
        std::fs::rename(&draft, path).map_err(|why| failed(&why))?;
        sync_folder(path).map_err(|why| failed(&why))?;
        info!(path = %path.display(), "a new state file was made");
        Ok(())
    }

    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        builder.open(path)
    }

    fn settle(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            file.seek(SeekFrom::Start(at))?;
            let read = file.read(&mut piece)?;
            if read == 0 {
                return file.sync_all();
            }
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&piece[..read])?;
            at += read as u64;
        }
    }

    fn length(&self, path: &Path) -> u64 {
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    }
}

/// A new name is only durable when its folder was synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes the first facts into an empty file.
pub(super) fn found(database: &Database) -> Result<(), redb::Error> {
    let mut key = [0u8; 32];
    SysRng.try_fill_bytes(&mut key).map_err(|why| redb::Error::Io(io::Error::other(format!("no random bytes: {why}"))))?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT_NAME, FORMAT.to_le_bytes().as_slice())?;
        meta.insert(DIGEST_KEY_NAME, key.as_slice())?;
        meta.insert(NUMBERS, 1u64.to_le_bytes().as_slice())?;
    }
    transaction.commit()?;
    Ok(())
}

pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) digest_key: [u8; 32],
    /// The first batch number that was never given out.
    pub(super) number: u64,
}

/// Opens and checks the file and lets the rooms read it. `known` is the digest key of the file that was open before.
pub(super) fn open<R: Rooms>(media: &dyn Media, path: &Path, known: Option<&[u8; 32]>, rooms: &R) -> Result<Opened, OpenError> {
    let length = media.length(path);
    if length == 0 {
        return Err(OpenError::damaged(path, "it is empty"));
    }
    let opening = || {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        builder.set_check_integrity_on_open(length < CHECK_BELOW);
        let (clock, tenths) = (Clock::system(), AtomicU8::new(0));
        let started = clock.mono();
        let shown = path.to_owned();
        builder.set_repair_callback(move |repair| {
            let now = (repair.progress() * 10.0) as u8;
            // Also asked at every orderly start: it is worth a line only where somebody waits for it.
            if tenths.swap(now, Ordering::Relaxed) != now && clock.mono().since(started) > Duration::from_secs(1) {
                info!(path = %shown.display(), percent = now * 10, "checking the state file");
            }
        });
        media.open(&builder, path)
    };
    let database = match catch_unwind(AssertUnwindSafe(opening)) {
        Ok(Ok(database)) => database,
        Ok(Err(why)) => return Err(explain(path, why)),
        Err(panic) => return Err(OpenError::damaged(path, panic_text(&*panic))),
    };
    let reading = || -> Result<Result<Opened, OpenError>, redb::Error> {
        let tables = database.begin_read()?;
        let meta = match tables.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => {
                let names: Vec<String> = tables.list_tables()?.map(|table| table.name().to_owned()).collect();
                return Ok(Err(OpenError::damaged(path, format!("it is no hooklatch state file (tables: {})", names.join(", ")))));
            }
            Err(why) => return Err(why.into()),
        };
        let fact = |name: &str| -> Result<Vec<u8>, redb::Error> { Ok(meta.get(name)?.map_or_else(Vec::new, |value| value.value().to_vec())) };
        let format = fact(FORMAT_NAME)?.try_into().map(u32::from_le_bytes).unwrap_or(0);
        if format != FORMAT {
            let why = format!("has format {format}, and this program reads format {FORMAT}: use the release that wrote it");
            return Ok(Err(OpenError::new(path, why)));
        }
        let Ok(digest_key) = <[u8; 32]>::try_from(fact(DIGEST_KEY_NAME)?) else {
            return Ok(Err(OpenError::damaged(path, "its digest key is missing")));
        };
        if known.is_some_and(|known| *known != digest_key) {
            return Ok(Err(OpenError::new(path, "is another file than the one this process began with: put the right one back, or restart")));
        }
        let Ok(number) = fact(NUMBERS)?.try_into().map(u64::from_le_bytes) else {
            return Ok(Err(OpenError::damaged(path, "its batch number is missing")));
        };
        rooms.opened(&tables)?;
        drop(meta);
        drop(tables);
        Ok(Ok(Opened { database, digest_key, number }))
    };
    match catch_unwind(AssertUnwindSafe(reading)) {
        Ok(Ok(opened)) => opened,
        Ok(Err(redb::Error::Io(why))) => Err(OpenError::new(path, format!("cannot be read: {why}"))),
        Ok(Err(why)) => Err(OpenError::damaged(path, why)),
        Err(panic) => Err(OpenError::damaged(path, panic_text(&*panic))),
    }
}

fn explain(path: &Path, why: DatabaseError) -> OpenError {
    match why {
        DatabaseError::DatabaseAlreadyOpen => OpenError::new(path, "is in use by another process: stop it, or give this one a `path` of its own in [state]"),
        DatabaseError::Storage(StorageError::Io(why)) if why.kind() == io::ErrorKind::InvalidData => OpenError::damaged(path, why),
        DatabaseError::Storage(StorageError::Io(why)) if why.kind() == io::ErrorKind::UnexpectedEof => OpenError::damaged(path, why),
        DatabaseError::Storage(StorageError::Corrupted(why)) => OpenError::damaged(path, why),
        DatabaseError::UpgradeRequired(version) => OpenError::new(path, format!("is in the store's old format {version}: use the release that wrote it")),
        why => OpenError::new(path, format!("cannot be opened: {why}")),
    }
}
