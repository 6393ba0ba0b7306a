//! Python classes over `das-tree`.

use std::{path::PathBuf, sync::Arc};

use das_tree::{DraftOptions, HistoryOptions, StepRequest};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::{prelude::*, types::PyDict};

use crate::convert::{
    Known, MAX_NODES, bad_value, detached, floats, integers, key, probability, shape, tokens,
    tree_error, within,
};

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SuffixTree>()?;
    module.add_class::<Sequence>()?;
    module.add_class::<Draft>()?;
    module.add_class::<RolloutHistory>()?;
    module.add_function(wrap_pyfunction!(step, module)?)
}

fn draft_options(
    max_tokens: i64,
    min_probability: f32,
    shape_name: &str,
) -> PyResult<DraftOptions> {
    Ok(DraftOptions {
        max_nodes: within("max_tokens", max_tokens, 0, MAX_NODES)?,
        min_probability: probability("min_probability", min_probability)?,
        shape: shape(shape_name)?,
    })
}

fn optional_tokens(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<u32>> {
    value.map_or(Ok(Vec::new()), |value| tokens(name, value))
}

/// An online suffix tree over the token sequences of one problem.
#[pyclass(frozen, module = "sglang_das")]
struct SuffixTree(Arc<das_tree::Tree>);

#[pymethods]
impl SuffixTree {
    #[new]
    #[pyo3(signature = (max_depth=64))]
    fn new(max_depth: i64) -> PyResult<Self> {
        let max_depth = within("max_depth", max_depth, 2, 64)?;
        Ok(Self(das_tree::Tree::new(max_depth).map_err(tree_error)?))
    }

    #[pyo3(signature = (context=None))]
    fn sequence(&self, py: Python<'_>, context: Option<&Bound<'_, PyAny>>) -> PyResult<Sequence> {
        let context = optional_tokens("context", context)?;
        let sequence = detached(py, || self.0.sequence(&context))?.map_err(tree_error)?;
        Ok(Sequence(Arc::new(sequence)))
    }

    #[pyo3(signature = (context, max_tokens=16, min_probability=0.0, shape="tree"))]
    fn draft(
        &self,
        py: Python<'_>,
        context: &Bound<'_, PyAny>,
        max_tokens: i64,
        min_probability: f32,
        shape: &str,
    ) -> PyResult<Draft> {
        let context = tokens("context", context)?;
        let options = draft_options(max_tokens, min_probability, shape)?;
        let draft = detached(py, || self.0.draft(&context, &options))?.map_err(tree_error)?;
        Ok(Draft::new(py, draft))
    }

    fn count(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<u32> {
        let string = crate::convert::tokens("tokens", tokens)?;
        detached(py, || self.0.count(&string))?.map_err(tree_error)
    }

    fn weight(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<f64> {
        let string = crate::convert::tokens("tokens", tokens)?;
        detached(py, || self.0.weight(&string))?.map_err(tree_error)
    }

    fn latest<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Followed<'py>>> {
        let context = crate::convert::tokens("tokens", tokens)?;
        let latest = detached(py, || self.0.latest_follower(&context))?.map_err(tree_error)?;
        Ok(latest.map(|observation| followed(py, &observation)))
    }

    fn memory_usage(&self) -> usize {
        self.0.memory_usage()
    }

    fn check_integrity(&self, py: Python<'_>) -> PyResult<()> {
        let outcome = detached(py, || self.0.check_integrity())?;
        outcome.map_err(|what| {
            pyo3::exceptions::PyRuntimeError::new_err(format!("the tree is damaged: {what}"))
        })
    }

    #[getter]
    fn max_depth(&self) -> usize {
        self.0.max_depth()
    }

    #[getter]
    fn sequences(&self) -> usize {
        self.0.sequences()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __repr__(&self) -> String {
        let tree = &self.0;
        format!(
            "SuffixTree(max_depth={}): {} sequences, {} tokens",
            tree.max_depth(),
            tree.sequences(),
            tree.len()
        )
    }
}

/// A token, and the distribution it was drawn from: ids and probabilities.
type Followed<'py> = (u32, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<f32>>);

fn followed<'py>(py: Python<'py>, observation: &das_tree::Observation) -> Followed<'py> {
    let known = &observation.distribution;
    let ids = known.tokens().iter().map(|&token| token as i32);
    let probabilities = known.entries().map(|(_, probability)| probability);
    (
        observation.token,
        PyArray1::from_iter(py, ids),
        PyArray1::from_iter(py, probabilities),
    )
}

/// A running rollout.
#[pyclass(frozen, module = "sglang_das")]
struct Sequence(Arc<das_tree::Sequence>);

#[pymethods]
impl Sequence {
    #[pyo3(signature = (tokens, ids=None, probabilities=None))]
    fn append(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        ids: Option<&Bound<'_, PyAny>>,
        probabilities: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let tokens = crate::convert::tokens("tokens", tokens)?;
        let known = Known::new(ids, probabilities, tokens.len())?;
        let rows = known.rows()?;
        detached(py, || self.0.append_known(&tokens, rows))?.map_err(tree_error)
    }

    fn latest<'py>(
        &self,
        py: Python<'py>,
        length: i64,
    ) -> PyResult<(Option<Followed<'py>>, Option<Followed<'py>>)> {
        let length = within("length", length, 1, u32::MAX as usize)?;
        let latest = detached(py, || self.0.latest(length))?.map_err(tree_error)?;
        let python = |observation: das_tree::Observation| followed(py, &observation);
        Ok((latest.own.map(python), latest.history.map(python)))
    }

    #[pyo3(signature = (max_tokens=16, min_probability=0.0, shape="tree"))]
    fn draft(
        &self,
        py: Python<'_>,
        max_tokens: i64,
        min_probability: f32,
        shape: &str,
    ) -> PyResult<Draft> {
        let options = draft_options(max_tokens, min_probability, shape)?;
        let draft = detached(py, || self.0.draft(&options))?.map_err(tree_error)?;
        Ok(Draft::new(py, draft))
    }

    #[pyo3(signature = (weight=None))]
    fn close(&self, py: Python<'_>, weight: Option<f64>) -> PyResult<()> {
        let Some(weight) = weight else {
            return detached(py, || self.0.close());
        };
        let weight = crate::convert::weight(weight)?;
        detached(py, || self.0.close_with_weight(weight))?.map_err(tree_error)
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        detached(py, || self.0.is_closed())
    }

    #[getter]
    fn match_length(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.match_length())?.map_err(tree_error)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.len())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (length, closed) = detached(py, || (self.0.len(), self.0.is_closed()))?;
        Ok(format!(
            "Sequence: {length} tokens, {}",
            if closed { "closed" } else { "running" }
        ))
    }
}

/// A draft: arrays of equal length, in best-first order.
#[pyclass(frozen, module = "sglang_das")]
struct Draft {
    #[pyo3(get)]
    tokens: Py<PyArray1<i32>>,
    #[pyo3(get)]
    parents: Py<PyArray1<i32>>,
    #[pyo3(get)]
    probabilities: Py<PyArray1<f32>>,
    len: usize,
}

impl Draft {
    fn new(py: Python<'_>, draft: das_tree::Draft) -> Self {
        let len = draft.len();
        Self {
            tokens: PyArray1::from_iter(py, draft.tokens.into_iter().map(|token| token as i32))
                .unbind(),
            parents: PyArray1::from_vec(py, draft.parents).unbind(),
            probabilities: PyArray1::from_vec(py, draft.probabilities).unbind(),
            len,
        }
    }
}

#[pymethods]
impl Draft {
    fn __len__(&self) -> usize {
        self.len
    }

    fn __repr__(&self) -> String {
        format!("Draft: {} tokens", self.len)
    }
}

/// The rollouts of many problems.
#[pyclass(frozen, module = "sglang_das")]
struct RolloutHistory(das_tree::RolloutHistory);

#[pymethods]
impl RolloutHistory {
    #[new]
    #[pyo3(signature = (window=16, max_bytes=4294967296, max_depth=64, decay=1.0))]
    fn new(window: i64, max_bytes: i64, max_depth: i64, decay: f64) -> PyResult<Self> {
        let (window, max_bytes, max_depth) = (Some(window), Some(max_bytes), Some(max_depth));
        let mut options = HistoryOptions::default();
        change_options(&mut options, window, max_bytes, max_depth, Some(decay))?;
        Ok(Self(
            das_tree::RolloutHistory::new(options).map_err(tree_error)?,
        ))
    }

    #[staticmethod]
    #[pyo3(signature = (path, window=None, max_bytes=None, max_depth=None, decay=None))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        window: Option<i64>,
        max_bytes: Option<i64>,
        max_depth: Option<i64>,
        decay: Option<f64>,
    ) -> PyResult<Self> {
        let change = |options: &mut HistoryOptions| {
            change_options(options, window, max_bytes, max_depth, decay)
        };
        change(&mut HistoryOptions::default())?;
        let load = || {
            let change = |options: &mut HistoryOptions| change(options).expect("checked above");
            das_tree::RolloutHistory::load(&path, change)
        };
        Ok(Self(detached(py, load)?.map_err(tree_error)?))
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || self.0.save(&path))?.map_err(tree_error)
    }

    fn maintain(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.0.maintain())
    }

    #[getter]
    fn window(&self) -> usize {
        self.0.options().window
    }

    #[getter]
    fn max_bytes(&self) -> usize {
        self.0.options().max_bytes
    }

    #[getter]
    fn max_depth(&self) -> usize {
        self.0.options().max_depth
    }

    #[getter]
    fn decay(&self) -> f64 {
        self.0.options().decay
    }

    #[pyo3(signature = (problem, context=None, weight=1.0))]
    fn rollout(
        &self,
        py: Python<'_>,
        problem: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        weight: f64,
    ) -> PyResult<Sequence> {
        let (problem, context) = (key(problem)?, optional_tokens("context", context)?);
        let weight = crate::convert::weight(weight)?;
        let open = || self.0.rollout_with_weight(problem, &context, weight);
        let sequence = detached(py, open)?.map_err(tree_error)?;
        Ok(Sequence(Arc::new(sequence)))
    }

    fn tree(&self, py: Python<'_>, problem: &Bound<'_, PyAny>) -> PyResult<Option<SuffixTree>> {
        let problem = key(problem)?;
        Ok(detached(py, || self.0.tree(problem))?.map(SuffixTree))
    }

    fn advance(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, || self.0.advance())
    }

    #[getter]
    fn generation(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, || self.0.generation())
    }

    fn memory_usage(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.memory_usage())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = detached(py, || self.0.stats())?;
        let dict = PyDict::new(py);
        dict.set_item("generation", stats.generation)?;
        dict.set_item("problems", stats.problems)?;
        dict.set_item("rollouts", stats.rollouts)?;
        dict.set_item("running", stats.running)?;
        dict.set_item("tokens", stats.tokens)?;
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("rebuilding", stats.rebuilding)?;
        dict.set_item("expired_rollouts", stats.expired_rollouts)?;
        dict.set_item("evicted_problems", stats.evicted_problems)?;
        Ok(dict)
    }

    fn __contains__(&self, py: Python<'_>, problem: &Bound<'_, PyAny>) -> PyResult<bool> {
        let problem = key(problem)?;
        detached(py, || self.0.contains(problem))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.stats().problems)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let stats = detached(py, || self.0.stats())?;
        Ok(format!(
            "RolloutHistory: {} problems, {} rollouts",
            stats.problems, stats.rollouts
        ))
    }
}

fn change_options(
    options: &mut HistoryOptions,
    window: Option<i64>,
    max_bytes: Option<i64>,
    max_depth: Option<i64>,
    decay: Option<f64>,
) -> PyResult<()> {
    if let Some(window) = window {
        options.window = within("window", window, 1, u32::MAX as usize)?;
    }
    if let Some(max_bytes) = max_bytes {
        options.max_bytes = within("max_bytes", max_bytes, 0, i64::MAX as usize)?;
    }
    if let Some(max_depth) = max_depth {
        options.max_depth = within("max_depth", max_depth, 2, 64)?;
    }
    if let Some(decay) = decay {
        if !(decay > 0.0 && decay <= 1.0) {
            return Err(bad_value(
                "decay",
                decay,
                "it must be above 0 and at most 1",
            ));
        }
        options.decay = decay;
    }
    Ok(())
}

type StepArrays<'py> = (
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<i32>>,
);

/// Appends and drafts for a batch.
#[pyfunction]
#[pyo3(signature = (
    sequences, tokens, offsets, max_nodes, min_probability, width, shape="tree", ids=None, probabilities=None
))]
#[expect(clippy::too_many_arguments, reason = "the arrays of one batch")]
fn step<'py>(
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
    let mut requests = Vec::with_capacity(rows);
    for (i, sequence) in sequences.iter().enumerate() {
        let options = DraftOptions {
            max_nodes: within(&format!("max_nodes[{i}]"), max_nodes[i], 0, width)?,
            min_probability: probability(&format!("min_probability[{i}]"), floors[i])?,
            shape,
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
