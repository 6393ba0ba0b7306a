//! Python arguments to Rust values, with errors that name the argument, the value and the remedy.

use std::{fmt::Display, ops::Deref};

use das_tree::Shape;
use numpy::{
    Element, PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::{
    exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError},
    prelude::*,
};

/// Most nodes of one draft.
pub const MAX_NODES: usize = 1024;

/// A `ValueError` of the form "name is value: remedy".
pub fn bad_value(name: impl Display, value: impl Display, remedy: &str) -> PyErr {
    PyValueError::new_err(format!("{name} is {value}: {remedy}"))
}

/// An error with the tree's own words: an `OSError` if a file was the trouble, else a `ValueError`.
pub fn tree_error(error: das_tree::Error) -> PyErr {
    if let Some(kind) = error.io_kind() {
        return std::io::Error::new(kind, error.to_string()).into();
    }
    PyValueError::new_err(error.to_string())
}

/// Runs native work without the GIL. A panic, which would be an error of ours, becomes a `RuntimeError`.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| caught(work)).map_err(internal_error)
}

/// As [`detached`], with the GIL.
pub fn attached<T>(work: impl FnOnce() -> T) -> PyResult<T> {
    caught(work).map_err(internal_error)
}

fn caught<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
}

fn internal_error(panic: Box<dyn std::any::Any + Send>) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    PyRuntimeError::new_err(format!("internal error in sglang_das: {text}"))
}

/// Token ids, checked: in the caller's array if that has the form for it, else copied.
pub enum Tokens<'py> {
    Signed(PyReadonlyArray1<'py, i32>),
    Unsigned(PyReadonlyArray1<'py, u32>),
    Copied(Vec<u32>),
}

impl Deref for Tokens<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        let (signed, unsigned): (Option<&[i32]>, _) = match self {
            Self::Signed(array) => (array.as_slice().ok(), None),
            Self::Unsigned(array) => (None, array.as_slice().ok()),
            Self::Copied(tokens) => return tokens,
        };
        // What is not contiguous has been copied.
        signed
            .map(bytemuck::cast_slice)
            .or(unsigned)
            .unwrap_or_default()
    }
}

/// Token ids from a one-dimensional int32, int64 or uint32 array, or any iterable of integers. The array is not copied if it
/// is contiguous and of 32 bits.
pub fn tokens<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Tokens<'py>> {
    let of_31_bits = |token: i64| i32::try_from(token).is_ok_and(|token| token >= 0);
    if let Some(array) = column::<i32>(name, value)? {
        check(name, array.as_array().iter(), |token| token >= 0)?;
        return Ok(if array.is_c_contiguous() {
            Tokens::Signed(array)
        } else {
            let tokens = array.as_array();
            Tokens::Copied(tokens.iter().map(|&token| token as u32).collect())
        });
    }
    if let Some(array) = column::<u32>(name, value)? {
        check(name, array.as_array().iter(), |token| {
            of_31_bits(token.into())
        })?;
        return Ok(if array.is_c_contiguous() {
            Tokens::Unsigned(array)
        } else {
            Tokens::Copied(array.as_array().iter().copied().collect())
        });
    }
    let integers = integers(name, value)?;
    let values: Vec<i64> = integers.iter().collect();
    check(name, values.iter(), of_31_bits)?;
    Ok(Tokens::Copied(
        values.iter().map(|&token| token as u32).collect(),
    ))
}

fn check<'a, T: Copy + Display + 'a>(
    name: &str,
    values: impl Iterator<Item = &'a T>,
    is_token: impl Fn(T) -> bool,
) -> PyResult<()> {
    let wrong = values.enumerate().find(|&(_, &value)| !is_token(value));
    wrong.map_or(Ok(()), |(i, value)| {
        let remedy = "token ids are from 0 to 2^31 - 1";
        Err(bad_value(format_args!("{name}[{i}]"), value, remedy))
    })
}

/// Integers: in the caller's array, or copied.
pub enum Integers<'py> {
    Long(PyReadonlyArray1<'py, i64>),
    Int(PyReadonlyArray1<'py, i32>),
    Unsigned(PyReadonlyArray1<'py, u32>),
    Byte(PyReadonlyArray1<'py, u8>),
    Copied(Vec<i64>),
}

impl Integers<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Long(array) => array.len(),
            Self::Int(array) => array.len(),
            Self::Unsigned(array) => array.len(),
            Self::Byte(array) => array.len(),
            Self::Copied(integers) => integers.len(),
        }
    }

    pub fn get(&self, i: usize) -> Option<i64> {
        match self {
            Self::Long(array) => array.get(i).copied(),
            Self::Int(array) => array.get(i).map(|&integer| integer.into()),
            Self::Unsigned(array) => array.get(i).map(|&integer| integer.into()),
            Self::Byte(array) => array.get(i).map(|&integer| integer.into()),
            Self::Copied(integers) => integers.get(i).copied(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = i64> {
        (0..self.len()).map_while(|i| self.get(i))
    }
}

/// Integers from a one-dimensional int32, int64, uint32 or uint8 array, which is not copied, or any iterable of integers.
pub fn integers<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Integers<'py>> {
    if let Some(array) = column(name, value)? {
        return Ok(Integers::Long(array));
    }
    if let Some(array) = column(name, value)? {
        return Ok(Integers::Int(array));
    }
    if let Some(array) = column(name, value)? {
        return Ok(Integers::Unsigned(array));
    }
    if let Some(array) = column(name, value)? {
        return Ok(Integers::Byte(array));
    }
    let items = items(
        name,
        value,
        "an int32, int64, uint32 or uint8 array or a list of integers",
        "an integer",
    )?;
    Ok(Integers::Copied(items))
}

/// Numbers: in the caller's array, or copied.
pub enum Numbers<'py> {
    Single(PyReadonlyArray1<'py, f32>),
    Double(PyReadonlyArray1<'py, f64>),
    Copied(Vec<f32>),
}

impl Numbers<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Single(array) => array.len(),
            Self::Double(array) => array.len(),
            Self::Copied(numbers) => numbers.len(),
        }
    }

    pub fn get(&self, i: usize) -> Option<f32> {
        match self {
            Self::Single(array) => array.get(i).copied(),
            Self::Double(array) => array.get(i).map(|&number| number as f32),
            Self::Copied(numbers) => numbers.get(i).copied(),
        }
    }
}

/// Numbers from a one-dimensional float32 or float64 array, which is not copied, or any iterable of numbers.
pub fn floats<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Numbers<'py>> {
    if let Some(array) = column(name, value)? {
        return Ok(Numbers::Single(array));
    }
    if let Some(array) = column(name, value)? {
        return Ok(Numbers::Double(array));
    }
    let items = items(
        name,
        value,
        "a float32 or float64 array or a list of numbers",
        "a number",
    )?;
    Ok(Numbers::Copied(items))
}

/// A one-dimensional array of this type, to read; `None` if it is something else.
fn column<'py, T: Element>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Option<PyReadonlyArray1<'py, T>>> {
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        return Ok(None);
    };
    if array.ndim() != 1 {
        let remedy = "it must be one-dimensional: pass it through .reshape(-1)";
        return Err(PyValueError::new_err(format!(
            "{name} has {} dimensions: {remedy}",
            array.ndim()
        )));
    }
    let Ok(array) = value.cast::<PyArray1<T>>() else {
        return Ok(None);
    };
    let array = array.try_readonly();
    let array = array.map_err(|error| PyValueError::new_err(format!("{name}: {error}")))?;
    Ok(Some(array))
}

fn items<'py, T: for<'a> FromPyObject<'a, 'py>>(
    name: &str,
    value: &Bound<'py, PyAny>,
    wanted: &str,
    item_wanted: &str,
) -> PyResult<Vec<T>> {
    if let Ok(array) = value.cast::<PyUntypedArray>() {
        return Err(PyTypeError::new_err(format!(
            "{name} has dtype {}: give {wanted}",
            array.dtype()
        )));
    }
    let iterator = value.try_iter();
    let iterator = iterator.map_err(|_| wrong_type(name, value, wanted))?;
    let convert = |(i, item): (usize, PyResult<Bound<'py, PyAny>>)| {
        let item = item?;
        let name = format!("{name}[{i}]");
        item.extract::<T>().map_err(|error| {
            let error: PyErr = error.into();
            if error.is_instance_of::<PyOverflowError>(value.py()) {
                bad_value(&name, &item, "it does not fit in 64 bits")
            } else {
                wrong_type(&name, &item, item_wanted)
            }
        })
    };
    iterator.enumerate().map(convert).collect()
}

/// A `TypeError` that names the argument, its type and what is wanted.
pub fn wrong_type(name: &str, value: &Bound<'_, PyAny>, wanted: &str) -> PyErr {
    let given = value
        .get_type()
        .name()
        .map_or_else(|_| "something else".into(), |name| name.to_string());
    PyTypeError::new_err(format!("{name} is of type {given}: give {wanted}"))
}

/// The key of a problem.
pub fn key(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            bad_value("problem", value, "it must be from 0 to 2^64 - 1")
        } else {
            wrong_type("problem", value, "an integer")
        }
    })
}

/// A count from `least` to `most`.
pub fn within(name: impl Display, value: i64, least: usize, most: usize) -> PyResult<usize> {
    match usize::try_from(value) {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(bad_value(
            name,
            value,
            &format!("it must be from {least} to {most}"),
        )),
    }
}

/// A probability.
pub fn probability(name: impl Display, value: f32) -> PyResult<f32> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(bad_value(name, value, "it must be from 0 to 1"))
    }
}

/// The weight of a rollout.
pub fn weight(value: f64) -> PyResult<f64> {
    if (0.0..=16.0).contains(&value) {
        Ok(value)
    } else {
        Err(bad_value("weight", value, "it must be from 0 to 16"))
    }
}

/// The shape of a draft.
pub fn shape(value: &str) -> PyResult<Shape> {
    match value {
        "tree" => Ok(Shape::Tree),
        "chain" => Ok(Shape::Chain),
        _ => Err(bad_value(
            "shape",
            format!("'{value}'"),
            "it must be 'tree' or 'chain'",
        )),
    }
}
