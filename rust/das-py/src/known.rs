//! Distributions from Python: two-dimensional arrays of ids and probabilities.

use das_tree::KnownRows;
use numpy::{
    Element, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArray, PyUntypedArrayMethods,
    ndarray::ArrayView2,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

use crate::convert::{bad_value, tree_error, wrong_type};

/// Distributions for tokens to append, as they come from Python: in the caller's arrays if those have the form for it, else
/// copied.
#[derive(Default)]
pub struct Known<'py> {
    width: usize,
    ids: Ids<'py>,
    probabilities: Probabilities<'py>,
}

enum Ids<'py> {
    There(PyReadonlyArray2<'py, i32>),
    Copied(Vec<u32>),
}

enum Probabilities<'py> {
    There(PyReadonlyArray2<'py, u8>),
    Copied(Vec<u8>),
}

impl<'py> Known<'py> {
    /// From `ids`, int32 or int64 [tokens, k], and `probabilities`, float32, float64 or uint8 (255ths) of the same shape; or
    /// nothing, if both are `None`. A cell whose id is negative is unused.
    pub fn new(
        ids: Option<&Bound<'py, PyAny>>,
        probabilities: Option<&Bound<'py, PyAny>>,
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
        let (ids, shape) = Ids::new(ids)?;
        let (probabilities, other) = Probabilities::new(probabilities)?;
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
        let probabilities = probabilities.unless_unused(ids.get());
        let width = shape[1];
        Ok(Self {
            width,
            ids,
            probabilities,
        })
    }

    /// The rows, checked.
    pub fn rows(&self) -> PyResult<KnownRows<'_>> {
        let (ids, probabilities) = (self.ids.get(), self.probabilities.get());
        KnownRows::new(self.width, ids, probabilities).map_err(tree_error)
    }
}

impl Default for Ids<'_> {
    fn default() -> Self {
        Self::Copied(Vec::new())
    }
}

impl<'py> Ids<'py> {
    fn new(value: &Bound<'py, PyAny>) -> PyResult<(Self, [usize; 2])> {
        if let Some(array) = grid::<i32>("ids", value)? {
            let shape = [array.shape()[0], array.shape()[1]];
            if array.is_c_contiguous() {
                return Ok((Self::There(array), shape));
            }
            let ids = array.as_array().iter().map(|&id| id as u32).collect();
            return Ok((Self::Copied(ids), shape));
        }
        let Some(array) = grid::<i64>("ids", value)? else {
            return Err(wrong_grid(
                "ids",
                value,
                "an int32 or int64 array [tokens, k]",
            ));
        };
        let id = |((row, column), &id): ((usize, usize), &i64)| {
            let id_of_32_bits = i32::try_from(id.max(-1)).map(|id| id as u32);
            id_of_32_bits.map_err(|_| {
                let name = format_args!("ids[{row}, {column}]");
                bad_value(name, id, "tokens of distributions are below 2^24")
            })
        };
        let ids = array
            .as_array()
            .indexed_iter()
            .map(id)
            .collect::<PyResult<_>>()?;
        Ok((Self::Copied(ids), [array.shape()[0], array.shape()[1]]))
    }

    /// As they are, those of unused cells from 2^31 on.
    fn get(&self) -> &[u32] {
        match self {
            // What is not contiguous has been copied.
            Self::There(array) => bytemuck::cast_slice(array.as_slice().unwrap_or_default()),
            Self::Copied(ids) => ids,
        }
    }
}

impl Default for Probabilities<'_> {
    fn default() -> Self {
        Self::Copied(Vec::new())
    }
}

impl<'py> Probabilities<'py> {
    fn new(value: &Bound<'py, PyAny>) -> PyResult<(Self, [usize; 2])> {
        const NAME: &str = "probabilities";
        if let Some(array) = grid::<u8>(NAME, value)? {
            let shape = [array.shape()[0], array.shape()[1]];
            if array.is_c_contiguous() {
                return Ok((Self::There(array), shape));
            }
            return Ok((
                Self::Copied(array.as_array().iter().copied().collect()),
                shape,
            ));
        }
        if let Some(array) = grid::<f32>(NAME, value)? {
            return quantised(NAME, &array.as_array(), |p| p);
        }
        if let Some(array) = grid::<f64>(NAME, value)? {
            return quantised(NAME, &array.as_array(), |p| p as f32);
        }
        Err(wrong_grid(
            NAME,
            value,
            "a float32, float64 or uint8 array [tokens, k]",
        ))
    }

    /// Zero where the cell is unused.
    fn unless_unused(self, ids: &[u32]) -> Self {
        let is_unused = |id: u32| id > i32::MAX as u32;
        let mut cells = ids.iter().zip(self.get());
        if !cells.any(|(&id, &p)| is_unused(id) && p > 0) {
            return self;
        }
        let cells = ids.iter().zip(self.get());
        let used = cells.map(|(&id, &p)| if is_unused(id) { 0 } else { p });
        Self::Copied(used.collect())
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::There(array) => array.as_slice().unwrap_or_default(), // what is not contiguous has been copied
            Self::Copied(probabilities) => probabilities,
        }
    }
}

/// Probabilities in 255ths, to the nearest.
fn quantised<'py, T: Copy>(
    name: &str,
    array: &ArrayView2<'_, T>,
    number: impl Fn(T) -> f32,
) -> PyResult<(Probabilities<'py>, [usize; 2])> {
    let shape = [array.nrows(), array.ncols()];
    let is_probability = |p: f32| (0.0..=1.0).contains(&p);
    let quantise = |&p: &T| {
        let whole = (number(p) * 255.0) as u8;
        let nearest = whole.saturating_add(u8::from(number(p) * 255.0 - f32::from(whole) >= 0.5)); // `f32::round` is a call
        is_probability(number(p)).then_some(nearest)
    };
    if let Some(quantised) = array.iter().map(quantise).collect() {
        return Ok((Probabilities::Copied(quantised), shape));
    }
    let mut cells = array.indexed_iter().map(|(at, &p)| (at, number(p)));
    let wrong = cells.find(|&(_, p)| !is_probability(p));
    let ((row, column), p) = wrong.expect("one was none");
    let name = format_args!("{name}[{row}, {column}]");
    Err(bad_value(name, p, "it must be from 0 to 1"))
}

/// The last two tokens before each of some places, from an int32 or int64 array [places, 2].
pub fn contexts(value: &Bound<'_, PyAny>) -> PyResult<Vec<[u32; 2]>> {
    let (ids, [rows, width]) = match grid::<i32>("contexts", value)? {
        Some(array) => {
            let ids: Vec<i64> = array.as_array().iter().map(|&id| id.into()).collect();
            (ids, [array.shape()[0], array.shape()[1]])
        }
        None => match grid::<i64>("contexts", value)? {
            Some(array) => {
                let ids = array.as_array().iter().copied().collect();
                (ids, [array.shape()[0], array.shape()[1]])
            }
            None => {
                let wanted = "an int32 or int64 array [places, 2]";
                return Err(wrong_grid("contexts", value, wanted));
            }
        },
    };
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

/// A two-dimensional array of this type, to read; `None` if it is something else.
fn grid<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Option<PyReadonlyArray2<'py, T>>> {
    let dimensions = value.cast::<PyUntypedArray>().map(|array| array.ndim());
    if let Ok(dimensions @ (0 | 1 | 3..)) = dimensions {
        return Err(bad_value(
            format_args!("the number of dimensions of {name}"),
            dimensions,
            "it must have two, [tokens, k]",
        ));
    }
    let Ok(array) = value.cast::<PyArray2<T>>() else {
        return Ok(None);
    };
    let array = array.try_readonly();
    let array = array.map_err(|error| PyValueError::new_err(format!("{name}: {error}")))?;
    Ok(Some(array))
}

fn wrong_grid(name: &str, value: &Bound<'_, PyAny>, wanted: &str) -> PyErr {
    match value.cast::<PyUntypedArray>() {
        Ok(array) => {
            PyTypeError::new_err(format!("{name} has dtype {}: give {wanted}", array.dtype()))
        }
        Err(_) => wrong_type(name, value, wanted),
    }
}
