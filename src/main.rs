//! The `hooklatch` program: see `hooklatch --help`.

/// Requests come in waves of like pieces of memory, some of them freed by another thread: the system's allocator spends a tenth of a
/// request's time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    hooklatch::main()
}
