//! Turns a core WebAssembly module into a component: `encode-component MODULE.wasm COMPONENT.wasm`.
//!
//! The interface is read from the custom section that wit-bindgen leaves in the module. The result is validated.

use std::process::ExitCode;

use wit_component::ComponentEncoder;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, component] = arguments.as_slice() else {
        eprintln!("usage: encode-component MODULE.wasm COMPONENT.wasm");
        return ExitCode::from(2);
    };
    match encode(module, component) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("encode-component: {why}");
            ExitCode::FAILURE
        }
    }
}

fn encode(module: &str, component: &str) -> Result<(), String> {
    let bytes = std::fs::read(module).map_err(|error| format!("{module}: {error}"))?;
    let mut encoder = ComponentEncoder::default().validate(true).module(&bytes).map_err(|error| format!("{module}: {error:#}"))?;
    let encoded = encoder.encode().map_err(|error| format!("{module}: {error:#}"))?;
    std::fs::write(component, encoded).map_err(|error| format!("{component}: {error}"))
}
