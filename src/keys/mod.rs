//! Keys that stand elsewhere: key sets, single keys, certificates, and what an authorization server says of a token.
//!
//! A [`Source`] says where; the judging of requests only looks at what is at hand ([`Source::find`], never blocking), and names what
//! it lacks ([`Source::want`]). The pipeline then fetches that once, whatever number of requests ask ([`Want::fetch`]): bounded in
//! size, time and rate, refused for a while after a failure, the last good document kept in memory and on disk. A location is what
//! the policy or a preset names; what a request says only fills in an id, where the scheme checked it first.
//!
//! Never here: what a key proves (`verify/`), how a socket is opened (`egress.rs`, `fetch.rs`).

mod document;
mod remote;
mod settings;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use self::remote::Remote;
pub(crate) use self::{
    document::{Document, Form},
    settings::{Given, Settings},
};
use crate::{clock::Clock, observe::metrics::Metrics};

/// One place that keys come from, as a route binds it.
pub(crate) struct Source(Kind);

enum Kind {
    /// They stand in the policy, by id; `""` is what serves every id.
    Fixed(BTreeMap<String, Arc<Document>>),
    Remote {
        settings: Box<Settings>,
        /// Set when the gate connects it; a command that only reads a policy fetches nothing.
        remote: OnceLock<Arc<Remote>>,
    },
}

/// What is at hand.
#[derive(Debug)]
pub(crate) enum Found {
    Known(Arc<Document>),
    /// Asked for, and the place has none of that id.
    Absent,
    /// It could not be asked.
    Unavailable(String),
}

/// A document to fetch before a request can be judged.
pub(crate) struct Want {
    remote: Arc<Remote>,
    id: String,
}

impl Source {
    /// Keys that stand in the policy.
    pub(crate) fn fixed(documents: impl IntoIterator<Item = (String, Document)>) -> Arc<Self> {
        Arc::new(Self(Kind::Fixed(documents.into_iter().map(|(id, document)| (id, Arc::new(document))).collect())))
    }

    /// Whether it is an issuer's answers about tokens, held by a case.
    pub(crate) fn holds_answers(&self) -> bool {
        matches!(&self.0, Kind::Fixed(documents) if documents.values().all(|document| matches!(**document, Document::Token(_))))
    }

    pub(crate) fn remote(settings: Settings) -> Arc<Self> {
        Arc::new(Self(Kind::Remote { settings: Box::new(settings), remote: OnceLock::new() }))
    }

    /// The name by which a place knows the document that holds the key `id`: one for all of a set.
    fn place<'i>(&self, id: &'i str) -> &'i str {
        match &self.0 {
            Kind::Fixed(documents) if documents.contains_key(id) => id,
            Kind::Fixed(_) => "",
            Kind::Remote { settings, .. } if settings.form == Form::Set => "",
            Kind::Remote { .. } => id,
        }
    }

    /// The document for an id: the key's, the certificate's URL, the token.
    pub(crate) fn find(&self, id: &str) -> Found {
        let place = self.place(id);
        match &self.0 {
            Kind::Fixed(documents) => documents.get(place).cloned().map_or(Found::Absent, Found::Known),
            Kind::Remote { remote, .. } => match remote.get() {
                Some(remote) => remote.find(place),
                None => Found::Unavailable("nothing is fetched here".to_owned()),
            },
        }
    }

    /// What to fetch before the id can be judged, if it may be asked for now. `serves` says whether the document at hand is enough.
    pub(crate) fn want(&self, id: &str, serves: &dyn Fn(&Document) -> bool) -> Option<Want> {
        let Kind::Remote { remote, .. } = &self.0 else { return None };
        let (remote, place) = (remote.get()?, self.place(id));
        remote.lacks(place, serves).then(|| Want { remote: remote.clone(), id: place.to_owned() })
    }
}

impl Want {
    /// Fetches it, or waits for the fetch that is under way; what came of it is then found at the source.
    pub(crate) async fn fetch(self) {
        self.remote.fetch(&self.id).await;
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Fixed(documents) => write!(f, "Source({} documents)", documents.len()),
            Kind::Remote { settings, .. } => write!(f, "Source({})", settings.name),
        }
    }
}

impl fmt::Debug for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The id may be a token.
        write!(f, "Want({})", self.remote.name())
    }
}

/// All sources of a gate: what was fetched lives on over reloads.
pub(crate) struct Keys {
    /// Where last good documents are kept; `None`: in memory only.
    dir: Option<PathBuf>,
    clock: Clock,
    metrics: Arc<Metrics>,
    remotes: Mutex<HashMap<[u8; 32], Weak<Remote>>>,
}

impl Keys {
    pub(crate) fn new(dir: Option<PathBuf>, clock: Clock, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { dir, clock, metrics, remotes: Mutex::default() })
    }

    /// Lets a source fetch. Fails where TLS cannot be set up. Must run inside the runtime for sets to be kept fresh.
    pub(crate) fn connect(&self, source: &Source) -> Result<(), String> {
        let Kind::Remote { settings, remote } = &source.0 else { return Ok(()) };
        if remote.get().is_some() {
            return Ok(());
        }
        let mut remotes = self.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        remotes.retain(|_, known| known.strong_count() > 0);
        let found = remotes.get(&settings.fingerprint()).and_then(Weak::upgrade);
        let opened = match found {
            Some(found) => found,
            None => {
                let opened = Remote::open(Settings::clone(settings), self.dir.clone(), self.clock.clone(), &self.metrics)?;
                remotes.insert(settings.fingerprint(), Arc::downgrade(&opened));
                opened
            }
        };
        // Only this call sets it, and it looked before.
        let _ = remote.set(opened);
        Ok(())
    }
}
