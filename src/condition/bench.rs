//! The door of `benches/condition.rs`.

use super::{Condition, Scope};
use crate::{clock::Clock, event::Event};

/// A condition and an event, evaluated as often as wanted.
pub struct ConditionCall {
    condition: Condition,
    event: Event,
    clock: Clock,
}

impl ConditionCall {
    /// # Panics
    ///
    /// Where the condition is not good.
    #[must_use]
    pub fn new(condition: &str, body: &[u8]) -> Self {
        let event = Event { delivery_id: Some("72d3162e".to_owned()), ..Event::sample(body.to_vec()) };
        Self { condition: Condition::compile(condition).expect("a good condition"), event, clock: Clock::hand(0) }
    }

    /// One event's whole cost: a fresh scope, so that the body is parsed where the condition asks for it.
    #[must_use]
    pub fn run(&self) -> bool {
        self.condition.matches(&Scope::new(&self.event, self.clock.now())).is_ok_and(|holds| holds)
    }
}
