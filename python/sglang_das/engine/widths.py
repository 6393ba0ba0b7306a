"""Verify widths on devices whose attention backends and graphs are built for one width.

On a GPU an attention backend may keep the width it was made with (FlashAttention 3 does, in eager mode too), and a
captured graph has one width. So there is a pair of both per width, and a step runs with the pair of its width installed
in the model runner; the startup pair is put back after each step, because prefill and graph recapture look at whatever
is installed (the engine's adaptive EAGLE does the same, `sglang/srt/speculative/eagle_worker_v2.py`). On the CPU any
width runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.runtime_context import get_spec

from sglang_das.engine.shapes import verify_steps
from sglang_das.engine.verify import DasVerifyInput

logger = logging.getLogger("sglang_das")


@dataclass(frozen=True)
class _Pair:
    attention: Any
    graphs: Any
    """None where no graphs are captured."""


class Widths:
    """The widths a step may have, and the switch between them."""

    def __init__(self, model_runner: Any, startup_width: int, topk: int) -> None:
        """Nothing is built yet; before `build`, the startup width is the only one on a GPU.

        `topk` is 1 for chains (`shapes`).
        """
        self._topk = topk
        self._runner = model_runner
        self._startup_width = startup_width
        self._pairs: dict[int, _Pair] = {}

    def use_own_graph_runner(self) -> None:
        """Capture chains without a mask, from the startup graphs on: to be called before the engine captures them.

        Trees are captured by the engine's own runner, with a mask, as its NGRAM is.
        """
        if self._runner.device == "cuda" and self._topk == 1:
            self._runner._decode_cuda_graph_runner_cls = _graph_runner_class

    def build(self, widths: Iterable[int]) -> None:
        """Make a pair for every width but the startup one, which the engine has made."""
        if self._runner.device == "cpu":
            return
        for width in widths:
            if width != self._startup_width:
                self._pairs[width] = self._make_pair(width)
        logger.info("DAS verifies at widths %s", sorted({self._startup_width, *self._pairs}))

    def fit(self, width: int) -> int:
        """The narrowest width there is for a step that wants `width`."""
        if self._runner.device == "cpu":
            return width
        return min((w for w in (*self._pairs, self._startup_width) if w >= width), default=self._startup_width)

    @contextmanager
    def active(self, width: int) -> Iterator[None]:
        """Run the block with the pair of `width` installed."""
        pair = self._pairs.get(width)
        if pair is None:
            yield
            return
        startup = _Pair(self._runner.attn_backend, self._runner.decode_cuda_graph_runner)
        self._install(pair)
        try:
            yield
        finally:
            self._install(startup)

    def _install(self, pair: _Pair) -> None:
        self._runner.attn_backend = pair.attention
        self._runner.decode_cuda_graph_runner = pair.graphs

    def _make_pair(self, width: int) -> _Pair:
        steps = verify_steps(width, self._topk)
        with get_spec().override(speculative_num_draft_tokens=width, speculative_num_steps=steps):
            attention = self._runner._get_attention_backend(init_new_workspace=False)
            graphs = None
            if self._runner.decode_cuda_graph_runner is not None:
                graphs = self._runner._decode_cuda_graph_runner_cls()(
                    self._runner,
                    attn_backend=attention,
                    speculative_num_steps=steps,
                    speculative_num_draft_tokens=width,
                )
        return _Pair(attention, graphs)


def _graph_runner_class() -> type:
    """The engine's decode graph runner, capturing verification of chains without a mask; made late: it needs CUDA."""
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    class DasGraphRunner(DecodeCudaGraphRunner):  # type: ignore[misc]
        def get_spec_info(self, num_tokens: int) -> DasVerifyInput:
            """Capture and replay must agree on having no mask (`triton_backend.py` would read a stale one)."""
            del num_tokens
            spec_info = DasVerifyInput(
                draft_token_num=self.captured_req_width,
                new_seq_lens=torch.empty(0, dtype=torch.int64, device=self.model_runner.device),
            )
            spec_info.capture_hidden_mode = CaptureHiddenMode.NULL
            return spec_info

    return DasGraphRunner
