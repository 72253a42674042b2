//! Which of the policy's files changed: the policy itself, certificates, secrets, schemas, filters.
//!
//! The folders are watched rather than the files (Kubernetes swaps a symlink, editors rename), and every 30 s the files are looked
//! at all the same, for file systems that tell nothing. A change counts once the files have been still for 200 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// How long the files must be still before a change counts.
const STILL: Duration = Duration::from_millis(200);
/// How often the files are looked at where nothing was told.
const LOOK: Duration = Duration::from_secs(30);

/// What a file was when it was last looked at; `None`: not there.
type Print = Option<(u64, i64, i64, u64)>;

pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    told: mpsc::Receiver<()>,
    folders: BTreeSet<PathBuf>,
    prints: BTreeMap<PathBuf, Print>,
    /// A change was seen and not yet told: who waits may stop waiting at any time.
    due: bool,
}

impl Watch {
    /// Starts to watch; without a notifying file system only by looking.
    pub(crate) fn new(files: &BTreeSet<PathBuf>) -> Self {
        let (tell, told) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is told as well; only what may change its bytes counts.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = tell.try_send(()); // full: a look is due already
            }
        })
        .ok();
        let mut watch = Self { watcher, told, folders: BTreeSet::new(), prints: BTreeMap::new(), due: false };
        watch.follow(files);
        watch
    }

    /// Takes the files as they are from now on: to be called before they are read, so that a change during the reading is noticed.
    pub(crate) fn look(&mut self) {
        self.prints.iter_mut().for_each(|(file, seen)| *seen = print(file));
        self.due = false;
    }

    /// Watches these files from now on. Those that were watched before are taken as they were last seen, not as they are by now.
    pub(crate) fn follow(&mut self, files: &BTreeSet<PathBuf>) {
        let folders: BTreeSet<PathBuf> = files.iter().flat_map(|file| folders_of(file)).collect();
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                let _ = watcher.unwatch(gone); // the folder may be gone itself
            }
            for new in folders.difference(&self.folders) {
                let _ = watcher.watch(new, RecursiveMode::NonRecursive); // unwatchable: the look every 30 s remains
            }
        }
        self.folders = folders;
        let mut known = std::mem::take(&mut self.prints);
        self.prints = files.iter().map(|file| (file.clone(), known.remove(file).unwrap_or_else(|| print(file)))).collect();
    }

    /// Waits until a file has changed and all are still again. May be dropped and called again: no change is lost.
    pub(crate) async fn changed(&mut self) {
        loop {
            loop {
                let now: BTreeMap<PathBuf, Print> = self.prints.keys().map(|file| (file.clone(), print(file))).collect();
                if now == self.prints {
                    break;
                }
                self.due = true;
                self.prints = now;
                tokio::time::sleep(STILL).await;
                while self.told.try_recv().is_ok() {}
            }
            if std::mem::take(&mut self.due) {
                return;
            }
            // A closed channel (no watcher) never tells: wait for the look alone.
            let told = async {
                if self.told.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(LOOK, told).await;
        }
    }
}

/// The folder of the file, and the folder of what it links to.
fn folders_of(file: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_owned() });
    let mut folders: Vec<PathBuf> = parent(file).into_iter().collect();
    if let Some(real) = fs::canonicalize(file).ok().as_deref().and_then(parent)
        && fs::canonicalize(&folders[0]).ok().as_ref() != Some(&real)
    {
        folders.push(real);
    }
    folders
}

fn print(file: &Path) -> Print {
    let meta = fs::metadata(file).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_and_a_swapped_link_too() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, two, link) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("link"));
        fs::write(&one, "1").expect("write");
        fs::write(&two, "22").expect("write");
        std::os::unix::fs::symlink(&one, &link).expect("link");
        let mut watch = Watch::new(&BTreeSet::from([link.clone()]));
        fs::write(&one, "changed").expect("write");
        watch.changed().await;
        let fresh = dir.path().join("fresh");
        std::os::unix::fs::symlink(&two, &fresh).expect("link");
        fs::rename(&fresh, &link).expect("swap");
        watch.changed().await;
        fs::remove_file(&link).expect("remove");
        watch.changed().await;
    }

    #[tokio::test]
    async fn a_change_while_the_files_are_read_is_not_lost() {
        let dir = tempfile::tempdir().expect("a folder");
        let [policy, secret] = ["policy", "secret"].map(|name| dir.path().join(name));
        fs::write(&policy, "1").expect("write");
        let mut watch = Watch::new(&BTreeSet::from([policy.clone()]));
        // A reload: it looks, it reads, and then it follows what the policy names.
        watch.look();
        fs::write(&policy, "half of it was read before this").expect("write");
        watch.follow(&BTreeSet::from([policy, secret]));
        tokio::time::timeout(Duration::from_secs(20), watch.changed()).await.expect("the change counts");
    }
    #[tokio::test]
    async fn a_change_is_not_lost_when_its_wait_is_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "1").expect("write");
        let mut watch = Watch::new(&BTreeSet::from([file.clone()]));
        fs::write(&file, "22").expect("write");
        // It sees the change and waits for stillness; then it is dropped, as by a timer beside it.
        assert!(futures_util::FutureExt::now_or_never(watch.changed()).is_none());
        watch.changed().await;
    }
}
