//! Python arguments to Rust values, with errors that name the argument, the value and the remedy.

use std::fmt::Display;

use das_tree::Shape;
use numpy::{Element, PyArray1, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError},
    prelude::*,
};

/// Most nodes of one draft.
pub const MAX_NODES: usize = 1024;

/// A `ValueError` of the form "name is value: remedy".
pub fn bad_value(name: &str, value: impl Display, remedy: &str) -> PyErr {
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
    let outcome = py.detach(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        PyRuntimeError::new_err(format!("internal error in sglang_das: {text}"))
    })
}

/// Token ids from a one-dimensional int32, int64 or uint32 array, or any iterable of integers.
pub fn tokens(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Some(array) = column::<u32>(name, value)? {
        return checked(name, &array, |token| {
            (token <= i32::MAX as u32).then_some(token)
        });
    }
    if let Some(array) = column::<i32>(name, value)? {
        return checked(name, &array, |token| u32::try_from(token).ok());
    }
    let integers = integers(name, value)?;
    checked(name, &integers, |token| {
        i32::try_from(token)
            .ok()
            .and_then(|token| u32::try_from(token).ok())
    })
}

fn checked<T: Copy + Display>(
    name: &str,
    values: &[T],
    convert: impl Fn(T) -> Option<u32>,
) -> PyResult<Vec<u32>> {
    let convert = |(i, &value): (usize, &T)| {
        convert(value).ok_or_else(|| {
            bad_value(
                &format!("{name}[{i}]"),
                value,
                "token ids are from 0 to 2^31 - 1",
            )
        })
    };
    values.iter().enumerate().map(convert).collect()
}

/// Integers from a one-dimensional int32, int64 or uint32 array, or any iterable of integers.
pub fn integers(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if let Some(array) = column::<i64>(name, value)? {
        return Ok(array);
    }
    if let Some(array) = column::<i32>(name, value)? {
        return Ok(array.into_iter().map(i64::from).collect());
    }
    if let Some(array) = column::<u32>(name, value)? {
        return Ok(array.into_iter().map(i64::from).collect());
    }
    if let Some(array) = column::<u8>(name, value)? {
        return Ok(array.into_iter().map(i64::from).collect());
    }
    items(
        name,
        value,
        "an int32, int64, uint32 or uint8 array or a list of integers",
        "an integer",
    )
}

/// Numbers from a one-dimensional float32 or float64 array, or any iterable of numbers.
pub fn floats(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    if let Some(array) = column::<f32>(name, value)? {
        return Ok(array);
    }
    if let Some(array) = column::<f64>(name, value)? {
        return Ok(array.into_iter().map(|number| number as f32).collect());
    }
    items(
        name,
        value,
        "a float32 or float64 array or a list of numbers",
        "a number",
    )
}

/// A copy of a one-dimensional array of this type; `None` if it is something else.
fn column<T: Element + Copy>(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<T>>> {
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
    let array = array
        .try_readonly()
        .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))?;
    Ok(Some(array.as_array().iter().copied().collect()))
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
pub fn within(name: &str, value: i64, least: usize, most: usize) -> PyResult<usize> {
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
pub fn probability(name: &str, value: f32) -> PyResult<f32> {
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
