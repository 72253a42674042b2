//! The one bounded scanner of untrusted JSON. Pure.
