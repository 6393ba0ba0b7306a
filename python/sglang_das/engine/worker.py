"""The speculative worker: one decode step of a batch, from drafts to emitted tokens (`BaseSpecWorker`,
`sglang/srt/speculative`).

A step: learn what was emitted, draft, run the target over root and drafts of every request, sample every node as plain
decoding would, keep the path that agrees. The verify width may change every step; the relay between steps always has
the maximum width.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_func
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.scheduler import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_device, get_exec, get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_utils import (
    commit_mamba_states_after_verify,
    move_accept_tokens_to_target_kvcache,
    prepare_mamba_track_for_verify,
    record_stream_for_v2_verify,
)

from sglang_das.engine import control, coupling, grammars
from sglang_das.engine.config import DasConfig, Shape
from sglang_das.engine.distributions import Distributions, prepare
from sglang_das.engine.drafting import Drafter, Rollout
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.ends import cut_at_ends
from sglang_das.engine.grammars import NodeMasks
from sglang_das.engine.matching import Match, match
from sglang_das.engine.metrics import Counters, PeriodicLog
from sglang_das.engine.ranks import Ranks
from sglang_das.engine.rows import Rows
from sglang_das.engine.snapshot import Snapshots
from sglang_das.engine.verify import (
    DasVerifyInput,
    full_mask,
    penalise_prefill,
    rows_mask,
    sample_nodes,
    verify_input,
)
from sglang_das.engine.widths import Widths

logger = logging.getLogger("sglang_das")
T = TypeVar("T")
# The engine kills a scheduler that has not ended 15 s after it was asked to.
_SHUTDOWN_PATIENCE_S = 10.0


class DasWorker(BaseSpecWorker):  # type: ignore[misc]
    """Drives the target worker; there is no draft model."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        """Called by the scheduler before the memory pools exist."""
        del gpu_id, nccl_port
        super().__init__()
        self.server_args = server_args
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.device = get_device().device
        self.max_width: int = get_spec().speculative_num_draft_tokens
        # Read by the engine's metrics.
        self.speculative_num_draft_tokens = self.max_width
        self.speculative_num_steps = get_spec().speculative_num_steps
        self.topk: int = get_spec().speculative_eagle_topk
        self.adaptive_controller = None

        shape: Shape = "chain" if self.topk == 1 else "tree"
        self.config = dataclasses.replace(DasConfig.load(), shape=shape)
        self.counters = Counters()
        # The CPU engine's sampler decides row by row, and tells what it draws from.
        self._rowwise = hasattr(self.model_runner.sampler, "likeliest")
        self._packed = self._rowwise and self.config.packs_rows
        self.drafter = self._make_drafter()
        self._ranks = Ranks.of_engine()
        self._snapshots = self._open_snapshots()
        self._widths = Widths(self.model_runner, self.max_width, self.topk)
        self._widths.use_own_graph_runner()
        if self.config.keeps_distributions:
            prepare(self.model_runner.sampler)
        self._log = PeriodicLog(self.config.log_interval_s)
        self._step_clock = _StepClock()
        self._waiting: int | None = None
        self.off_reason: str | None = None if self.config.enabled else "switched off by configuration"
        self._failed = False
        control.attach(self)
        logger.info("DAS is %s; width up to %d, settings %s", self.state, self.max_width, self.config.describe())

    @property
    def draft_worker(self) -> None:
        """There is no draft model."""
        return None

    @property
    def state(self) -> str:
        """`on`, or `off` and why."""
        return "on" if self.off_reason is None else f"off ({self.off_reason})"

    def set_enabled(self, enabled: bool) -> None:
        """Switch drafting at run time; a switch-on after an error tries again."""
        self.off_reason = None if enabled else "switched off at run time"
        if enabled and self._failed:
            self._failed = False
            self._guarded("recovery", self.drafter.recover)
        logger.info("DAS is %s", self.state)

    def describe(self) -> dict[str, Any]:
        """Counters and state as plain values, for `/server_info`."""
        state = self._guarded("reporting", self.drafter.describe) or {}
        facts = {"state": self.state, "waiting": self._waiting or 0, "settings": self.config.describe()}
        snapshot = {} if self._snapshots is None else {"snapshot": self._snapshots.describe()}
        return {**facts, **self.counters.describe(), **snapshot, **state}

    def init_cuda_graphs(self) -> None:
        """Called after the engine has made its own attention backend and graphs, for the maximum width."""
        self._widths.build(self.drafter.policy.config.step_widths)

    # Signals from the scheduler

    def clear_cache_pool(self) -> None:
        """The engine's caches are flushed. History stays: a flush only marks that the weights may change."""
        self._guarded("learning", self.drafter.cache_flushed)

    def on_weight_update(self) -> None:
        """The weights were updated."""
        self._guarded("learning", self.drafter.weights_updated)

    def on_abort(self, request: Any) -> None:
        """A request was aborted while it waited in the queue, perhaps after a retraction."""
        self._guarded("learning", lambda: self.drafter.finish(request.rid))

    def on_queue(self, waiting: int) -> None:
        """So many requests wait for a place in the batch. None says little: a client may hold back the next ones."""
        self._waiting = waiting or None

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """A request ended in a decode result."""
        del natural_stop
        self._guarded("learning", lambda: self.drafter.finish(rid))

    def on_shutdown(self) -> None:
        """The server ends; the engine waits for some seconds."""
        if self._snapshots is not None:
            self._snapshots.finish(self.drafter.past, _SHUTDOWN_PATIENCE_S)

    # A step

    def forward_batch_generation(
        self, batch: Any, on_publish: Callable[[torch.Tensor], None] | None = None, pp_proxy_tensors: Any = None
    ) -> GenerationBatchResult:
        """Run one step: prefill as the engine does, decoding by drafting and verification."""
        stream = torch.get_device_module(self.device).current_stream()
        record_stream_for_v2_verify(batch, None, stream)
        if batch.has_grammar:
            grammars.end_as_plain(batch.reqs, speculating=batch.forward_mode.is_decode())
        if batch.forward_mode.is_decode():
            result = self._decode(batch, pp_proxy_tensors)
        else:
            self._step_clock.interrupt()
            result = self._prefill(batch, pp_proxy_tensors)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def _prefill(self, batch: Any, pp_proxy_tensors: Any) -> GenerationBatchResult:
        penalise_prefill(batch)
        result = self.target_worker.forward_batch_generation(batch, pp_proxy_tensors=pp_proxy_tensors)
        n = len(batch.reqs)
        self._learn_first(batch, result.logits_output)
        emitted = torch.zeros(n, 1, dtype=torch.int32, device=self.device)
        emitted[:, 0] = result.next_token_ids
        return self._result(
            batch,
            result,
            next_token_ids=result.next_token_ids,
            emitted=emitted,
            accept_lens=torch.ones(n, dtype=torch.int32, device=self.device),
            new_seq_lens=batch.seq_lens.clone(),
            width=self.max_width,
        )

    def _decode(self, batch: Any, pp_proxy_tensors: Any) -> GenerationBatchResult:
        drafts, masks, rollouts = self._draft(batch)
        tree = DraftTree(drafts)
        rows = Rows.of(tree, packed=self._packs())
        roots = np.fromiter((request.output_ids[-1] for request in batch.reqs), np.int64, len(batch.reqs))
        slots = self._start_verify(batch, rows, roots)
        with self._widths.active(drafts.width):
            result = self.target_worker.forward_batch_generation(
                batch, pp_proxy_tensors=pp_proxy_tensors, is_verify=True
            )
        batch.out_cache_loc = slots
        positions = batch.spec_info.positions
        sampled, distributions = sample_nodes(
            batch, self.model_runner.sampler, result.logits_output, positions, rows, masks
        )
        sampled = self._ranks.agree(sampled)
        matched = cut_at_ends(match(tree, sampled), batch.reqs, sampled)
        self._observe(drafts, rollouts, matched, len(rows.nodes))
        self._learn(rollouts, tree, roots, matched, distributions)

        predict = torch.from_numpy(sampled.ravel()[rows.nodes].astype(np.int32)).to(self.device)
        kept = matched.flat_path()
        accept_slots = torch.from_numpy(kept).to(self.device)
        accept_rows = torch.from_numpy(rows.of_nodes(kept)).to(self.device)
        accept_lens = torch.from_numpy(matched.accept_lens).to(self.device)
        commit_mamba_states_after_verify(self.target_worker, batch, accept_lens, accept_rows, drafts.width)
        if matched.moves():
            move_accept_tokens_to_target_kvcache(batch, accept_slots, accept_lens - 1, self.token_to_kv_pool_allocator)
        if batch.return_logprob:
            compute_spec_logprobs(batch, result.logits_output, predict, accept_index=accept_rows)
        batch.forward_mode = ForwardMode.DECODE
        path = accept_rows.long()
        emitted = predict[path]  # -1 wraps to some token beyond accept_lens, which nobody reads
        if batch.return_hidden_states:
            # The engine reads each request's rows from its first one on, one a token (`batch_result_processor.py`).
            result.logits_output.hidden_states = result.logits_output.hidden_states[path.flatten()]
        return self._result(
            batch,
            result,
            next_token_ids=emitted.flatten(),
            emitted=emitted,
            accept_lens=accept_lens,
            new_seq_lens=batch.seq_lens + accept_lens,
            width=drafts.width,
            cap_lens=torch.from_numpy(drafts.sizes + 1),
        )

    def _start_verify(self, batch: Any, rows: Rows, roots: NDArray[np.int64]) -> torch.Tensor:
        """Turn the decode batch into the verify batch of this step (as `ngram_worker.py` does).

        Returns the slot of every node, `[n * width]`; the batch has those of the rows.
        """
        n, width = rows.tree.depth.shape
        batch.spec_info = verify_input(rows, roots, batch.seq_lens, self._mask(rows, batch))
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.input_ids = batch.spec_info.draft_token
        slots: torch.Tensor = assign_extend_cache_locs_func(
            req_pool_indices=batch.req_pool_indices,
            req_to_token=batch.req_to_token_pool.req_to_token,
            start_offset=batch.seq_lens,
            end_offset=batch.seq_lens + width,
            batch_size=n,
            draft_token_num=width,
            device=self.device,
        )
        batch.out_cache_loc = slots[torch.from_numpy(rows.nodes)] if rows.packed else slots
        prepare_mamba_track_for_verify(batch)
        return slots

    def _packs(self) -> bool:
        """Whether this step's forward has rows for what was drafted and nothing else."""
        return self._packed and getattr(self.model_runner.attn_backend, "packs_rows", False)

    def _mask(self, rows: Rows, batch: Any) -> torch.Tensor | None:
        """The mask this step's attention reads, if any."""
        tree = rows.tree
        if self.topk > 1 and self.model_runner.device != "cpu":
            # Also for a chain: a captured graph reads the mask in any case.
            return full_mask(tree, batch.seq_lens, int(batch.seq_lens_cpu.sum()))
        return None if tree.is_chain else rows_mask(rows, batch.seq_lens.device)

    def _result(
        self,
        batch: Any,
        result: GenerationBatchResult,
        *,
        next_token_ids: torch.Tensor,
        emitted: torch.Tensor,
        accept_lens: torch.Tensor,
        new_seq_lens: torch.Tensor,
        width: int,
        cap_lens: torch.Tensor | None = None,
    ) -> GenerationBatchResult:
        """The engine's result.

        The relay to the next step always has the maximum width (`overlap_utils.py` fixes it once).
        """
        relayed = torch.zeros(len(batch.reqs), self.max_width, dtype=torch.int32, device=self.device)
        relayed[:, : emitted.shape[1]] = emitted
        return GenerationBatchResult(
            logits_output=result.logits_output,
            can_run_cuda_graph=result.can_run_cuda_graph,
            next_token_ids=next_token_ids,
            accept_lens=accept_lens,
            new_seq_lens=new_seq_lens,
            next_draft_input=DasVerifyInput(
                draft_token_num=self.max_width,
                new_seq_lens=new_seq_lens,
                accept_tokens=relayed.flatten(),
                accept_lens=accept_lens,
            ),
            speculative_num_draft_tokens=width,
            cap_lens=cap_lens,
        )

    # Drafting, which may fail

    def _make_drafter(self) -> Drafter:
        if self.config.drafter == "ngram":
            from sglang_das.engine.ngram import NgramDrafter

            return NgramDrafter(self.config, self.max_width, self.counters)
        return Drafter(self.config, self.max_width, self.counters, self._noise_of(), packed=self._packed)

    def _open_snapshots(self) -> Snapshots | None:
        """The history's file, if there is to be one, loaded."""
        if not self.config.snapshot or self.config.drafter != "das":
            return None
        path = Path(self.config.snapshot + self._ranks.suffix())
        vocabulary = int(self.model_runner.model_config.vocab_size)
        snapshots = Snapshots(path, self.config.snapshot_interval_s, vocabulary)
        if (past := snapshots.load(self.config)) is not None:
            self.drafter.go_on_from(past)
        return snapshots

    def _noise_of(self) -> coupling.NoiseOf:
        if self._rowwise:
            return coupling.of_rowwise_sampler
        deterministic = get_exec().deterministic.enable_deterministic_inference
        return coupling.of_deterministic_engine if deterministic else coupling.unknown

    def _draft(self, batch: Any) -> tuple[Drafts, NodeMasks | None, list[Rollout | None]]:
        requests, info = batch.reqs, batch.sampling_info
        filtered = info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling
        by_rank = filtered and not self._rowwise
        nothing: list[Rollout | None] = [None] * len(requests)
        with self._cpu_time():
            self._observe_step_time(requests)
            proposed = None
            if self.off_reason is None:
                proposed = self._guarded(
                    "drafting",
                    lambda: self.drafter.propose(requests, noise_by_rank=by_rank, waiting=self._waiting),
                )
        drafts, rollouts = proposed if proposed is not None else (Drafts.none(len(requests)), nothing)
        drafts, masks = self._constrain(self._ranks.agree_on_drafts(drafts), batch)
        drafts = drafts.widen(self._widths.fit(drafts.width))
        self._step_clock.start(len(requests), drafts)
        return drafts, masks, rollouts

    def _constrain(self, drafts: Drafts, batch: Any) -> tuple[Drafts, NodeMasks | None]:
        """Drafts without what grammars forbid; none at all where these fail."""
        if not batch.has_grammar:
            return drafts, None
        with self._cpu_time():
            vocabulary = batch.sampling_info.vocab_size
            left = self._guarded("grammars", lambda: grammars.constrain(drafts, batch.reqs, vocabulary))
        return left if left is not None else (Drafts.none(len(batch.reqs)), None)

    def _observe(self, drafts: Drafts, rollouts: list[Rollout | None], matched: Match, rows: int) -> None:
        accept_lens = matched.accept_lens
        self.counters.verify_steps += 1
        self.counters.request_steps += len(accept_lens)
        self.counters.rows += rows
        self._step_clock.accepted(int(accept_lens.sum()) - len(accept_lens))
        with self._cpu_time():
            self._guarded("policy", lambda: self.drafter.observe(drafts, rollouts, accept_lens, matched.accepted()))
        self._log.maybe(self.counters, self.state, lambda: self._guarded("reporting", self.drafter.policy.why))
        if self._snapshots is not None:
            self._snapshots.save_if_due(self.drafter.past)

    def _learn(
        self,
        rollouts: list[Rollout | None],
        tree: DraftTree,
        roots: NDArray[np.int64],
        matched: Match,
        distributions: Distributions,
    ) -> None:
        """Keep what the target knew at the step's nodes."""
        if self.off_reason is None and self.config.keeps_distributions:
            with self._cpu_time():
                self._guarded(
                    "learning", lambda: self.drafter.learn(rollouts, tree, roots, matched, distributions.read())
                )

    def _learn_first(self, batch: Any, logits_output: Any) -> None:
        """Keep what the target knew at the tokens drawn in a prefill."""
        if self.off_reason is not None or not self.config.keeps_distributions or batch.is_prefill_only:
            return
        n = len(batch.reqs)
        left = Distributions(
            self.model_runner.sampler, logits_output.next_token_logits, batch.sampling_info, np.arange(n), (n,)
        )
        with self._cpu_time():
            self._guarded("learning", lambda: self.drafter.learn_first(batch.reqs, left.read()))

    def _observe_step_time(self, requests: list[Any]) -> None:
        step = self._step_clock.elapsed(len(requests))
        if step is not None:
            self._guarded("policy", lambda: self.drafter.policy.observe_step(**step))

    def _guarded(self, what: str, action: Callable[[], T]) -> T | None:
        """Run an action of the drafter; its first error turns drafting off, and decoding goes on.

        Where drafting was only switched off, rollouts are still closed and updates heard of.
        """
        if self._failed:
            return None
        try:
            return action()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a native panic arrives as a BaseException
            self.counters.failures += 1
            self._failed = True
            self.off_reason = f"error in {what}: {type(error).__name__}: {error}"
            logger.exception("DAS is off after an error in %s; decoding goes on without drafts", what)
            return None

    @contextmanager
    def _cpu_time(self) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            self.counters.draft_cpu_s += time.thread_time() - started


class _StepClock:
    """Times whole steps: from one draft to the next, where nothing else ran in between."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._step: dict[str, Any] = {}

    def start(self, requests: int, drafts: Drafts) -> None:
        self._step = {"requests": requests, "width": drafts.width, "drafted": int(drafts.sizes.sum())}

    def accepted(self, drafts: int) -> None:
        self._step["accepted"] = drafts

    def interrupt(self) -> None:
        """A prefill or an idle time makes the next interval longer than a step."""
        self._started = None

    def elapsed(self, requests: int) -> dict[str, Any] | None:
        """The finished step as arguments of `Policy.observe_step`, if its time says something.

        Starts the next interval.
        """
        now = time.perf_counter()
        started, self._started = self._started, now
        if started is None or "accepted" not in self._step or requests != self._step["requests"]:
            return None
        if not now > started:  # the clock was set back
            return None
        return {**self._step, "seconds": now - started}
