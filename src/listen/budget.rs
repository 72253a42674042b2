//! What all requests together may hold: connections, requests in flight, buffered bytes.
//!
//! Counters only; every count is given back when its guard drops, also on a panic or a cancelled task.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    event::{Client, ClientKey},
    reject::{Extra, Reason, Reject},
};

/// How long a sender that met a full gate is asked to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One gate's counters, shared by all workers; the limits can be changed while it runs.
#[derive(Debug)]
pub(crate) struct Budget {
    connections: Counter,
    requests: Counter,
    buffered: Counter,
    per_address: AtomicU64,
    /// Open connections by address; an entry lives as long as a connection does, so this is bounded by `connections`.
    addresses: Mutex<HashMap<ClientKey, u64>>,
}

#[derive(Debug)]
struct Counter {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Counter {
    fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    /// Adds `n`, or leaves the count as it was.
    fn take(&self, n: u64) -> bool {
        let before = self.used.fetch_add(n, Ordering::Relaxed);
        let fits = before.saturating_add(n) <= self.limit.load(Ordering::Relaxed);
        if !fits {
            self.give(n);
        }
        fits
    }

    fn give(&self, n: u64) {
        self.used.fetch_sub(n, Ordering::Relaxed);
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The four limits of `[server.limits]` that are counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) connections: u64,
    pub(crate) per_ip_connections: u64,
    pub(crate) requests: u64,
    pub(crate) buffered_bytes: u64,
}

/// A connection was refused because too many are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// `connections` is reached.
    Gate,
    /// `per_ip_connections` is reached for this address.
    Address,
}

impl Budget {
    pub(crate) fn new(quota: Quota) -> Arc<Self> {
        Arc::new(Self {
            connections: Counter::new(quota.connections),
            requests: Counter::new(quota.requests),
            buffered: Counter::new(quota.buffered_bytes),
            per_address: AtomicU64::new(quota.per_ip_connections),
            addresses: Mutex::default(),
        })
    }

    /// New limits; what is held already stays held.
    pub(crate) fn set(&self, quota: Quota) {
        self.connections.limit.store(quota.connections, Ordering::Relaxed);
        self.requests.limit.store(quota.requests, Ordering::Relaxed);
        self.buffered.limit.store(quota.buffered_bytes, Ordering::Relaxed);
        self.per_address.store(quota.per_ip_connections, Ordering::Relaxed);
    }

    /// Counts one connection, not yet against an address: behind a PROXY header the address is known later.
    pub(crate) fn connection(self: &Arc<Self>) -> Result<ConnectionGuard, Full> {
        if self.connections.take(1) { Ok(ConnectionGuard { budget: Arc::clone(self), key: None }) } else { Err(Full::Gate) }
    }

    /// Counts one request in flight.
    pub(crate) fn request(self: &Arc<Self>) -> Result<RequestGuard, Reject> {
        if self.requests.take(1) { Ok(RequestGuard(Arc::clone(self))) } else { Err(overloaded("as many requests are in flight as `limits.requests` allows")) }
    }

    /// Sets aside room for `bytes` of body; grows with [`Reservation::grow`].
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, Reject> {
        let mut reservation = Reservation { budget: Arc::clone(self), bytes: 0 };
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.used()
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.used()
    }

    pub(crate) fn buffered(&self) -> u64 {
        self.buffered.used()
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, HashMap<ClientKey, u64>> {
        // Counting cannot panic half-way, so a poisoned lock holds a sound map.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overloaded(detail: &'static str) -> Reject {
    Reject::new(Reason::Overloaded, detail).with(Extra::RetryAfter(RETRY_AFTER))
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct ConnectionGuard {
    budget: Arc<Budget>,
    key: Option<ClientKey>,
}

impl ConnectionGuard {
    /// Counts the connection against its client's address: an IPv4 address, or the /64 of an IPv6 one.
    pub(crate) fn admit(&mut self, ip: IpAddr) -> Result<(), Full> {
        let key = Client::new(ip).key;
        let mut addresses = self.budget.addresses();
        let open = addresses.entry(key).or_default();
        if *open >= self.budget.per_address.load(Ordering::Relaxed) {
            if *open == 0 {
                addresses.remove(&key);
            }
            return Err(Full::Address);
        }
        *open += 1;
        drop(addresses);
        self.key = Some(key);
        Ok(())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.budget.connections.give(1);
        if let Some(key) = self.key {
            let mut addresses = self.budget.addresses();
            if let Some(open) = addresses.get_mut(&key) {
                *open -= 1;
                if *open == 0 {
                    addresses.remove(&key);
                }
            }
        }
    }
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct RequestGuard(Arc<Budget>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.requests.give(1);
    }
}

/// Bytes held for one body, counted against `buffered_bytes`.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    /// Takes `more` bytes, or refuses and keeps what it had.
    pub(crate) fn grow(&mut self, more: u64) -> Result<(), Reject> {
        if more > 0 && !self.budget.buffered.take(more) {
            return Err(overloaded("all bodies together hold as much as `limits.buffered_bytes` allows"));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.buffered.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        Budget::new(Quota { connections: 3, per_ip_connections: 2, requests: 1, buffered_bytes: 10 })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a test address")
    }

    #[test]
    fn connections_count_in_all_and_by_address() {
        let budget = budget();
        let open = |address: &str| {
            let mut guard = budget.connection()?;
            guard.admit(ip(address)).map(|()| guard)
        };
        let first = open("2001:db8::1").expect("room");
        let second = open("2001:db8::2").expect("room");
        assert_eq!(open("2001:db8::3").map(drop), Err(Full::Address));
        let third = open("::ffff:192.0.2.1").expect("room");
        assert_eq!(open("192.0.2.1").map(drop), Err(Full::Gate));
        drop(second);
        let fourth = open("192.0.2.1").expect("room again, the mapped address counts as IPv4");
        assert_eq!(budget.connections(), 3);
        drop((first, third, fourth));
        assert_eq!((budget.connections(), budget.addresses().len()), (0, 0));
    }

    #[test]
    fn requests_are_given_back() {
        let budget = budget();
        let one = budget.request().expect("room");
        assert_eq!(budget.request().expect_err("full").reason, Reason::Overloaded);
        drop(one);
        assert!(budget.request().is_ok());
    }

    #[test]
    fn reservations_grow_refuse_and_return() {
        let budget = budget();
        let mut held = budget.reserve(4).expect("room");
        held.grow(6).expect("room");
        assert_eq!(held.grow(1).expect_err("full").reason, Reason::Overloaded);
        assert_eq!(budget.buffered(), 10);
        drop(held);
        assert_eq!(budget.buffered(), 0);
        budget.set(Quota { connections: 0, per_ip_connections: 0, requests: 0, buffered_bytes: 0 });
        assert!(budget.reserve(1).is_err() && budget.reserve(0).is_ok() && budget.connection().is_err());
    }
}
