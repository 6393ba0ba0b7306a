//! One call per engine step, on arrays.

use std::sync::Arc;

use das_tree::{Coupling, DraftOptions, StepRequest};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::{
    convert::{MAX_NODES, bad_value, detached, floats, integers, probability, tree_error, within},
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
    let tokens = crate::convert::tokens("tokens", tokens)?;
    let offsets = integers("offsets", offsets)?;
    check_offsets(&offsets, rows, tokens.len())?;
    let max_nodes = integers("max_nodes", max_nodes)?;
    check_rows("max_nodes", max_nodes.len(), rows)?;
    let floors = floats("min_probability", min_probability)?;
    check_rows("min_probability", floors.len(), rows)?;
    let known = Known::new(ids, probabilities, tokens.len())?;
    let known = known.rows()?;
    let couplings = Couplings::new(coupling, seeds, positions, rows)?;
    let mut requests = Vec::with_capacity(rows);
    for (i, sequence) in sequences.iter().enumerate() {
        let options = DraftOptions {
            max_nodes: within(&format!("max_nodes[{i}]"), max_nodes[i], 0, width)?,
            min_probability: probability(&format!("min_probability[{i}]"), floors[i])?,
            shape,
            coupling: couplings.get(i)?,
        };
        let range = offsets[i] as usize..offsets[i + 1] as usize;
        requests.push(StepRequest {
            sequence,
            accepted: &tokens[range.clone()],
            known: known.slice(range),
            options,
        });
    }
    let drafts = detached(py, || das_tree::step(&requests, width))?.map_err(tree_error)?;
    Ok((
        PyArray1::from_vec(py, drafts.tokens).reshape([rows, width])?,
        PyArray1::from_vec(py, drafts.parents).reshape([rows, width])?,
        PyArray1::from_vec(py, drafts.probabilities).reshape([rows, width])?,
        PyArray1::from_vec(py, drafts.sizes),
    ))
}

/// How the target will pick, request by request.
struct Couplings {
    codes: Vec<i64>,
    seeds: Vec<i64>,
    positions: Vec<i64>,
}

impl Couplings {
    fn new(
        codes: Option<&Bound<'_, PyAny>>,
        seeds: Option<&Bound<'_, PyAny>>,
        positions: Option<&Bound<'_, PyAny>>,
        rows: usize,
    ) -> PyResult<Self> {
        let column = |name: &str, values: Option<&Bound<'_, PyAny>>| {
            let values = values.map_or(Ok(Vec::new()), |values| integers(name, values))?;
            if !values.is_empty() {
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
        let Some(&code) = self.codes.get(row) else {
            return Ok(Coupling::Blind);
        };
        let of_row = |name: &str, values: &[i64]| {
            let missing = || bad_value(name, "None", "seeded coupling needs one for each sequence");
            values.get(row).copied().ok_or_else(missing)
        };
        if code == SEEDED {
            let seed = of_row("seeds", &self.seeds)?;
            let position = of_row("positions", &self.positions)?;
            return coupling(&format!("coupling[{row}]"), code, seed, position);
        }
        coupling(&format!("coupling[{row}]"), code, 0, 0)
    }
}

fn check_rows(name: &str, length: usize, rows: usize) -> PyResult<()> {
    if length == rows {
        return Ok(());
    }
    Err(bad_value(
        &format!("len({name})"),
        length,
        &format!("it must be the number of sequences, {rows}"),
    ))
}

fn check_offsets(offsets: &[i64], rows: usize, tokens: usize) -> PyResult<()> {
    if offsets.len() != rows + 1 {
        let remedy = format!("it must be the number of sequences plus one, {}", rows + 1);
        return Err(bad_value("len(offsets)", offsets.len(), &remedy));
    }
    if offsets[0] != 0 || offsets[rows] != tokens as i64 || !offsets.is_sorted() {
        let remedy = format!("they must rise from 0 to the number of tokens, {tokens}");
        return Err(bad_value("offsets", format!("{offsets:?}"), &remedy));
    }
    Ok(())
}
