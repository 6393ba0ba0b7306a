//! How the target will pick, as Python says it: a code, and a seed with a position.

use std::fmt::Display;

use das_tree::Coupling;
use pyo3::PyResult;

use crate::convert::bad_value;

/// The code of noise that is known.
pub const SEEDED: i64 = 2;

/// From a code: 0 for noise that is not known, 1 for none, 2 for that of a seed and a position.
pub fn coupling(name: impl Display, code: i64, seed: i64, position: i64) -> PyResult<Coupling> {
    match code {
        0 => Ok(Coupling::Blind),
        1 => Ok(Coupling::Greedy),
        SEEDED => Ok(Coupling::Seeded { seed, position }),
        _ => Err(bad_value(
            name,
            code,
            "it must be 0 (noise unknown), 1 (greedy) or 2 (noise of a seed and a position)",
        )),
    }
}
