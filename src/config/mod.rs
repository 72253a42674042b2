//! The policy file to a Config that cannot be wrong.
