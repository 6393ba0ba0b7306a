//! `sglang_das._native`: the Python face of the Rust crates. Thin on purpose: argument checks, GIL release, conversions.

mod convert;
mod coupling;
mod cpu;
mod history;
mod known;
mod step;
mod tree;

use pyo3::prelude::*;

/// Native parts of sglang-das. See `_native.pyi` for the documented interface.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    tree::register(module)?;
    cpu::register(module)
}
