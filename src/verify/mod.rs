//! Who sent it: the only maker of Verified.
