//! One process per state folder: a lock file that holds the owner's process id, beside the store's own lock.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use super::OpenError;

/// The lock file's name. It is never deleted: the lock is on the open file, not on its being there.
const FILE: &str = "lock";

/// Held until dropped; the system frees it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] Option<File>);

impl Lock {
    /// For media without a folder.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Takes the folder, at once or not at all.
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(|why| OpenError::new(dir, format!("cannot be made as the state directory: {why}")))?;
        let path = dir.join(FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|why| OpenError::new(dir, format!("cannot be used as the state directory: {} cannot be written: {why}", path.display())))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let owner = match file.read_to_string(&mut owner) {
                    Ok(_) if owner.trim().bytes().all(|b| b.is_ascii_digit()) && !owner.trim().is_empty() => format!("process {}", owner.trim()),
                    _ => "another process".to_owned(),
                };
                return Err(OpenError::new(dir, format!("is in use by {owner}: stop it, or give this one a `path` of its own in [state]")));
            }
            Err(TryLockError::Error(why)) => return Err(OpenError::new(&path, format!("cannot be locked: {why}"))),
        }
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|why| OpenError::new(&path, format!("cannot be written: {why}")))?;
        Ok(Self(Some(file)))
    }
}
