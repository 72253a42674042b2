//! The `hooklatch` program: see `hooklatch --help`.

fn main() -> std::process::ExitCode {
    hooklatch::main()
}
