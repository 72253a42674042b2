//! The thread that writes the lines: gathering, the file, its rotation, its troubles.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{OnError, Order, PLENTY, Settings, Shared, lock, rfc3339};
use crate::{clock::Mono, observe::events::Bounded};

/// Bytes of lines that may wait for a file that cannot be written.
const PENDING: usize = 8 << 20;
/// Most bytes of one write.
const PIECE: usize = 256 << 10;
/// How long the writer gathers lines before it writes them.
const GATHER: Duration = Duration::from_millis(20);
/// How often the file is synced, and how often a failed one is tried again.
const EVERY: Duration = Duration::from_secs(1);
/// A buffer that has grown past this in a flood is let go.
const BUFFER: usize = 1 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    settings: Option<Settings>,
    file: Option<Open>,
    /// Lines that are not written yet.
    pending: String,
    /// An empty buffer, for the queue to go on with.
    spare: String,
    /// Lines lost that the file has not told of yet.
    lost: u64,
    /// When a failed file was last tried.
    last_try: Option<Mono>,
}

struct Open {
    file: File,
    size: u64,
    synced: Option<Mono>,
    dirty: bool,
}

static TROUBLE: Bounded = Bounded::new(1);

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, settings: None, file: None, pending: String::new(), spare: String::new(), lost: 0, last_try: None }
    }

    pub(super) fn run(mut self) {
        loop {
            let (lines, dropped, orders) = self.gather();
            self.take(lines, dropped);
            self.write(false);
            for order in orders {
                match order {
                    Order::Configure(settings) => self.configure(settings),
                    Order::Reopen => {
                        self.file = None;
                        self.write(true);
                    }
                    #[cfg(test)]
                    Order::Flush(done) => {
                        self.write(true);
                        let _ = done.send(()); // whoever asked may have stopped waiting
                    }
                    Order::Close(done) => {
                        let mut queue = lock(&self.shared.queue);
                        queue.closed = true;
                        let (lines, dropped) = (mem::take(&mut queue.lines), mem::take(&mut queue.dropped));
                        drop(queue);
                        self.take(lines, dropped);
                        self.write(true);
                        self.sync();
                        let _ = done.send(()); // whoever asked may have stopped waiting
                        return;
                    }
                }
            }
            self.sync_now_and_then();
        }
    }

    /// Waits for lines or orders, and a little longer for more lines.
    fn gather(&mut self) -> (String, u64, Vec<Order>) {
        let shared = &self.shared;
        let mut queue = lock(&shared.queue);
        while queue.lines.is_empty() && queue.orders.is_empty() {
            if self.restless() {
                let (back, timeout) = shared.bell.wait_timeout(queue, EVERY).unwrap_or_else(PoisonError::into_inner);
                queue = back;
                if timeout.timed_out() {
                    break;
                }
            } else {
                queue = shared.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if queue.orders.is_empty() && !queue.lines.is_empty() && queue.lines.len() < PLENTY {
            queue = shared.bell.wait_timeout(queue, GATHER).unwrap_or_else(PoisonError::into_inner).0;
        }
        // Two buffers change places: growing one line by line would be the requests' time.
        let lines = mem::replace(&mut queue.lines, mem::take(&mut self.spare));
        let taken = (lines, mem::take(&mut queue.dropped), mem::take(&mut queue.orders));
        drop(queue);
        shared.waiting.store(0, Ordering::Relaxed);
        taken
    }

    /// There is something to do even if nobody calls: a file to sync or to try again.
    fn restless(&self) -> bool {
        self.settings.is_some() && (!self.pending.is_empty() || self.lost > 0 || self.file.as_ref().is_none_or(|open| open.dirty))
    }

    /// Keeps lines, in memory for the page and to be written.
    fn take(&mut self, lines: String, dropped: u64) {
        self.lost += dropped;
        if lines.is_empty() {
            return self.reuse(lines);
        }
        self.shared.decisions.push_last(&lines);
        if self.settings.is_none() {
            return self.reuse(lines);
        }
        if self.pending.is_empty() {
            let empty = mem::replace(&mut self.pending, lines);
            return self.reuse(empty);
        }
        for line in lines.split_inclusive('\n') {
            if self.pending.len() + line.len() > PENDING {
                self.lost += 1;
                self.shared.metrics.audit_failed.add(1);
            } else {
                self.pending.push_str(line);
            }
        }
        self.reuse(lines);
    }

    fn reuse(&mut self, mut buffer: String) {
        if buffer.capacity() > self.spare.capacity() && buffer.capacity() <= BUFFER {
            buffer.clear();
            self.spare = buffer;
        }
    }

    pub(super) fn configure(&mut self, settings: Option<Settings>) {
        if self.settings.as_ref().map(|s| &s.path) != settings.as_ref().map(|s| &s.path) {
            self.write(true);
            self.sync();
            self.file = None;
        }
        self.shared.refuse.store(settings.as_ref().is_some_and(|s| s.on_error == OnError::Refuse), Ordering::Relaxed);
        self.settings = settings;
        if self.settings.is_none() {
            self.pending.clear();
            self.lost = 0;
            self.shared.failing.store(false, Ordering::Relaxed);
        }
        self.write(true);
    }

    /// Writes what is pending. A file in trouble is left alone for a second, unless `now`.
    fn write(&mut self, now: bool) {
        let Some(settings) = self.settings.clone() else { return };
        let mono = self.shared.clock.mono();
        let resting = self.last_try.is_some_and(|at| mono.since(at) < EVERY);
        if self.shared.failing.load(Ordering::Relaxed) && resting && !now {
            return;
        }
        match self.try_write(&settings) {
            Ok(()) => {
                self.last_try = None;
                if self.shared.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(file = %settings.path.display(), "the audit file can be written again");
                }
            }
            Err(why) => {
                self.last_try = Some(mono);
                self.shared.failing.store(true, Ordering::Relaxed);
                if TROUBLE.allow(mono).is_some() {
                    let file = settings.path.display();
                    tracing::error!(%file, error = %why, pending_bytes = self.pending.len(), "the audit file cannot be written; make room or mend its permissions");
                }
            }
        }
    }

    fn try_write(&mut self, settings: &Settings) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(Open::new(&settings.path)?);
        }
        if self.lost > 0 {
            let note = format!("{{\"time\":\"{}\",\"outcome\":\"lost\",\"lines\":{}}}\n", rfc3339(self.shared.clock.now().wall_ms), self.lost);
            self.append(settings, note.as_bytes())?;
            self.lost = 0;
        }
        let mut done = 0;
        let mut result = Ok(());
        while done < self.pending.len() && result.is_ok() {
            let pending = mem::take(&mut self.pending);
            let piece = self.next_piece(settings, &pending[done..]);
            result = self.append(settings, piece.as_bytes());
            if result.is_ok() {
                done += piece.len();
                self.shared.metrics.audit_written.add(memchr::memchr_iter(b'\n', piece.as_bytes()).count() as u64);
            }
            self.pending = pending;
        }
        self.pending.drain(..done);
        if self.pending.capacity() > BUFFER && self.pending.is_empty() {
            self.pending = String::new();
        }
        result
    }

    /// As many of the lines as one write may hold and the file has room for; one at least.
    fn next_piece<'l>(&self, settings: &Settings, lines: &'l str) -> &'l str {
        let size = self.file.as_ref().map_or(0, |open| open.size);
        let room = usize::try_from(settings.rotate.saturating_sub(size)).unwrap_or(PIECE).min(PIECE);
        if lines.len() <= room {
            return lines;
        }
        let end = memchr::memrchr(b'\n', &lines.as_bytes()[..room]).or_else(|| memchr::memchr(b'\n', lines.as_bytes()));
        end.map_or(lines, |end| &lines[..=end])
    }

    /// Appends whole lines, to a fresh file where this one would grow past its bound; on failure the file is as it was.
    fn append(&mut self, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|open| open.size > 0 && open.size + bytes.len() as u64 > settings.rotate) {
            self.sync();
            self.file = None;
            if let Err(why) = rotate(&settings.path, settings.keep) {
                // Better a file that is too long than lines that are lost.
                if TROUBLE.allow(self.shared.clock.mono()).is_some() {
                    tracing::error!(file = %settings.path.display(), error = %why, "the audit file cannot be rotated and grows on");
                }
            }
            self.file = Some(Open::new(&settings.path)?);
        }
        let open = self.file.as_mut().ok_or_else(|| io::Error::other("the file was not opened"))?;
        if let Err(why) = open.file.write_all(bytes) {
            let _ = open.file.set_len(open.size); // a file that cannot be cut either is mended when it is opened next
            self.file = None;
            return Err(why);
        }
        open.size += bytes.len() as u64;
        open.dirty = true;
        Ok(())
    }

    fn sync_now_and_then(&mut self) {
        let mono = self.shared.clock.mono();
        if self.file.as_ref().is_some_and(|open| open.dirty && open.synced.is_none_or(|at| mono.since(at) >= EVERY)) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let mono = self.shared.clock.mono();
        let Some(open) = &mut self.file else { return };
        if !mem::take(&mut open.dirty) {
            return;
        }
        open.synced = Some(mono);
        if let Err(why) = open.file.sync_data()
            && TROUBLE.allow(mono).is_some()
        {
            tracing::error!(error = %why, "the audit file cannot be synced to the disk");
        }
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            // A crash in the middle of a write leaves half a line: it is ended, so that the next one stands alone.
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok(Self { file, size, synced: None, dirty: false })
    }
}

/// `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2` and so on; beyond `keep` they are removed.
fn rotate(path: &Path, keep: u64) -> io::Result<()> {
    let numbered = |n: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let mut beyond = keep;
    while numbered(beyond).exists() {
        std::fs::remove_file(numbered(beyond))?;
        beyond += 1;
    }
    for n in (1..keep).rev() {
        if numbered(n).exists() {
            std::fs::rename(numbered(n), numbered(n + 1))?;
        }
    }
    std::fs::rename(path, numbered(1))
}
