//! Hooklatch: a webhook gate. `src/README.md` is the map.

mod clock;
mod event;
mod outcome;
mod problem;
mod reject;
mod secret;
mod section;
