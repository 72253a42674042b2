//! What the tests are built from: the real program in a folder of its own, receivers that do as they are told, senders over real
//! sockets, and signers that are not ours.

pub(crate) mod client;
pub(crate) mod frames;
pub(crate) mod gate;
pub(crate) mod hold;
pub(crate) mod origin;
pub(crate) mod receiver;
pub(crate) mod sign;
pub(crate) mod tls;
pub(crate) mod tools;
pub(crate) mod wire;

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up on it; far above what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer; fails with `what` after [`PATIENCE`].
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let start = now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a future; fails with `what` after [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

#[allow(clippy::disallowed_methods, reason = "the tests stand outside the program and measure it by the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Unix seconds.
#[allow(clippy::disallowed_methods, reason = "the tests stand outside the program and sign with the real time")]
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970").as_secs()
}
