//! How replay records lie in the file: packed rows, one per commit and expiry hour. Pure.
//!
//! A row is `version u8, CRC-32 of the rest u32, entries`. An entry is `digest 16, expiry u32 (Unix seconds), kind u8, event id 16,
//! answer u32 + u16, attempts u16, branches`; integers are little endian. Version 1 had no attempts: one was made. Branches are `count u8` and for each `ok u8, length u8, name`. Answers lie in a
//! row of their own with the same key and frame, so that a start reads none of them; an entry holds where (0 bytes: none). An answer is
//! `status u16, length u8, content type, body`; length 255: no content type.

use bytes::Bytes;
use http::HeaderValue;
use uuid::Uuid;

use crate::event::EventId;

const VERSION: u8 = 2;
/// The version before attempts were counted; still read.
const UNCOUNTED: u8 = 1;
const HEAD: usize = 5;
/// A row is closed when it has grown past this, so that reading one answer never reads much more.
pub(super) const ROW_BYTES: usize = 32 << 10;
/// Longest body of a stored answer; a longer one is stored without its body and content type.
pub(super) const ANSWER_BYTES: usize = 4 << 10;
const NO_TYPE: u8 = u8::MAX;

/// A key as the records know it: 128 bits of a keyed hash over route and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest(pub(super) [u8; 16]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Some required branch is not done.
    Failed,
    /// Every required branch is done.
    Done,
    /// An operator lets the key through again.
    Forgotten,
}

impl Kind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Failed => 0,
            Self::Done => 1,
            Self::Forgotten => 2,
        }
    }

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Failed),
            1 => Some(Self::Done),
            2 => Some(Self::Forgotten),
            _ => None,
        }
    }
}

/// What an answer to a copy is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// The first attempt's.
    pub(crate) event_id: EventId,
    pub(crate) status: u16,
    pub(crate) content_type: Option<HeaderValue>,
    /// Empty where it was longer than [`ANSWER_BYTES`].
    pub(crate) body: Bytes,
}

/// The parts of an answer, borrowed for writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerRef<'a> {
    pub(super) status: u16,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
}

/// One record, borrowed for writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft<'a> {
    pub(super) digest: Digest,
    pub(super) expires_unix: u32,
    pub(super) kind: Kind,
    pub(super) event_id: EventId,
    /// How often the gate took the event up, this time included.
    pub(super) attempts: u16,
    /// Each branch with how it ended.
    pub(super) branches: &'a [(Box<str>, bool)],
    pub(super) answer: Option<AnswerRef<'a>>,
}

/// Records of one expiry hour, as two rows in the making.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) entries: Vec<u8>,
    pub(super) answers: Vec<u8>,
}

impl Rows {
    pub(super) fn new() -> Self {
        Self { entries: vec![0; HEAD], answers: vec![0; HEAD] }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= ROW_BYTES || self.answers.len() >= ROW_BYTES
    }

    pub(super) fn has_answers(&self) -> bool {
        self.answers.len() > HEAD
    }

    /// Adds a record; says how many bytes it took.
    pub(super) fn push(&mut self, draft: &Draft<'_>) -> usize {
        let before = self.entries.len() + self.answers.len();
        let (at, len) = draft.answer.map_or((0, 0), |answer| self.push_answer(&answer));
        let out = &mut self.entries;
        out.extend_from_slice(&draft.digest.0);
        out.extend_from_slice(&draft.expires_unix.to_le_bytes());
        out.push(draft.kind.code());
        out.extend_from_slice(draft.event_id.0.as_bytes());
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&draft.attempts.to_le_bytes());
        // Past 255 branches, or 255 bytes of a name, a branch is forgotten: it will run again.
        let branches = || draft.branches.iter().filter(|(name, _)| name.len() <= 255).take(255);
        out.push(branches().count() as u8);
        for (name, ok) in branches() {
            out.extend_from_slice(&[u8::from(*ok), name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        self.entries.len() + self.answers.len() - before
    }

    fn push_answer(&mut self, answer: &AnswerRef<'_>) -> (u32, u16) {
        let out = &mut self.answers;
        let at = out.len();
        out.extend_from_slice(&answer.status.to_le_bytes());
        let whole = answer.body.len() <= ANSWER_BYTES;
        match answer.content_type.filter(|text| whole && text.len() < usize::from(NO_TYPE)) {
            Some(text) => {
                out.push(text.len() as u8);
                out.extend_from_slice(text);
            }
            None => out.push(NO_TYPE),
        }
        if whole {
            out.extend_from_slice(answer.body);
        }
        // A row is closed at 32 KiB and an answer is under 5 KiB.
        (at as u32, (out.len() - at) as u16)
    }
}

/// Writes version and check sum over a row that was put together by [`Rows`].
pub(super) fn seal(row: &mut [u8]) {
    if let Some((head, rest)) = row.split_at_mut_checked(HEAD) {
        head[0] = VERSION;
        head[1..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
    }
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    Version(u8),
    CheckSum,
    CutShort,
    Unknown,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version) => write!(f, "a replay row has version {version}"),
            Self::CheckSum => f.write_str("a replay row has a wrong check sum"),
            Self::CutShort => f.write_str("a replay row ends too soon"),
            Self::Unknown => f.write_str("a replay row holds what it cannot hold"),
        }
    }
}

impl From<Damage> for redb::Error {
    fn from(damage: Damage) -> Self {
        Self::Corrupted(damage.to_string())
    }
}

/// The version of a row whose frame is sound.
fn open(row: &[u8]) -> Result<u8, Damage> {
    let (head, rest) = row.split_at_checked(HEAD).ok_or(Damage::CutShort)?;
    if !matches!(head[0], VERSION | UNCOUNTED) {
        return Err(Damage::Version(head[0]));
    }
    if head[1..] != crc32fast::hash(rest).to_le_bytes() {
        return Err(Damage::CheckSum);
    }
    Ok(head[0])
}

/// One record, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry<'a> {
    pub(super) digest: Digest,
    pub(super) expires_unix: u32,
    pub(super) kind: Kind,
    pub(super) event_id: EventId,
    pub(super) answer: Option<std::ops::Range<usize>>,
    pub(super) attempts: u16,
    branches: &'a [u8],
}

impl Entry<'_> {
    /// The branches that are done.
    pub(super) fn done_branches(&self) -> Vec<Box<str>> {
        let mut reader = Reader(self.branches);
        let mut done = Vec::new();
        while let Ok([ok, len]) = reader.array() {
            let Ok(name) = reader.take(usize::from(len)) else { break };
            if ok == 1
                && let Ok(name) = std::str::from_utf8(name)
            {
                done.push(name.into());
            }
        }
        done
    }
}

/// The records of a row; `sealed` is false for one that is still in memory.
pub(super) fn entries(row: &[u8], sealed: bool) -> Result<Entries<'_>, Damage> {
    let version = if sealed { open(row)? } else { VERSION };
    Ok(Entries { rest: Reader(row.get(HEAD..).ok_or(Damage::CutShort)?), version })
}

#[derive(Debug)]
pub(super) struct Entries<'a> {
    rest: Reader<'a>,
    version: u8,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.0.is_empty() {
            return None;
        }
        let entry = self.rest.entry(self.version);
        if entry.is_err() {
            self.rest.0 = &[];
        }
        Some(entry)
    }
}

#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Damage::CutShort)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Damage::CutShort)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn entry(&mut self, version: u8) -> Result<Entry<'a>, Damage> {
        let digest = Digest(self.array()?);
        let expires_unix = u32::from_le_bytes(self.array()?);
        let [kind] = self.array()?;
        let kind = Kind::from_code(kind).ok_or(Damage::Unknown)?;
        let event_id = EventId(Uuid::from_bytes(self.array()?));
        let at = u32::from_le_bytes(self.array()?) as usize;
        let len = usize::from(u16::from_le_bytes(self.array()?));
        let attempts = if version == UNCOUNTED { 1 } else { u16::from_le_bytes(self.array()?) };
        let [count] = self.array()?;
        let branches = self.0;
        for _ in 0..count {
            let [_, len] = self.array()?;
            self.take(usize::from(len))?;
        }
        let branches = &branches[..branches.len() - self.0.len()];
        Ok(Entry { digest, expires_unix, kind, event_id, answer: (len > 0).then_some(at..at + len), attempts, branches })
    }
}

/// The answer at its place in a row of answers.
pub(super) fn answer(row: &[u8], sealed: bool, at: std::ops::Range<usize>, event_id: EventId) -> Result<Stored, Damage> {
    if sealed {
        open(row)?;
    }
    let mut reader = Reader(row.get(at).ok_or(Damage::CutShort)?);
    let status = u16::from_le_bytes(reader.array()?);
    let [len] = reader.array()?;
    let content_type = match len {
        NO_TYPE => None,
        len => Some(HeaderValue::from_bytes(reader.take(usize::from(len))?).map_err(|_| Damage::Unknown)?),
    };
    Ok(Stored { event_id, status, content_type, body: Bytes::copy_from_slice(reader.0) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn draft<'a>(n: u8, branches: &'a [(Box<str>, bool)], answer: Option<AnswerRef<'a>>) -> Draft<'a> {
        Draft {
            digest: Digest([n; 16]),
            expires_unix: 7,
            kind: Kind::Done,
            event_id: EventId(Uuid::from_bytes([n; 16])),
            attempts: u16::from(n),
            branches,
            answer,
        }
    }

    fn row(drafts: &[Draft<'_>]) -> (Vec<u8>, Vec<u8>) {
        let mut rows = Rows::new();
        drafts.iter().for_each(|draft| {
            rows.push(draft);
        });
        seal(&mut rows.entries);
        seal(&mut rows.answers);
        (rows.entries, rows.answers)
    }

    #[test]
    fn rows_give_back_what_went_in() {
        let branches: [(Box<str>, bool); 2] = [("billing".into(), true), ("bus".into(), false)];
        let ok = AnswerRef { status: 200, content_type: Some(b"text/plain"), body: b"ok" };
        let bare = AnswerRef { status: 204, content_type: None, body: b"" };
        let (index, answers) = row(&[draft(1, &branches, Some(ok)), draft(2, &[], None), draft(3, &[], Some(bare))]);
        let read: Vec<Entry<'_>> = entries(&index, true).expect("a sound row").collect::<Result<_, _>>().expect("sound entries");
        assert_eq!(read.iter().map(|entry| entry.digest.0[0]).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(read.iter().map(|entry| entry.attempts).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(read[0].done_branches(), ["billing".into()]);
        let get = |n: usize| answer(&answers, true, read[n].answer.clone().expect("an answer"), read[n].event_id).expect("a sound answer");
        assert_eq!((get(0).status, get(0).content_type, get(0).body), (200, Some(HeaderValue::from_static("text/plain")), Bytes::from_static(b"ok")));
        assert_eq!((get(2).status, get(2).content_type, get(2).body), (204, None, Bytes::new()));
        assert_eq!(read[1].answer, None);
    }

    #[test]
    fn a_long_body_and_a_long_name_are_left_out() {
        let branches: [(Box<str>, bool); 2] = [("x".repeat(256).into(), true), ("y".into(), true)];
        let long = vec![b'x'; ANSWER_BYTES + 1];
        let (index, answers) = row(&[draft(1, &branches, Some(AnswerRef { status: 200, content_type: None, body: &long }))]);
        let entry = entries(&index, true).expect("a row").next().expect("one").expect("sound");
        assert_eq!(entry.done_branches(), ["y".into()]);
        assert_eq!(answer(&answers, true, entry.answer.expect("one"), entry.event_id).expect("sound").body, Bytes::new());
    }

    #[test]
    fn rows_from_before_attempts_were_counted_are_read() {
        let (mut index, _) = row(&[draft(7, &[("billing".into(), true)], None)]);
        let attempts = HEAD + 16 + 4 + 1 + 16 + 4 + 2;
        index.drain(attempts..attempts + 2);
        index[0] = UNCOUNTED;
        let sum = crc32fast::hash(&index[HEAD..]);
        index[1..HEAD].copy_from_slice(&sum.to_le_bytes());
        let entry = entries(&index, true).expect("a row").next().expect("one").expect("sound");
        assert_eq!((entry.attempts, entry.done_branches()), (1, vec!["billing".into()]));
    }

    #[test]
    fn damage_is_seen() {
        let (index, _) = row(&[draft(1, &[], None)]);
        let check = |row: &[u8], damage: Damage| assert_eq!(entries(row, true).err(), Some(damage));
        check(&[], Damage::CutShort);
        check(&index[..index.len() - 1], Damage::CheckSum);
        for at in 5..index.len() {
            let mut bad = index.clone();
            bad[at] ^= 1;
            check(&bad, Damage::CheckSum);
        }
        let mut other = index;
        other[0] = 9;
        check(&other, Damage::Version(9));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..300, len in 0usize..300) {
            seal(&mut bytes);
            if let Ok(found) = entries(&bytes, true) {
                for entry in found.flatten() {
                    let _ = entry.done_branches();
                }
            }
            let _ = answer(&bytes, true, at..at + len, EventId(Uuid::nil()));
        }

        #[test]
        fn any_record_round_trips(lengths in prop::collection::vec((0usize..300, any::<bool>()), 0..300), body in prop::collection::vec(any::<u8>(), 0..5000)) {
            let branches: Vec<(Box<str>, bool)> = lengths.into_iter().map(|(len, ok)| ("x".repeat(len).into(), ok)).collect();
            let (index, answers) = row(&[draft(1, &branches, Some(AnswerRef { status: 200, content_type: None, body: &body })), draft(2, &[], None)]);
            let read: Vec<Entry<'_>> = entries(&index, true).expect("sound").collect::<Result<_, _>>().expect("sound");
            prop_assert_eq!(read.len(), 2);
            let done = read[0].done_branches();
            prop_assert!(done.len() <= 255 && done.iter().all(|name| branches.contains(&(name.clone(), true))));
            let body = if body.len() > ANSWER_BYTES { Bytes::new() } else { body.into() };
            prop_assert_eq!(answer(&answers, true, read[0].answer.clone().expect("one"), read[0].event_id).expect("sound").body, body);
        }
    }
}
