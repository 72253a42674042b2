//! What `wit/` says, as Rust. Arguments are borrowed, so that a body is copied once: into the guest.

#![allow(unsafe_code, unreachable_pub, clippy::wildcard_imports, reason = "the macro's own code")]

wasmtime::component::bindgen!({
    path: "wit",
    world: "filter",
    imports: { "hooklatch:filter/kv": async },
    exports: { default: async },
    ownership: Borrowing { duplicate_if_necessary: true },
});
