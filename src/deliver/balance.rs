//! Which of several receivers comes next, and which are left alone for a while. Pure: time is an argument.
//!
//! The least busy of those that are up; of equals the one that waited longest. A receiver is down after a failed connect, for a time
//! that doubles from [`REFUSED`] to [`LONGEST`], or after a request without an answer in time, from [`SILENT`] on: one that hangs costs
//! each trial a request, one that is gone costs none. When that time is over it is knocked at with a connection of its own, and then
//! tried with one request at a time until it answers. Are all down, the one that is due first is tried: a request is never refused
//! untried.

use std::time::Duration;

use crate::clock::Mono;

/// The first wait after a failed connect.
pub(super) const REFUSED: Duration = Duration::from_secs(1);

/// The first wait after a timeout.
pub(super) const SILENT: Duration = Duration::from_secs(10);

pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// How many receivers one destination may have: the ones tried are bits.
pub(super) const MOST: usize = 64;

#[derive(Clone, Debug, Default)]
struct Peer {
    in_flight: u32,
    /// The turn at which it was last chosen.
    chosen: u64,
    /// It was knocked at, and has not answered a request since.
    on_trial: bool,
    down: Option<Down>,
    /// The last wait; doubled by the next failure, forgotten by a success.
    wait: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Down {
    until: Mono,
    /// Somebody is knocking.
    knocking: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Balance {
    peers: Vec<Peer>,
    turn: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) peer: usize,
    /// A receiver whose time is over: knock at it, beside this request.
    pub(super) knock: Option<usize>,
}

/// How a request to a receiver ended, as far as its health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It answered, whatever it said.
    Answered,
    Unreachable,
    TimedOut,
    /// The request ended for a reason that says nothing of the receiver.
    Unknown,
}

impl Balance {
    pub(super) fn new(peers: usize) -> Self {
        Self { peers: vec![Peer::default(); peers], turn: 0 }
    }

    /// The next receiver that is not among `tried`; counted as in flight until [`Balance::ended`].
    pub(super) fn pick(&mut self, tried: u64, now: Mono) -> Option<Pick> {
        let untried = |at: &usize| tried & (1 << at) == 0;
        let is_up = |at: &usize| self.peers[*at].down.is_none() && !(self.peers[*at].on_trial && self.peers[*at].in_flight > 0);
        let up = (0..self.peers.len()).filter(untried).filter(is_up);
        let peer = up.min_by_key(|at| (self.peers[*at].in_flight, self.peers[*at].chosen)).or_else(|| {
            let down = (0..self.peers.len()).filter(untried);
            down.min_by_key(|at| (self.peers[*at].down.map(|down| down.until), self.peers[*at].in_flight))
        })?;
        let knock = self.peers.iter().position(|other| other.down.is_some_and(|down| !down.knocking && down.until <= now)).filter(|at| *at != peer);
        if let Some(down) = knock.and_then(|at| self.peers[at].down.as_mut()) {
            down.knocking = true;
        }
        self.turn += 1;
        let chosen = &mut self.peers[peer];
        chosen.in_flight += 1;
        chosen.chosen = self.turn;
        Some(Pick { peer, knock })
    }

    pub(super) fn ended(&mut self, peer: usize, health: Health, now: Mono) {
        self.peers[peer].in_flight = self.peers[peer].in_flight.saturating_sub(1);
        self.learn(peer, health, now);
    }

    /// How a knock ended.
    pub(super) fn knocked(&mut self, peer: usize, opened: bool, now: Mono) {
        if opened {
            // An open door is no answer: the wait is kept until a request is answered.
            self.peers[peer].down = None;
            self.peers[peer].on_trial = true;
        } else {
            self.learn(peer, Health::Unreachable, now);
        }
    }

    fn learn(&mut self, peer: usize, health: Health, now: Mono) {
        let peer = &mut self.peers[peer];
        let first = match health {
            Health::Unknown => return,
            Health::Answered => {
                (peer.down, peer.on_trial, peer.wait) = (None, false, Duration::ZERO);
                return;
            }
            Health::Unreachable => REFUSED,
            Health::TimedOut => SILENT,
        };
        // Requests that were under way when it fell tell nothing new.
        if !peer.down.is_some_and(|down| !down.knocking && down.until > now) {
            peer.wait = (peer.wait * 2).clamp(first, LONGEST);
            peer.down = Some(Down { until: now.plus(peer.wait), knocking: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    fn answered(balance: &mut Balance, rounds: usize, now: Mono) -> Vec<usize> {
        (0..rounds)
            .map(|_| {
                let pick = balance.pick(0, now).expect("somebody is there");
                balance.ended(pick.peer, Health::Answered, now);
                pick.peer
            })
            .collect()
    }

    #[test]
    fn equals_take_turns_and_the_busy_are_spared() {
        let mut balance = Balance::new(3);
        assert_eq!(answered(&mut balance, 6, at(0)), [0, 1, 2, 0, 1, 2]);
        let busy = balance.pick(0, at(0)).expect("one");
        assert_eq!(busy.peer, 0);
        assert_eq!(answered(&mut balance, 4, at(0)), [1, 2, 1, 2]);
        balance.ended(0, Health::Unknown, at(0));
        assert_eq!(answered(&mut balance, 1, at(0)), [0]);
    }

    #[test]
    fn the_unreachable_rests_and_is_knocked_at_first() {
        let mut balance = Balance::new(3);
        let first = balance.pick(0, at(0)).expect("one");
        balance.ended(first.peer, Health::Unreachable, at(0));
        assert_eq!(balance.pick(1, at(0)), Some(Pick { peer: 1, knock: None }), "the same request goes on to the next");
        balance.ended(1, Health::Answered, at(0));
        assert_eq!(answered(&mut balance, 4, at(999)), [2, 1, 2, 1]);
        assert_eq!(balance.pick(0, at(1000)), Some(Pick { peer: 2, knock: Some(0) }));
        assert_eq!(balance.pick(0, at(1001)), Some(Pick { peer: 1, knock: None }), "one knocks at a time");
        balance.knocked(0, false, at(1002));
        assert_eq!(balance.pick(0, at(3001)).and_then(|pick| pick.knock), None, "the wait has doubled");
        assert_eq!(balance.pick(0, at(3002)).and_then(|pick| pick.knock), Some(0));
        balance.knocked(0, true, at(3003));
        assert_eq!(balance.pick(0, at(3003)), Some(Pick { peer: 0, knock: None }));
    }

    #[test]
    fn the_silent_rests_longer_and_is_tried_with_one_request() {
        let mut balance = Balance::new(2);
        balance.learn(0, Health::TimedOut, at(0));
        assert_eq!(answered(&mut balance, 2, at(9_999)), [1, 1]);
        assert_eq!(balance.pick(0, at(10_000)).and_then(|pick| pick.knock), Some(0));
        balance.knocked(0, true, at(10_001));
        assert_eq!(balance.pick(0, at(10_002)).map(|pick| pick.peer), Some(0), "one request finds out");
        assert_eq!(balance.pick(0, at(10_003)).map(|pick| pick.peer), Some(1), "while the others stay away");
        balance.ended(0, Health::TimedOut, at(11_000));
        assert_eq!(balance.peers[0].down.expect("down").until, at(31_000), "an open door alone does not forgive");
        balance.knocked(0, true, at(31_000));
        balance.pick(0, at(31_001));
        balance.ended(0, Health::Answered, at(31_002));
        assert_eq!((balance.peers[0].wait, balance.peers[0].on_trial), (Duration::ZERO, false));
    }

    #[test]
    fn when_all_are_down_the_one_due_first_is_tried() {
        let mut balance = Balance::new(2);
        balance.learn(1, Health::Unreachable, at(0));
        balance.learn(0, Health::Unreachable, at(5));
        assert_eq!(balance.pick(0, at(6)).map(|pick| pick.peer), Some(1));
        assert_eq!(balance.pick(0b10, at(6)).map(|pick| pick.peer), Some(0));
        assert_eq!(balance.pick(0b11, at(6)), None);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut balance = Balance::new(1);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..7 {
            balance.learn(0, Health::Unreachable, at(now));
            let until = balance.peers[0].down.expect("down").until;
            waits.push(until.since(at(now)).as_secs());
            now = until.0 / 1_000_000;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60]);
        balance.learn(0, Health::Answered, at(now));
        balance.learn(0, Health::Unreachable, at(now));
        assert_eq!(balance.peers[0].wait, REFUSED);
    }
}
