//! The Python class over `das_tree::RolloutHistory`.

use std::{path::PathBuf, sync::Arc};

use das_tree::HistoryOptions;
use pyo3::{prelude::*, types::PyDict};

use crate::{
    convert::{bad_value, detached, key, tree_error, within},
    tree::{Sequence, SuffixTree, optional_tokens},
};

/// The rollouts of many problems.
#[pyclass(frozen, module = "sglang_das")]
pub struct RolloutHistory(das_tree::RolloutHistory);

#[pymethods]
impl RolloutHistory {
    #[new]
    #[pyo3(signature = (
        window=16, max_bytes=4294967296, max_depth=64, decay=1.0, soft=true, shared=true, rejected=true
    ))]
    fn new(
        window: i64,
        max_bytes: i64,
        max_depth: i64,
        decay: f64,
        soft: bool,
        shared: bool,
        rejected: bool,
    ) -> PyResult<Self> {
        let (window, max_bytes, max_depth) = (Some(window), Some(max_bytes), Some(max_depth));
        let mut options = HistoryOptions {
            soft,
            shared,
            rejected,
            ..HistoryOptions::default()
        };
        change_options(&mut options, window, max_bytes, max_depth, Some(decay))?;
        Ok(Self(
            das_tree::RolloutHistory::new(options).map_err(tree_error)?,
        ))
    }

    #[staticmethod]
    #[pyo3(signature = (
        path, window=None, max_bytes=None, max_depth=None, decay=None, soft=None, shared=None, rejected=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        window: Option<i64>,
        max_bytes: Option<i64>,
        max_depth: Option<i64>,
        decay: Option<f64>,
        soft: Option<bool>,
        shared: Option<bool>,
        rejected: Option<bool>,
    ) -> PyResult<Self> {
        let change = |options: &mut HistoryOptions| {
            options.soft = soft.unwrap_or(options.soft);
            options.shared = shared.unwrap_or(options.shared);
            options.rejected = rejected.unwrap_or(options.rejected);
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
        let problem = key(problem)?;
        let context = &*optional_tokens("context", context)?;
        let weight = crate::convert::weight(weight)?;
        let open = || self.0.rollout_with_weight(problem, context, weight);
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
