//! Config to a running gate: opens disk, filters, sockets; reload, drain.
