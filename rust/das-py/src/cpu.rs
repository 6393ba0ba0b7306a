//! Python functions over `das-cpu`. Tensors whose type numpy does not know come by address; see `_native.pyi` for the contract.

use das_cpu::attention::{self, Batch, Dtype, Heads, Isa, Plan, Tensors};
use das_cpu::sampling::{self, Contenders, Filter, Rows};
use das_cpu::{hash, rows};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn invalid(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn lengths(name: &str, values: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let convert = |&value: &i64| {
        usize::try_from(value).map_err(|_| invalid(format!("{name} has a negative entry: {value}")))
    };
    values.as_array().iter().map(convert).collect()
}

/// A batch as the attention kernel needs it: made once per forward pass, used by every layer.
#[pyclass(frozen, module = "sglang_das._native")]
struct AttentionPlan(Plan);

#[pymethods]
impl AttentionPlan {
    #[new]
    #[pyo3(signature = (req_to_token, req_pool_indices, prefix_lens, row_counts, pool_slots, mask=None))]
    fn new(
        req_to_token: PyReadonlyArray2<'_, i32>,
        req_pool_indices: PyReadonlyArray1<'_, i64>,
        prefix_lens: PyReadonlyArray1<'_, i64>,
        row_counts: PyReadonlyArray1<'_, i64>,
        pool_slots: usize,
        mask: Option<PyReadonlyArray1<'_, bool>>,
    ) -> PyResult<Self> {
        let requests = lengths("req_pool_indices", &req_pool_indices)?;
        let prefix = lengths("prefix_lens", &prefix_lens)?;
        let rows = lengths("row_counts", &row_counts)?;
        if requests.len() != prefix.len() || prefix.len() != rows.len() {
            return Err(invalid(format!(
                "req_pool_indices, prefix_lens and row_counts must be equally long, not {}, {} and {}",
                requests.len(),
                prefix.len(),
                rows.len()
            )));
        }
        let table = req_to_token.as_array();
        let mut slots = Vec::with_capacity(prefix.iter().chain(&rows).sum());
        for ((&request, &prefix), &rows) in requests.iter().zip(&prefix).zip(&rows) {
            if request >= table.nrows() || prefix + rows > table.ncols() {
                return Err(invalid(format!(
                    "request {request} with {prefix} + {rows} tokens is outside req_to_token of shape {:?}",
                    table.shape()
                )));
            }
            // A negative slot becomes one far outside the pool, which the plan refuses.
            slots.extend(
                table
                    .row(request)
                    .iter()
                    .take(prefix + rows)
                    .map(|&slot| slot as u32),
            );
        }
        let mask = mask
            .as_ref()
            .map(|mask| mask.as_slice())
            .transpose()
            .map_err(invalid)?;
        let batch = Batch {
            slots: &slots,
            prefix: &prefix,
            rows: &rows,
            mask,
            pool_slots,
        };
        Plan::new(batch).map(Self).map_err(invalid)
    }

    #[getter]
    fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// Attention of a model's layers: shapes and settings they share.
#[pyclass(frozen, module = "sglang_das._native")]
struct Attention {
    heads: Heads,
    dtype: Dtype,
    threads: usize,
    isa: Isa,
}

#[pymethods]
impl Attention {
    #[new]
    #[pyo3(signature = (query_heads, kv_heads, key_dim, value_dim, dtype, threads, isa=None))]
    fn new(
        query_heads: usize,
        kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
        dtype: &str,
        threads: usize,
        isa: Option<&str>,
    ) -> PyResult<Self> {
        let heads = Heads::new(query_heads, kv_heads, key_dim, value_dim).map_err(invalid)?;
        let dtype = match dtype {
            "bfloat16" => Dtype::Bf16,
            "float32" => Dtype::F32,
            other => {
                return Err(invalid(format!(
                    "dtype {other:?} is not supported; use 'bfloat16' or 'float32'"
                )));
            }
        };
        let available = Isa::available();
        let isa = match isa {
            None => available[0],
            Some(name) => available
                .iter()
                .copied()
                .find(|isa| isa.name() == name)
                .ok_or_else(|| {
                    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
                    invalid(format!(
                        "isa {name:?} is not one of this machine's: {names:?}"
                    ))
                })?,
        };
        Ok(Self {
            heads,
            dtype,
            threads,
            isa,
        })
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.isa.name()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "four tensors, each an address and a stride"
    )]
    fn run(
        &self,
        py: Python<'_>,
        plan: &AttentionPlan,
        query: usize,
        query_stride: usize,
        key: usize,
        key_stride: usize,
        value: usize,
        value_stride: usize,
        output: usize,
        output_stride: usize,
        scale: f32,
    ) {
        let tensors = Tensors {
            query,
            query_stride,
            key,
            key_stride,
            value,
            value_stride,
            output,
            output_stride,
        };
        py.detach(|| {
            // SAFETY: the Python contract: live tensors of the plan's and the model's shapes, ours alone during the call.
            unsafe {
                attention::attend(
                    &plan.0,
                    self.heads,
                    self.dtype,
                    &tensors,
                    scale,
                    self.threads,
                    self.isa,
                )
            }
        });
    }
}

/// Names of the instruction sets of this machine, best first.
#[pyfunction]
fn cpu_isas() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

type Contending<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<f32>>,
);

fn contending(py: Python<'_>, found: Contenders) -> Contending<'_> {
    let offsets: Vec<i64> = found.offsets.iter().map(|&offset| offset as i64).collect();
    (
        offsets.into_pyarray(py),
        found.columns.into_pyarray(py),
        found.tokens.into_pyarray(py),
        found.probabilities.into_pyarray(py),
    )
}

fn row_indices(rows: &PyReadonlyArray1<'_, i64>, available: usize) -> PyResult<Vec<usize>> {
    let rows = lengths("rows", rows)?;
    match rows.iter().find(|&&row| row >= available) {
        Some(row) => Err(invalid(format!(
            "row {row} is outside the {available} rows of probabilities"
        ))),
        None => Ok(rows),
    }
}

fn matrix(probabilities: &PyReadonlyArray2<'_, f32>) -> PyResult<Rows> {
    let array = probabilities.as_array();
    let (&[rows, columns], &[stride, step]) = (array.shape(), array.strides()) else {
        unreachable!("two dimensions")
    };
    if (step != 1 && columns > 1) || stride < 0 || columns > u32::MAX as usize {
        return Err(invalid(format!(
            "probabilities [{rows}, {columns}] must have adjoining columns, fewer than 2^32"
        )));
    }
    Ok(Rows {
        address: array.as_ptr() as usize,
        columns,
        stride: stride as usize,
    })
}

#[pyfunction]
fn race_columns<'py>(
    py: Python<'py>,
    probabilities: PyReadonlyArray2<'py, f32>,
    rows: PyReadonlyArray1<'py, i64>,
    seeds: PyReadonlyArray1<'py, i64>,
    positions: PyReadonlyArray1<'py, i64>,
    threads: usize,
) -> PyResult<Contending<'py>> {
    let matrix = matrix(&probabilities)?;
    let rows = row_indices(&rows, probabilities.shape()[0])?;
    let (seeds, positions) = (seeds.to_vec()?, positions.to_vec()?);
    // SAFETY: rows were checked; the array is borrowed for the call.
    let found = py.detach(|| unsafe { sampling::race(matrix, &rows, &seeds, &positions, threads) });
    Ok(contending(py, found.map_err(invalid)?))
}

#[pyfunction]
#[expect(
    clippy::too_many_arguments,
    reason = "one array per sampling parameter, as the engine holds them"
)]
fn filter_columns<'py>(
    py: Python<'py>,
    probabilities: PyReadonlyArray2<'py, f32>,
    rows: PyReadonlyArray1<'py, i64>,
    top_k: PyReadonlyArray1<'py, i64>,
    top_p: PyReadonlyArray1<'py, f32>,
    min_p: PyReadonlyArray1<'py, f32>,
    by_rank: PyReadonlyArray1<'py, bool>,
    threads: usize,
) -> PyResult<Contending<'py>> {
    let matrix = matrix(&probabilities)?;
    let rows = row_indices(&rows, probabilities.shape()[0])?;
    let top_k = lengths("top_k", &top_k)?;
    let (top_p, min_p, by_rank) = (top_p.to_vec()?, min_p.to_vec()?, by_rank.to_vec()?);
    if [top_k.len(), top_p.len(), min_p.len(), by_rank.len()] != [rows.len(); 4] {
        return Err(invalid(format!(
            "top_k, top_p, min_p and by_rank must have one entry for each of {} rows",
            rows.len()
        )));
    }
    let filters: Vec<Filter> = (0..rows.len())
        .map(|i| Filter {
            top_k: top_k[i],
            top_p: top_p[i],
            min_p: min_p[i],
            by_rank: by_rank[i],
        })
        .collect();
    // SAFETY: rows were checked; the array is borrowed for the call.
    let found = py.detach(|| unsafe { sampling::filter(matrix, &rows, &filters, threads) });
    Ok(contending(py, found.map_err(invalid)?))
}

#[pyfunction]
fn rank_columns<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    columns: PyReadonlyArray1<'py, u32>,
    log_probabilities: PyReadonlyArray1<'py, f64>,
    seeds: PyReadonlyArray1<'py, i64>,
    positions: PyReadonlyArray1<'py, i64>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let offsets = lengths("offsets", &offsets)?;
    let winners = sampling::rank(
        &offsets,
        columns.as_slice()?,
        log_probabilities.as_slice()?,
        seeds.as_slice()?,
        positions.as_slice()?,
    );
    let winners: Vec<i64> = winners
        .map_err(invalid)?
        .into_iter()
        .map(|at| at as i64)
        .collect();
    Ok(winners.into_pyarray(py))
}

#[pyfunction]
fn murmur_hash32<'py>(
    py: Python<'py>,
    seeds: PyReadonlyArray1<'py, i64>,
    positions: PyReadonlyArray1<'py, i64>,
    columns: PyReadonlyArray1<'py, i64>,
) -> PyResult<Bound<'py, PyArray2<u32>>> {
    let (seeds, positions, columns) = (seeds.to_vec()?, positions.to_vec()?, columns.to_vec()?);
    if seeds.len() != positions.len() {
        return Err(invalid(format!(
            "seeds and positions must be equally many, not {} and {}",
            seeds.len(),
            positions.len()
        )));
    }
    let hashes: Vec<u32> = seeds
        .iter()
        .zip(&positions)
        .flat_map(|(&seed, &position)| {
            let state = hash::row_state(seed, position);
            columns
                .iter()
                .map(move |&column| hash::murmur(state, column as u32))
        })
        .collect();
    hashes
        .into_pyarray(py)
        .reshape([seeds.len(), columns.len()])
}

#[pyfunction]
fn copy_rows(
    py: Python<'_>,
    buffers: PyReadonlyArray1<'_, u64>,
    row_bytes: PyReadonlyArray1<'_, u64>,
    target: PyReadonlyArray1<'_, i64>,
    source: PyReadonlyArray1<'_, i64>,
) -> PyResult<()> {
    let convert = |name, values| {
        Ok::<_, PyErr>(
            lengths(name, values)?
                .into_iter()
                .map(|v| v as u64)
                .collect::<Vec<u64>>(),
        )
    };
    let (target, source) = (convert("target", &target)?, convert("source", &source)?);
    let (buffers, row_bytes) = (buffers.to_vec()?, row_bytes.to_vec()?);
    if target.len() != source.len() || buffers.len() != row_bytes.len() {
        return Err(invalid(
            "buffers and row_bytes, target and source must be equally long in pairs",
        ));
    }
    // SAFETY: the Python contract: live buffers that hold every row named, ours alone during the call.
    py.detach(|| unsafe { rows::copy_rows(&buffers, &row_bytes, &target, &source) });
    Ok(())
}

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AttentionPlan>()?;
    module.add_class::<Attention>()?;
    module.add_function(wrap_pyfunction!(cpu_isas, module)?)?;
    module.add_function(wrap_pyfunction!(race_columns, module)?)?;
    module.add_function(wrap_pyfunction!(filter_columns, module)?)?;
    module.add_function(wrap_pyfunction!(rank_columns, module)?)?;
    module.add_function(wrap_pyfunction!(murmur_hash32, module)?)?;
    module.add_function(wrap_pyfunction!(copy_rows, module)?)
}
