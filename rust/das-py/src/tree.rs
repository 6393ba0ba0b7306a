//! Python classes over `das-tree`.

use std::sync::Arc;

use das_tree::{Coupling, DraftOptions};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::{
    convert::{
        MAX_NODES, Tokens, attached, detached, probability, shape, tokens, tree_error, within,
    },
    history::RolloutHistory,
    known::Known,
    step::step,
};

/// Adds this file's classes and functions to the module.
/// Nodes of a draft for which the GIL is kept: it takes some microseconds, and to get the GIL back from another thread may take
/// longer.
const BRIEF: usize = 32;

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
    coupling: Coupling,
) -> PyResult<DraftOptions> {
    Ok(DraftOptions {
        max_nodes: within("max_tokens", max_tokens, 0, MAX_NODES)?,
        min_probability: probability("min_probability", min_probability)?,
        shape: shape(shape_name)?,
        coupling,
    })
}

/// Tokens that may be left out.
pub fn optional_tokens<'py>(
    name: &str,
    value: Option<&Bound<'py, PyAny>>,
) -> PyResult<Tokens<'py>> {
    value.map_or(Ok(Tokens::Copied(Vec::new())), |value| tokens(name, value))
}

/// An online suffix tree over the token sequences of one problem.
#[pyclass(frozen, module = "sglang_das")]
pub struct SuffixTree(pub Arc<das_tree::Tree>);

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
        let context = &*optional_tokens("context", context)?;
        let sequence = detached(py, || self.0.sequence(context))?.map_err(tree_error)?;
        Ok(Sequence(Arc::new(sequence)))
    }

    #[pyo3(signature = (context, max_tokens=16, min_probability=0.0, shape="tree", coupling=0, seed=0, position=0))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn draft(
        &self,
        py: Python<'_>,
        context: &Bound<'_, PyAny>,
        max_tokens: i64,
        min_probability: f32,
        shape: &str,
        coupling: i64,
        seed: i64,
        position: i64,
    ) -> PyResult<Draft> {
        let context = &*tokens("context", context)?;
        let coupling = crate::coupling::coupling("coupling", coupling, seed, position)?;
        let options = draft_options(max_tokens, min_probability, shape, coupling)?;
        let draft = detached(py, || self.0.draft(context, &options))?.map_err(tree_error)?;
        Ok(Draft::new(py, draft))
    }

    fn count(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<u32> {
        let string = &*crate::convert::tokens("tokens", tokens)?;
        detached(py, || self.0.count(string))?.map_err(tree_error)
    }

    fn weight(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<f64> {
        let string = &*crate::convert::tokens("tokens", tokens)?;
        detached(py, || self.0.weight(string))?.map_err(tree_error)
    }

    fn latest<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Followed<'py>>> {
        let context = &*crate::convert::tokens("tokens", tokens)?;
        let latest = detached(py, || self.0.latest_follower(context))?.map_err(tree_error)?;
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
pub struct Sequence(pub Arc<das_tree::Sequence>);

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
        let tokens = &*crate::convert::tokens("tokens", tokens)?;
        let known = Known::new(ids, probabilities, tokens.len())?;
        let rows = known.rows()?;
        detached(py, || self.0.append_known(tokens, rows))?.map_err(tree_error)
    }

    fn reject(
        &self,
        py: Python<'_>,
        contexts: &Bound<'_, PyAny>,
        ids: &Bound<'_, PyAny>,
        probabilities: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let contexts = crate::known::contexts(contexts)?;
        let known = Known::new(Some(ids), Some(probabilities), contexts.len())?;
        let rows = known.rows()?;
        detached(py, || self.0.reject(&contexts, rows))?.map_err(tree_error)
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

    #[pyo3(signature = (max_tokens=16, min_probability=0.0, shape="tree", coupling=0, seed=0, position=0))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn draft(
        &self,
        py: Python<'_>,
        max_tokens: i64,
        min_probability: f32,
        shape: &str,
        coupling: i64,
        seed: i64,
        position: i64,
    ) -> PyResult<Draft> {
        let coupling = crate::coupling::coupling("coupling", coupling, seed, position)?;
        let options = draft_options(max_tokens, min_probability, shape, coupling)?;
        let draft = || self.0.draft(&options);
        let draft = if options.max_nodes <= BRIEF {
            attached(draft)
        } else {
            detached(py, draft)
        };
        let draft = draft?.map_err(tree_error)?;
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
