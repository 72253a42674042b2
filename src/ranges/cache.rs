//! The last good list of each provider, in the state directory: what holds from the next start on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Feed, Known, Origin, folder};

/// The most that a cache file may hold, in bytes; a longer one is passed over.
const MAX_FILE: u64 = 8 << 20;

/// What one page said, and the marks by which it is asked for changes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) url: String,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    #[serde(with = "super::set::texts")]
    pub(super) networks: Vec<IpNet>,
}

#[derive(Debug, Deserialize, Serialize)]
struct File {
    version: u32,
    fetched_ms: i64,
    parts: Vec<Part>,
}

impl Part {
    #[cfg(test)]
    pub(super) fn of(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }
}

pub(super) fn file(state_dir: &Path, name: &str) -> PathBuf {
    folder(state_dir).join(format!("{name}.json"))
}

/// The parts of a feed's cache; nothing where it is of other pages or cannot be read.
pub(super) fn parts(path: &Path, feed: &Feed) -> Option<(i64, Vec<Part>)> {
    if fs::metadata(path).ok()?.len() > MAX_FILE {
        return None;
    }
    let file: File = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let same = file.version == 1 && file.parts.iter().map(|part| part.url.as_str()).eq(feed.urls.iter().map(url::Url::as_str));
    (same && file.parts.iter().any(|part| !part.networks.is_empty())).then_some((file.fetched_ms, file.parts))
}

pub(super) fn read(path: &Path, feed: &Feed) -> Option<Known> {
    let (at_ms, parts) = parts(path, feed)?;
    Some(Known::new(parts.into_iter().flat_map(|part| part.networks).collect(), Origin::Cache, Some(at_ms)))
}

/// Replaces the file as a whole: whoever reads it sees the old or the new one.
pub(super) fn write(path: &Path, fetched_ms: i64, parts: &[Part]) -> io::Result<()> {
    use std::io::Write;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let text = serde_json::to_vec(&File { version: 1, fetched_ms, parts: parts.to_vec() })?;
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
