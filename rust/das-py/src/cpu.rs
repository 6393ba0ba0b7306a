//! Python functions over `das-cpu`. Tensors whose type numpy does not know come by address; see `_native.pyi` for the contract.

use das_cpu::attention::{self, Batch, Heads, Plan, Tensors, Transfer};
use das_cpu::likeliest::{self, Likeliest};
use das_cpu::linear::{self, Product};
use das_cpu::machine::{Dtype, Isa};
use das_cpu::rowwise::{self, Matrix, Norm, Rotary};
use das_cpu::sampling::{self, Contenders, Filter, Rows};
use das_cpu::{hash, rows};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert::detached;

fn invalid(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn lengths(name: &str, values: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let convert = |&value: &i64| {
        usize::try_from(value).map_err(|_| invalid(format!("{name} has a negative entry: {value}")))
    };
    values.as_array().iter().map(convert).collect()
}

fn dtype_named(name: &str) -> PyResult<Dtype> {
    match name {
        "bfloat16" => Ok(Dtype::Bf16),
        "float32" => Ok(Dtype::F32),
        other => Err(invalid(format!(
            "dtype {other:?} is not supported; use 'bfloat16' or 'float32'"
        ))),
    }
}

fn isa_named(name: Option<&str>) -> PyResult<Isa> {
    let Some(name) = name else {
        return Ok(Isa::best());
    };
    let available = Isa::available();
    available
        .iter()
        .copied()
        .find(|isa| isa.name() == name)
        .ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            invalid(format!(
                "isa {name:?} is not one of this machine's: {names:?}"
            ))
        })
}

/// A batch as the attention kernel needs it: made once per forward pass, used by every layer.
#[pyclass(frozen, module = "sglang_das._native")]
struct AttentionPlan(Plan);

#[pymethods]
impl AttentionPlan {
    #[new]
    #[pyo3(signature = (req_to_token, req_pool_indices, prefix_lens, row_counts, pool_slots, mask=None, new_slots=None))]
    fn new(
        req_to_token: PyReadonlyArray2<'_, i32>,
        req_pool_indices: PyReadonlyArray1<'_, i64>,
        prefix_lens: PyReadonlyArray1<'_, i64>,
        row_counts: PyReadonlyArray1<'_, i64>,
        pool_slots: usize,
        mask: Option<PyReadonlyArray1<'_, bool>>,
        new_slots: Option<PyReadonlyArray1<'_, i64>>,
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
        // A slot beyond 32 bits becomes one far outside the pool, which the plan refuses.
        let new_slots: Vec<u32> = new_slots
            .iter()
            .flat_map(|slots| {
                slots
                    .as_array()
                    .iter()
                    .map(|&slot| u32::try_from(slot).unwrap_or(u32::MAX))
                    .collect::<Vec<u32>>()
            })
            .collect();
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
            new_slots: &new_slots,
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
        let (dtype, isa) = (dtype_named(dtype)?, isa_named(isa)?);
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
    fn store(
        &self,
        py: Python<'_>,
        plan: &AttentionPlan,
        new_key: usize,
        new_key_stride: usize,
        new_value: usize,
        new_value_stride: usize,
        key: usize,
        key_stride: usize,
        value: usize,
        value_stride: usize,
    ) -> PyResult<()> {
        let keys = Transfer {
            from: new_key,
            from_stride: new_key_stride,
            to: key,
            to_stride: key_stride,
        };
        let values = Transfer {
            from: new_value,
            from_stride: new_value_stride,
            to: value,
            to_stride: value_stride,
        };
        detached(py, || {
            // SAFETY: the Python contract: live tensors of the plan's and the model's shapes, ours alone during the call.
            unsafe { attention::store(&plan.0, self.heads, self.dtype, keys, values) }
        })?
        .map_err(invalid)
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
    ) -> PyResult<()> {
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
        detached(py, || {
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
        })
    }
}

/// Matrix products of one element type.
#[pyclass(frozen, module = "sglang_das._native")]
struct Linear {
    dtype: Dtype,
    threads: usize,
    isa: Isa,
}

#[pymethods]
impl Linear {
    #[new]
    #[pyo3(signature = (dtype, threads, isa=None))]
    fn new(dtype: &str, threads: usize, isa: Option<&str>) -> PyResult<Self> {
        Ok(Self {
            dtype: dtype_named(dtype)?,
            threads,
            isa: isa_named(isa)?,
        })
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.isa.name()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "three tensors, each an address and a stride, and their sizes"
    )]
    fn run(
        &self,
        py: Python<'_>,
        x: usize,
        x_stride: usize,
        weight: usize,
        weight_stride: usize,
        bias: usize,
        y: usize,
        y_stride: usize,
        rows: usize,
        features: usize,
        outputs: usize,
    ) -> PyResult<()> {
        let product = Product {
            x,
            x_stride,
            weight,
            weight_stride,
            bias,
            y,
            y_stride,
            rows,
            features,
            outputs,
        };
        product.check().map_err(invalid)?;
        detached(py, || {
            // SAFETY: the Python contract: live tensors of these sizes, ours alone during the call.
            unsafe { linear::multiply(&product, self.dtype, self.threads, self.isa) }
        })
    }
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "five tensors, and their sizes")]
fn rms_norm(
    py: Python<'_>,
    x: usize,
    x_stride: usize,
    residual: usize,
    residual_stride: usize,
    weight: usize,
    y: usize,
    sum: usize,
    rows: usize,
    width: usize,
    epsilon: f32,
    dtype: &str,
    threads: usize,
) -> PyResult<()> {
    let dtype = dtype_named(dtype)?;
    let norm = Norm {
        x: Matrix {
            address: x,
            stride: x_stride,
        },
        residual: (residual != 0).then_some(Matrix {
            address: residual,
            stride: residual_stride,
        }),
        weight,
        y: Matrix {
            address: y,
            stride: width,
        },
        sum: Matrix {
            address: sum,
            stride: width,
        },
        epsilon,
    };
    detached(py, || {
        // SAFETY: the Python contract: live tensors of these sizes, ours alone during the call.
        unsafe { rowwise::rms_norm(&norm, rows, width, dtype, threads) }
    })
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "two tensors, and their sizes")]
fn silu_and_mul(
    py: Python<'_>,
    x: usize,
    x_stride: usize,
    y: usize,
    rows: usize,
    width: usize,
    dtype: &str,
    threads: usize,
) -> PyResult<()> {
    let dtype = dtype_named(dtype)?;
    let (x, y) = (
        Matrix {
            address: x,
            stride: x_stride,
        },
        Matrix {
            address: y,
            stride: width,
        },
    );
    detached(py, || {
        // SAFETY: the Python contract: live tensors of these sizes, ours alone during the call.
        unsafe { rowwise::silu_and_mul(x, y, rows, width, dtype, threads) }
    })
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "four tensors, and their sizes")]
fn rotate(
    py: Python<'_>,
    positions: usize,
    table: usize,
    table_rows: usize,
    rotated: usize,
    halves: bool,
    query: usize,
    query_stride: usize,
    query_heads: usize,
    key: usize,
    key_stride: usize,
    key_heads: usize,
    rows: usize,
    head_dim: usize,
    dtype: &str,
    threads: usize,
) -> PyResult<()> {
    if rotated > head_dim || rotated % 2 != 0 {
        return Err(invalid(format!(
            "rotated ({rotated}) must be even and at most head_dim ({head_dim})"
        )));
    }
    let dtype = dtype_named(dtype)?;
    let rotary = Rotary {
        positions,
        table,
        table_rows,
        rotated,
        head_dim,
        halves,
    };
    let (query, key) = (
        Matrix {
            address: query,
            stride: query_stride,
        },
        Matrix {
            address: key,
            stride: key_stride,
        },
    );
    detached(py, || {
        // SAFETY: the Python contract: live tensors of these sizes, ours alone during the call.
        unsafe {
            rowwise::rotate(&rotary, query, query_heads, rows, dtype, threads);
            rowwise::rotate(&rotary, key, key_heads, rows, dtype, threads);
        }
    })
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

/// Token ids and values, [rows, cells].
type Top<'py> = (Bound<'py, PyArray2<i32>>, Bound<'py, PyArray2<f32>>);

fn top(py: Python<'_>, found: Likeliest, rows: usize, cells: usize) -> PyResult<Top<'_>> {
    Ok((
        found.tokens.into_pyarray(py).reshape([rows, cells])?,
        found.values.into_pyarray(py).reshape([rows, cells])?,
    ))
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
    cells: usize,
    threads: usize,
) -> PyResult<(Contending<'py>, Top<'py>)> {
    let matrix = matrix(&probabilities)?;
    let rows = row_indices(&rows, probabilities.shape()[0])?;
    let (seeds, positions) = (seeds.to_vec()?, positions.to_vec()?);
    // SAFETY: rows were checked; the array is borrowed for the call.
    let found = detached(py, || unsafe {
        sampling::race(matrix, &rows, &seeds, &positions, cells, threads)
    })?;
    let (contenders, likeliest) = found.map_err(invalid)?;
    Ok((
        contending(py, contenders),
        top(py, likeliest, rows.len(), cells)?,
    ))
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
    cells: usize,
    threads: usize,
) -> PyResult<(Contending<'py>, Top<'py>)> {
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
    let found = detached(py, || unsafe {
        sampling::filter(matrix, &rows, &filters, cells, threads)
    })?;
    let (contenders, likeliest) = found.map_err(invalid)?;
    Ok((
        contending(py, contenders),
        top(py, likeliest, rows.len(), cells)?,
    ))
}

#[pyfunction]
fn highest_columns<'py>(
    py: Python<'py>,
    values: PyReadonlyArray2<'py, f32>,
    rows: PyReadonlyArray1<'py, i64>,
    cells: usize,
    above: f32,
    threads: usize,
) -> PyResult<Top<'py>> {
    let matrix = matrix(&values)?;
    let rows = row_indices(&rows, values.shape()[0])?;
    // SAFETY: rows were checked; the array is borrowed for the call.
    let found = detached(py, || unsafe {
        likeliest::likeliest(matrix, &rows, cells, above, threads)
    })?;
    top(py, found, rows.len(), cells)
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
    detached(py, || unsafe {
        rows::copy_rows(&buffers, &row_bytes, &target, &source)
    })
}

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AttentionPlan>()?;
    module.add_class::<Attention>()?;
    module.add_class::<Linear>()?;
    module.add_function(wrap_pyfunction!(cpu_isas, module)?)?;
    module.add_function(wrap_pyfunction!(rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(silu_and_mul, module)?)?;
    module.add_function(wrap_pyfunction!(rotate, module)?)?;
    module.add_function(wrap_pyfunction!(race_columns, module)?)?;
    module.add_function(wrap_pyfunction!(filter_columns, module)?)?;
    module.add_function(wrap_pyfunction!(highest_columns, module)?)?;
    module.add_function(wrap_pyfunction!(rank_columns, module)?)?;
    module.add_function(wrap_pyfunction!(murmur_hash32, module)?)?;
    module.add_function(wrap_pyfunction!(copy_rows, module)?)
}
