//! Replay records and filter kv behind one face.
