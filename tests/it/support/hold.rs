//! A door that stays shut until the test opens it: what a receiver waits at instead of sleeping.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Hold(Arc<watch::Sender<bool>>);

impl Hold {
    pub(crate) fn shut() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everybody through, those who wait and those who come later.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn pass(&self) {
        // The sender is held by `self`, so the wait ends only by `open`.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}
