//! Takes the secret that a provider hands over by handshake, once, while an operator waits for it.
//!
//! `hooklatch pair ROUTE` arms a route for ten minutes. The first handshake that brings a secret is kept in a file of its own in the
//! state directory, for the owner alone, and on the disk before the handshake is answered; then the policy is read anew, and the route
//! verifies by it. At any other time such a handshake is none. The secret never stands in a log, an error or an answer of the API.

use std::{
    collections::HashMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::{
    admin::Reload,
    clock::Mono,
    reject::{Reason, Reject},
};

/// How long a route stays armed.
pub(crate) const WINDOW: Duration = Duration::from_secs(600);
/// The folder in the state directory.
const FOLDER: &str = "paired";
/// The most secrets of one route, as many as it may verify by.
const MAX_SECRETS: usize = 16;
/// How long a handshake's answer waits for the policy that knows its secret.
const RELOAD: Duration = Duration::from_secs(5);

/// The file of a route's secrets, a line each, relative to the state directory.
pub(crate) fn file(route: &str) -> String {
    format!("{FOLDER}/{route}.secret")
}

/// Which routes are armed, and what came of it.
pub(crate) struct Pairings {
    state_dir: PathBuf,
    routes: Mutex<HashMap<String, Pairing>>,
    reload: OnceLock<Reload>,
}

#[derive(Clone, Copy, Debug)]
struct Pairing {
    until: Mono,
    /// Whether the secrets so far go on verifying.
    add: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// A secret came and is being kept.
    Taking,
    Paired {
        in_force: bool,
    },
}

/// What can be said of a route's pairing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It was not armed, or not since the gate started.
    Idle,
    Waiting {
        left: Duration,
    },
    /// The secret is kept; `in_force`: the route verifies by it.
    Paired {
        in_force: bool,
    },
    /// Nothing came in time.
    Expired,
}

impl Status {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting { .. } => "waiting",
            Self::Paired { .. } => "paired",
            Self::Expired => "expired",
        }
    }
}

impl Pairings {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), routes: Mutex::default(), reload: OnceLock::new() }
    }

    /// Says how the policy is read anew.
    pub(crate) fn reload_by(&self, reload: Reload) {
        let _ = self.reload.set(reload); // the first one stays
    }

    /// Where a route's secrets are kept.
    pub(crate) fn path(&self, route: &str) -> PathBuf {
        self.state_dir.join(file(route))
    }

    fn routes(&self) -> MutexGuard<'_, HashMap<String, Pairing>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on for [`WINDOW`] the next secret that the route's provider hands over is taken; `add`: beside those that it has.
    pub(crate) fn arm(&self, route: &str, add: bool, now: Mono) {
        self.routes().insert(route.to_owned(), Pairing { until: now.plus(WINDOW), add, stage: Stage::Waiting });
        info!(route, "waiting for a secret by handshake");
    }

    /// Takes nothing any more, unless it came already.
    pub(crate) fn cancel(&self, route: &str) {
        let mut routes = self.routes();
        if routes.get(route).is_some_and(|pairing| pairing.stage == Stage::Waiting) {
            routes.remove(route);
        }
    }

    pub(crate) fn armed(&self, route: &str, now: Mono) -> bool {
        self.routes().get(route).is_some_and(|pairing| pairing.stage == Stage::Waiting && now < pairing.until)
    }

    pub(crate) fn status(&self, route: &str, now: Mono) -> Status {
        match self.routes().get(route) {
            None => Status::Idle,
            Some(Pairing { stage: Stage::Paired { in_force }, .. }) => Status::Paired { in_force: *in_force },
            Some(Pairing { stage: Stage::Waiting, until, .. }) if now >= *until => Status::Expired,
            Some(Pairing { until, .. }) => Status::Waiting { left: until.since(now) },
        }
    }

    /// Keeps a secret for an armed route; returns once it is on the disk and, if that goes well, in force.
    ///
    /// Errors: [`Reason::SignatureMissing`] where the route is not armed any more, [`Reason::StoreFailed`] where the file cannot be
    /// written: then the route stays armed.
    pub(crate) async fn take(self: &Arc<Self>, route: &str, secret: Zeroizing<Vec<u8>>, now: Mono) -> Result<(), Reject> {
        let add = {
            let mut routes = self.routes();
            match routes.get_mut(route).filter(|pairing| pairing.stage == Stage::Waiting && now < pairing.until) {
                Some(pairing) => {
                    pairing.stage = Stage::Taking;
                    pairing.add
                }
                None => return Err(Reject::new(Reason::SignatureMissing, "a secret was handed over, and nobody waits for one")),
            }
        };
        let (this, route) = (self.clone(), route.to_owned());
        // A task of its own: the provider may hang up, and what was begun has to end.
        let kept = tokio::spawn(async move { this.keep(route, secret, add).await }).await;
        kept.unwrap_or_else(|_| Err(io::Error::other("keeping it panicked")))
            .map_err(|why| Reject::new(Reason::StoreFailed, format!("the secret that was handed over cannot be kept: {why}")))
    }

    async fn keep(&self, route: String, secret: Zeroizing<Vec<u8>>, add: bool) -> io::Result<()> {
        let path = self.path(&route);
        let written = tokio::task::spawn_blocking(move || write(&path, &secret, add)).await.unwrap_or_else(|why| Err(io::Error::other(why)));
        let stage = |stage: Stage| {
            if let Some(pairing) = self.routes().get_mut(&route) {
                pairing.stage = stage;
            }
        };
        if let Err(why) = written {
            error!(route, %why, "a secret came by handshake and cannot be kept");
            stage(Stage::Waiting);
            return Err(why);
        }
        let in_force = match self.reload.get() {
            None => false,
            Some(reload) => matches!(tokio::time::timeout(RELOAD, reload()).await, Ok(Ok(_))),
        };
        if in_force {
            info!(route, "a secret came by handshake and is in force");
        } else {
            warn!(route, "a secret came by handshake and is kept; it comes into force once the policy can be read anew");
        }
        stage(Stage::Paired { in_force });
        Ok(())
    }
}

/// Writes the file anew beside the old one and puts it in its place, all of it on the disk before this returns.
fn write(path: &Path, secret: &[u8], add: bool) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut text = Zeroizing::new(Vec::new());
    if add {
        match File::open(path) {
            Ok(mut old) => drop(old.read_to_end(&mut text)?),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(why),
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        if text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() >= MAX_SECRETS {
            return Err(io::Error::other(format!("{} holds {MAX_SECRETS} secrets already: remove those that are out of use", path.display())));
        }
    }
    if !text.split(|byte| *byte == b'\n').any(|line| line == secret) {
        text.extend_from_slice(secret);
        text.push(b'\n');
    }
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::Clock;

    fn secret(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn one_secret_is_taken_in_ten_minutes() {
        let dir = tempfile::tempdir().expect("a folder");
        let (pairings, clock) = (Arc::new(Pairings::new(dir.path())), Clock::hand(0));
        let read = || std::fs::read_to_string(pairings.path("asana")).unwrap_or_default();
        let take = |text: &str| pairings.take("asana", secret(text), clock.mono());
        assert_eq!(pairings.status("asana", clock.mono()), Status::Idle);
        assert_eq!(take("early").await.map_err(|why| why.reason), Err(Reason::SignatureMissing));
        pairings.arm("asana", false, clock.mono());
        clock.advance(WINDOW - Duration::from_secs(1));
        assert!(pairings.armed("asana", clock.mono()) && !pairings.armed("notion", clock.mono()));
        assert_eq!(pairings.status("asana", clock.mono()), Status::Waiting { left: Duration::from_secs(1) });
        assert_eq!(take("first").await, Ok(()));
        assert_eq!(take("second").await.map_err(|why| why.reason), Err(Reason::SignatureMissing), "once");
        assert_eq!(pairings.status("asana", clock.mono()), Status::Paired { in_force: false });
        assert_eq!(read(), "first\n");
        assert_eq!(std::fs::metadata(pairings.path("asana")).expect("a file").permissions().mode() & 0o777, 0o600);
        pairings.arm("asana", true, clock.mono());
        assert_eq!(take("second").await, Ok(()));
        assert_eq!(read(), "first\nsecond\n");
        pairings.arm("asana", false, clock.mono());
        assert_eq!(take("third").await, Ok(()));
        assert_eq!(read(), "third\n");
        pairings.arm("asana", false, clock.mono());
        clock.advance(WINDOW);
        assert_eq!(take("late").await.map_err(|why| why.reason), Err(Reason::SignatureMissing));
        assert_eq!(pairings.status("asana", clock.mono()), Status::Expired);
        pairings.cancel("asana");
        assert_eq!(pairings.status("asana", clock.mono()), Status::Idle);
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FOLDER), "a file where the folder should be").expect("write");
        let (pairings, clock) = (Arc::new(Pairings::new(dir.path())), Clock::hand(0));
        pairings.arm("asana", false, clock.mono());
        assert_eq!(pairings.take("asana", secret("s"), clock.mono()).await.map_err(|why| why.reason), Err(Reason::StoreFailed));
        assert!(pairings.armed("asana", clock.mono()), "the provider may try again");
    }
}
