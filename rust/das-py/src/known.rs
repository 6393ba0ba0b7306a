//! Distributions from Python: two-dimensional arrays of ids and probabilities.

use das_tree::KnownRows;
use numpy::{Element, PyArray2, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

use crate::convert::{bad_value, tree_error, wrong_type};

/// Distributions for tokens to append, as they come from Python.
#[derive(Default)]
pub struct Known {
    width: usize,
    ids: Vec<u32>,
    probabilities: Vec<u8>,
}

impl Known {
    /// From `ids`, int32 or int64 [tokens, k], and `probabilities`, float32, float64 or uint8 (255ths) of the same shape; or
    /// nothing, if both are `None`. A cell whose id is negative is unused.
    pub fn new(
        ids: Option<&Bound<'_, PyAny>>,
        probabilities: Option<&Bound<'_, PyAny>>,
        tokens: usize,
    ) -> PyResult<Self> {
        let (ids, probabilities) = match (ids, probabilities) {
            (None, None) => return Ok(Self::default()),
            (Some(ids), Some(probabilities)) => (ids, probabilities),
            (ids, _) => {
                let missing = if ids.is_none() {
                    "ids"
                } else {
                    "probabilities"
                };
                let remedy = "give ids and probabilities together, or neither";
                return Err(bad_value(missing, "None", remedy));
            }
        };
        let (ids, shape) = id_grid(ids)?;
        let (probabilities, other) = probability_grid(probabilities)?;
        if shape != other {
            let remedy = format!("it must be that of ids, {shape:?}");
            return Err(bad_value(
                "the shape of probabilities",
                format!("{other:?}"),
                &remedy,
            ));
        }
        if shape[0] != tokens {
            let remedy = format!("give a row for each token, {tokens}");
            return Err(bad_value("the number of rows of ids", shape[0], &remedy));
        }
        let width = shape[1];
        let unused = ids.iter().map(|&id| id < 0);
        let probabilities = probabilities
            .iter()
            .zip(unused)
            .map(|(&p, unused)| if unused { 0 } else { p });
        let id = |(i, &id): (usize, &i64)| {
            u32::try_from(id.max(0)).map_err(|_| {
                let name = format!("ids[{}, {}]", i / width, i % width);
                bad_value(&name, id, "tokens of distributions are below 2^24")
            })
        };
        Ok(Self {
            width,
            probabilities: probabilities.collect(),
            ids: ids.iter().enumerate().map(id).collect::<PyResult<_>>()?,
        })
    }

    /// The rows, checked.
    pub fn rows(&self) -> PyResult<KnownRows<'_>> {
        KnownRows::new(self.width, &self.ids, &self.probabilities).map_err(tree_error)
    }
}

/// The last two tokens before each of some places, from an int32 or int64 array [places, 2].
pub fn contexts(value: &Bound<'_, PyAny>) -> PyResult<Vec<[u32; 2]>> {
    let (ids, [rows, width]) = id_grid(value)?;
    if width != 2 {
        let remedy = "give the last two tokens before each place";
        return Err(bad_value(
            "the number of columns of contexts",
            width,
            remedy,
        ));
    }
    let token = |i: usize| {
        let of_31_bits = u32::try_from(ids[i])
            .ok()
            .filter(|&id| id <= i32::MAX as u32);
        of_31_bits.ok_or_else(|| {
            let name = format!("contexts[{}, {}]", i / 2, i % 2);
            bad_value(&name, ids[i], "tokens are from 0 to 2^31 - 1")
        })
    };
    (0..rows)
        .map(|row| Ok([token(2 * row)?, token(2 * row + 1)?]))
        .collect()
}

fn id_grid(value: &Bound<'_, PyAny>) -> PyResult<(Vec<i64>, [usize; 2])> {
    if let Some((ids, shape)) = grid::<i32>("ids", value)? {
        return Ok((ids.into_iter().map(i64::from).collect(), shape));
    }
    if let Some(grid) = grid::<i64>("ids", value)? {
        return Ok(grid);
    }
    Err(wrong_grid(
        "ids",
        value,
        "an int32 or int64 array [tokens, k]",
    ))
}

fn probability_grid(value: &Bound<'_, PyAny>) -> PyResult<(Vec<u8>, [usize; 2])> {
    const NAME: &str = "probabilities";
    if let Some(grid) = grid::<u8>(NAME, value)? {
        return Ok(grid);
    }
    let (numbers, shape) = match grid::<f32>(NAME, value)? {
        Some(grid) => grid,
        None => match grid::<f64>(NAME, value)? {
            Some((numbers, shape)) => (numbers.into_iter().map(|p| p as f32).collect(), shape),
            None => {
                return Err(wrong_grid(
                    NAME,
                    value,
                    "a float32, float64 or uint8 array [tokens, k]",
                ));
            }
        },
    };
    let quantise = |(i, &p): (usize, &f32)| {
        if (0.0..=1.0).contains(&p) {
            return Ok((p * 255.0).round() as u8);
        }
        let name = format!("{NAME}[{}, {}]", i / shape[1], i % shape[1]);
        Err(bad_value(&name, p, "it must be from 0 to 1"))
    };
    let quantised = numbers.iter().enumerate().map(quantise);
    Ok((quantised.collect::<PyResult<_>>()?, shape))
}

/// A copy of a two-dimensional array of this type, row by row, and its shape; `None` if it is something else.
fn grid<T: Element + Copy>(
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<Option<(Vec<T>, [usize; 2])>> {
    let dimensions = value.cast::<PyUntypedArray>().map(|array| array.ndim());
    if let Ok(dimensions @ (0 | 1 | 3..)) = dimensions {
        let name = format!("the number of dimensions of {name}");
        return Err(bad_value(
            &name,
            dimensions,
            "it must have two, [tokens, k]",
        ));
    }
    let Ok(array) = value.cast::<PyArray2<T>>() else {
        return Ok(None);
    };
    let array = array
        .try_readonly()
        .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))?;
    let array = array.as_array();
    Ok(Some((
        array.iter().copied().collect(),
        [array.nrows(), array.ncols()],
    )))
}

fn wrong_grid(name: &str, value: &Bound<'_, PyAny>, wanted: &str) -> PyErr {
    match value.cast::<PyUntypedArray>() {
        Ok(array) => {
            PyTypeError::new_err(format!("{name} has dtype {}: give {wanted}", array.dtype()))
        }
        Err(_) => wrong_type(name, value, wanted),
    }
}
