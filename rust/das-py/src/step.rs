//! One call per engine step, on arrays.

use std::sync::Arc;

use das_tree::{Coupling, DraftOptions, StepRequest};
use numpy::{Element, PyArray1, PyArray2, ndarray::Array2};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    convert::{
        Integers, MAX_NODES, bad_value, detached, floats, integers, probability, tree_error, within,
    },
    coupling::{SEEDED, coupling},
    known::Known,
    tree::Sequence,
};

type StepArrays<'py> = (
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<i32>>,
);

/// Appends and drafts for a batch.
#[pyfunction]
#[pyo3(signature = (
    sequences, tokens, offsets, max_nodes, min_probability, width, shape="tree", ids=None, probabilities=None,
    coupling=None, seeds=None, positions=None
))]
#[expect(clippy::too_many_arguments, reason = "the arrays of one batch")]
pub fn step<'py>(
    py: Python<'py>,
    sequences: Vec<Bound<'py, Sequence>>,
    tokens: &Bound<'py, PyAny>,
    offsets: &Bound<'py, PyAny>,
    max_nodes: &Bound<'py, PyAny>,
    min_probability: &Bound<'py, PyAny>,
    width: i64,
    shape: &str,
    ids: Option<&Bound<'py, PyAny>>,
    probabilities: Option<&Bound<'py, PyAny>>,
    coupling: Option<&Bound<'py, PyAny>>,
    seeds: Option<&Bound<'py, PyAny>>,
    positions: Option<&Bound<'py, PyAny>>,
) -> PyResult<StepArrays<'py>> {
    let sequences: Vec<_> = sequences
        .iter()
        .map(|sequence| Arc::clone(&sequence.get().0))
        .collect();
    let rows = sequences.len();
    let width = within("width", width, 1, MAX_NODES)?;
    let shape = crate::convert::shape(shape)?;
    let tokens = &*crate::convert::tokens("tokens", tokens)?;
    let offsets = integers("offsets", offsets)?;
    let offsets = check_offsets(&offsets, rows, tokens.len())?;
    let max_nodes = integers("max_nodes", max_nodes)?;
    check_rows("max_nodes", max_nodes.len(), rows)?;
    let floors = floats("min_probability", min_probability)?;
    check_rows("min_probability", floors.len(), rows)?;
    let known = Known::new(ids, probabilities, tokens.len())?;
    let known = known.rows()?;
    let couplings = Couplings::new(coupling, seeds, positions, rows)?;
    let mut requests = Vec::with_capacity(rows);
    for (i, sequence) in sequences.iter().enumerate() {
        // Lengths have been checked.
        let (most, floor) = (
            max_nodes.get(i).unwrap_or(-1),
            floors.get(i).unwrap_or(-1.0),
        );
        let options = DraftOptions {
            max_nodes: within(format_args!("max_nodes[{i}]"), most, 0, width)?,
            min_probability: probability(format_args!("min_probability[{i}]"), floor)?,
            shape,
            coupling: couplings.get(i)?,
        };
        let range = offsets[i]..offsets[i + 1];
        requests.push(StepRequest {
            sequence,
            accepted: &tokens[range.clone()],
            known: known.slice(range),
            options,
        });
    }
    let drafts = detached(py, || das_tree::step(&requests, width))?.map_err(tree_error)?;
    Ok((
        grid(py, drafts.tokens, [rows, width])?,
        grid(py, drafts.parents, [rows, width])?,
        grid(py, drafts.probabilities, [rows, width])?,
        PyArray1::from_vec(py, drafts.sizes),
    ))
}

/// An array of these values.
fn grid<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: [usize; 2],
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let grid = Array2::from_shape_vec(shape, values);
    let grid = grid.map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PyArray2::from_owned_array(py, grid))
}

/// How the target will pick, request by request.
struct Couplings<'py> {
    codes: Integers<'py>,
    seeds: Integers<'py>,
    positions: Integers<'py>,
}

impl<'py> Couplings<'py> {
    fn new(
        codes: Option<&Bound<'py, PyAny>>,
        seeds: Option<&Bound<'py, PyAny>>,
        positions: Option<&Bound<'py, PyAny>>,
        rows: usize,
    ) -> PyResult<Self> {
        let column = |name: &str, values: Option<&Bound<'py, PyAny>>| {
            let nothing = Ok(Integers::Copied(Vec::new()));
            let values = values.map_or(nothing, |values| integers(name, values))?;
            if values.len() > 0 {
                check_rows(name, values.len(), rows)?;
            }
            PyResult::Ok(values)
        };
        Ok(Self {
            codes: column("coupling", codes)?,
            seeds: column("seeds", seeds)?,
            positions: column("positions", positions)?,
        })
    }

    fn get(&self, row: usize) -> PyResult<Coupling> {
        let Some(code) = self.codes.get(row) else {
            return Ok(Coupling::Blind);
        };
        let of_row = |name: &str, values: &Integers| {
            let missing = || bad_value(name, "None", "seeded coupling needs one for each sequence");
            values.get(row).ok_or_else(missing)
        };
        if code == SEEDED {
            let seed = of_row("seeds", &self.seeds)?;
            let position = of_row("positions", &self.positions)?;
            return coupling(format_args!("coupling[{row}]"), code, seed, position);
        }
        coupling(format_args!("coupling[{row}]"), code, 0, 0)
    }
}

fn check_rows(name: &str, length: usize, rows: usize) -> PyResult<()> {
    if length == rows {
        return Ok(());
    }
    Err(bad_value(
        format_args!("len({name})"),
        length,
        &format!("it must be the number of sequences, {rows}"),
    ))
}

fn check_offsets(offsets: &Integers, rows: usize, tokens: usize) -> PyResult<Vec<usize>> {
    if offsets.len() != rows + 1 {
        let remedy = format!("it must be the number of sequences plus one, {}", rows + 1);
        return Err(bad_value("len(offsets)", offsets.len(), &remedy));
    }
    let all: Vec<i64> = offsets.iter().collect();
    if all[0] != 0 || all[rows] != tokens as i64 || !all.is_sorted() {
        let remedy = format!("they must rise from 0 to the number of tokens, {tokens}");
        return Err(bad_value("offsets", format_args!("{all:?}"), &remedy));
    }
    Ok(all.into_iter().map(|offset| offset as usize).collect())
}
