//! WebAssembly filters: the only room that knows wasmtime.
