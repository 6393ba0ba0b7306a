"""What to draft: the history, the live rollouts and the policy, put together once per step.

Knows the engine only through a few attributes of its requests (`Req`, `sglang/srt/managers/schedule_batch.py`); torch
is not needed. Everything here may fail without harm: the worker catches the error, turns drafting off and decodes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das import RolloutHistory, Sequence, step
from sglang_das.engine import coupling, grammars, processors
from sglang_das.engine.config import DasConfig
from sglang_das.engine.coupling import Coupling, Noise, NoiseOf
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.known import Known, Pending, Rejected
from sglang_das.engine.matching import Match
from sglang_das.engine.metrics import Counters
from sglang_das.engine.problems import Problem, Problems, Suspended
from sglang_das.engine.snapshot import Past
from sglang_das.policy import CLASS_NAMES, Policy, PolicyConfig

# A rollout cut off under one policy version is usually resubmitted under the next one; after that it is given up.
_VERSIONS_SUSPENDED = 2
# Steps between two looks for rollouts that ended without a word (aborted while queued, finished at prefill).
_SWEEP_INTERVAL = 64
# Suspended rollouts given up between two looks at the history's size.
_GIVEN_UP_AT_ONCE = 16


@dataclass(eq=False, slots=True)
class Rollout:
    """A running request and its places in history and policy."""

    request: Any
    problem: Problem[Sequence]
    sequence: Sequence
    row: int
    """Its row in the policy's arrays."""
    continued: NDArray[np.int64]
    """Output tokens of earlier, interrupted requests that it goes on from."""
    no_drafts: str | None
    """Why it is not drafted for, or None; every rollout is learnt from."""
    noise: Noise
    """What is known of the noise it is sampled with."""
    teaches: bool
    """Whether other rollouts of the problem would draw from its distributions too, so that these are learnt."""
    learned: int = 0
    """Output tokens of this request that are in the sequence."""
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    """Rows verified for it: its steps' widths added up."""
    length_class: int | None = None
    """What the policy took it for in its last step."""


class Drafter:
    """History, live rollouts and policy of one scheduler."""

    def __init__(
        self,
        config: DasConfig,
        max_width: int,
        counters: Counters,
        noise_of: NoiseOf = coupling.unknown,
        *,
        packed: bool = False,
    ) -> None:
        """Start with no history.

        Args:
            config: the server's settings.
            max_width: largest verify width the engine has room for.
            counters: where drafts and rollouts are counted.
            noise_of: what is known of the noise of a request.
            packed: whether a step verifies what is drafted and nothing else.
        """
        self.config = config
        self.history = RolloutHistory(**config.history_options())
        self._noise_of = noise_of
        self._policy_config = PolicyConfig(arm=config.arm, max_width=max_width, profile=config.profile, packed=packed)
        self.policy = Policy(self._policy_config)
        self._max_nodes = max_width - 1
        self._counters = counters
        self._problems: Problems[Sequence] = Problems()
        self._live: dict[str, Rollout] = {}
        self._version = 0
        self._emitted_since_version = False
        self._updates_announced = False
        self._steps = 0
        self._evicted = 0

    @property
    def problems(self) -> Problems[Sequence]:
        """Which problems there are; the history holds their rollouts."""
        return self._problems

    def go_on_from(self, past: Past) -> None:
        """Take what an earlier server left for one's own, before the first request."""
        self.history, self._problems = past.history, past.problems
        self.policy.lengths.go_on_from(past.lengths)

    def past(self) -> Past:
        """What a later server may go on from."""
        return Past(self.history, self._problems, self.policy.lengths.known())

    def propose(
        self, requests: list[Any], *, noise_by_rank: bool = False, waiting: int | None = None
    ) -> tuple[Drafts, list[Rollout | None]]:
        """Learn what the requests emitted since the last step, and draft for this one.

        Args:
            requests: the batch's requests, in its order.
            noise_by_rank: the batch makes the sampler key its noise by rank, so that none is known.
            waiting: requests queued for a place in the batch; None if that is not known.

        Returns:
            Drafts of the chosen width for all requests, and the requests' rollouts (None where there is none).
        """
        self._sweep(requests)
        rollouts = [self._rollout(request) for request in requests]
        places = np.array([i for i, rollout in enumerate(rollouts) if rollout is not None], np.int64)
        live = [rollout for rollout in rollouts if rollout is not None]
        if not live:
            return Drafts.none(len(requests)), rollouts
        rows = np.array([rollout.row for rollout in live], np.int64)
        generated = np.array([len(rollout.continued) + len(rollout.request.output_ids) for rollout in live], np.int32)
        plan = self.policy.plan(rows, generated, waiting, others=len(requests) - len(live))
        plan = plan.within(_room(live).clip(0, self._max_nodes).astype(np.int32))
        for rollout, length_class in zip(live, plan.length_class.tolist(), strict=True):
            rollout.length_class = length_class
        self._emitted_since_version = True
        drafted = self._step(live, plan.max_drafts, plan.floor, noise_by_rank)
        choice = self.policy.width(drafted.probabilities, drafted.sizes, plan)
        # Padded, a width in between would be cheaper here, but the policy knows the cost of its own widths only.
        chosen = drafted.cut(choice.width, choice.drafts).widen(choice.width)
        return _spread(chosen, places, len(requests)), rollouts

    def observe(
        self,
        drafts: Drafts,
        rollouts: list[Rollout | None],
        accept_lens: NDArray[np.int32],
        accepted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Tell the policy what became of the drafts of a step, and count it.

        Args:
            drafts: of the step.
            rollouts: as `propose` returned them.
            accept_lens: tokens each request emitted, `[n]`.
            accepted: which nodes were kept, `[n, width - 1]`; not needed for chains.
        """
        live = np.array([rollout is not None for rollout in rollouts], bool)
        kept = None if accepted is None else accepted[live]
        self.policy.observe_drafts(drafts.probabilities[live], drafts.sizes[live], accept_lens[live], kept)
        self._counters.drafted += int(drafts.sizes.sum())
        self._counters.accepted += int(accept_lens.sum()) - len(accept_lens)
        for rollout, size, length in zip(rollouts, drafts.sizes.tolist(), accept_lens.tolist(), strict=True):
            if rollout is not None:
                rollout.steps += 1
                rollout.rows += size + 1 if self._policy_config.packed else drafts.width
                rollout.drafted += size
                rollout.accepted += length - 1

    def learn(
        self,
        rollouts: list[Rollout | None],
        tree: DraftTree,
        roots: NDArray[np.int64],
        matched: Match,
        known: Known,
    ) -> None:
        """Keep the distributions of a step: of emitted tokens until these are learnt, of rejected nodes at once.

        Args:
            rollouts: as `propose` returned them.
            tree: the step's draft tree, `[n, width]`.
            roots: the token at each root, `[n]`.
            matched: what was kept.
            known: the distributions at the nodes, `[n, width, CELLS]`.
        """
        if self.config.soft:
            emitted = known[np.arange(len(roots))[:, None], matched.path]
            for i, (rollout, length) in enumerate(zip(rollouts, matched.accept_lens.tolist(), strict=True)):
                if rollout is not None and rollout.teaches:
                    rollout.request.das_known = Pending(len(rollout.request.output_ids), emitted[i, :length])
        if self.config.rejected:
            self._learn_rejected(rollouts, Rejected.of(tree, roots, matched.accepted()), known)

    def learn_first(self, requests: list[Any], known: Known) -> None:
        """Keep the distributions of the tokens that a prefill drew, `[n, CELLS]`, until these are learnt."""
        if self.config.soft:
            for i, request in enumerate(requests):
                if reason_not_to_draft(request) is None:
                    request.das_known = Pending(len(request.output_ids), known[i : i + 1])

    def finish(self, rid: str) -> None:
        """A request has ended: learn its last tokens, and close or suspend its rollout."""
        rollout = self._live.pop(rid, None)
        if rollout is not None:
            self._end(rollout)

    def weights_updated(self) -> None:
        """The weights were updated: a new policy version, unless nothing was emitted under this one."""
        self._updates_announced = True
        self._new_policy_version()

    def cache_flushed(self) -> None:
        """The caches were flushed, which is the only sign of an update where the engine is not told of them."""
        if not self._updates_announced:
            self._new_policy_version()

    def _new_policy_version(self) -> None:
        """Count the several signals of one update once: a version under which nothing was emitted is none."""
        if not self._emitted_since_version:
            return
        self._emitted_since_version = False
        self._version += 1
        self.history.advance()
        for sequence in self._problems.expire(self._version - _VERSIONS_SUSPENDED + 1):
            sequence.close()
        self._forget_evicted()

    def recover(self) -> None:
        """After an error: give up the running rollouts and start with a fresh policy; the history stays."""
        for rollout in self._live.values():
            rollout.sequence.close()
        self._live.clear()
        self.policy = Policy(self._policy_config)

    def describe(self) -> dict[str, Any]:
        """State as plain values, for server info."""
        return {
            "problems": len(self._problems),
            "live_rollouts": len(self._live),
            "policy_version": self._version,
            "history": self.history.stats(),
            "policy": self.policy.describe(),
        }

    def _step(
        self, live: list[Rollout], max_nodes: NDArray[np.int32], floor: NDArray[np.float32], noise_by_rank: bool
    ) -> Drafts:
        """Append what the rollouts emitted since the last step, with what the target knew, and draft for each."""
        tokens, offsets, known = _unlearned(live)
        codes = np.array([rollout.noise.coupling for rollout in live], np.uint8)
        if noise_by_rank:
            codes[codes == Coupling.SEEDED] = Coupling.BLIND
        arrays = step(
            [rollout.sequence for rollout in live],
            tokens,
            offsets,
            max_nodes=max_nodes,
            min_probability=floor,
            width=max(int(max_nodes.max()), 1),
            shape="chain" if self.config.shape == "chain" else "tree",
            ids=known.ids,
            probabilities=known.probabilities,
            coupling=codes,
            seeds=np.array([rollout.noise.seed for rollout in live], np.int64),
            positions=_positions(live),
        )
        for rollout in live:
            rollout.learned = len(rollout.request.output_ids)
        return Drafts(*arrays)

    def _learn_rejected(self, rollouts: list[Rollout | None], rejected: Rejected, known: Known) -> None:
        found = known[rejected.owners, rejected.nodes]
        bounds = np.searchsorted(rejected.owners, np.arange(len(rollouts) + 1)).tolist()
        for rollout, (start, end) in zip(rollouts, pairwise(bounds), strict=True):
            if start < end and rollout is not None and rollout.teaches:
                part = found[start:end]
                rollout.sequence.reject(rejected.contexts[start:end], part.ids, part.probabilities)

    def _rollout(self, request: Any) -> Rollout | None:
        known = self._live.get(request.rid)
        if known is not None and known.request is request:
            return known
        if known is not None:  # a request id used again
            self.finish(request.rid)
        if not _is_rollout(request, self.config.min_prompt_tokens):
            if request.multimodal_inputs is not None:
                _say(request, {"proposed": 0, "accepted": 0, "not_drafted": "multi-modal input"})
            return None
        rollout = self._open(request)
        self._live[request.rid] = rollout
        self._counters.rollouts += 1
        return rollout

    def _open(self, request: Any) -> Rollout:
        input_ids = np.array(request.origin_input_ids_unpadded, np.int64)
        wishes = _wishes(request)
        name = wishes.get("problem")
        admission = self._problems.admit(input_ids, None if name is None else str(name))
        problem = admission.problem
        if admission.resumes is not None:
            problem.suspended.remove(admission.resumes)
            sequence = admission.resumes.sequence
        else:
            sequence = self.history.rollout(problem.key, input_ids[: len(input_ids) - len(admission.continued)])
            sequence.append(admission.continued)
        continued = len(admission.continued)
        row = self.policy.open(problem.key, continued + request.sampling_params.max_new_tokens, continued)
        no_drafts = reason_not_to_draft(request) if wishes.get("draft", True) else "asked for none"
        teaches = reason_not_to_draft(request) is None
        noise = self._noise_of(request) if self.config.coupled else Noise(Coupling.BLIND)
        return Rollout(request, problem, sequence, row, admission.continued.copy(), no_drafts, noise, teaches)

    def _end(self, rollout: Rollout) -> None:
        request = rollout.request
        output = np.array(request.output_ids_through_stop, np.int64)
        rest = output[rollout.learned :]
        known = _known(rollout, len(rest))
        rollout.sequence.append(rest, known.ids, known.probabilities)
        outcome = type(request.finished_reason).__name__
        natural = outcome not in ("FINISH_ABORT", "FINISH_LENGTH", "NoneType")
        emitted = np.concatenate([rollout.continued, output])
        figures = {**_figures(rollout), "why": self._why(rollout)}
        self.policy.close(rollout.row, len(emitted), finished=natural or outcome == "FINISH_LENGTH")
        self._emitted_since_version = True
        _say(request, figures)
        if natural:
            rollout.sequence.close()
            return
        rollout.problem.suspended.append(Suspended(emitted, rollout.sequence, self._version))

    def _why(self, rollout: Rollout) -> str | None:
        """Why a rollout had the budget it had in its last step, if that was the batch's last."""
        if rollout.no_drafts:
            return f"no drafts: {rollout.no_drafts}"
        try:
            return self.policy.explain(rollout.row, brief=True)
        except ValueError:
            return None

    def _sweep(self, requests: list[Any]) -> None:
        """End rollouts whose request finished without being announced."""
        self._steps += 1
        if self._steps % _SWEEP_INTERVAL:
            return
        running = {request.rid for request in requests}
        for rid in [rid for rid, rollout in self._live.items() if rid not in running and rollout.request.finished()]:
            self.finish(rid)
        self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        """Give up suspended rollouts where they keep the history above its budget: their problems cannot leave it."""
        while self.history.memory_usage() > self.config.history_bytes:
            given_up = self._problems.give_up(_GIVEN_UP_AT_ONCE)
            if not given_up:
                break
            for sequence in given_up:
                sequence.close()
        if self.history.stats()["evicted_problems"] - self._evicted > len(self._problems) // 2:
            self._forget_evicted()

    def _forget_evicted(self) -> None:
        self._problems.forget(key for key in self._problems.known_keys() if key not in self.history)
        self._evicted = self.history.stats()["evicted_problems"]


def reason_not_to_draft(request: Any) -> str | None:
    """Why a request is decoded without drafts, or None.

    Its sampling at a drafted node depends on something that is not reproduced along a draft.
    """
    return grammars.reason_not_to_follow(request) or processors.reason_not_to_follow(request)


def _is_rollout(request: Any, min_prompt_tokens: int) -> bool:
    """Whether a request is somebody's: not a health check, a warm-up or a scoring call."""
    return (
        len(request.origin_input_ids_unpadded) >= min_prompt_tokens
        and request.sampling_params.max_new_tokens > 1
        and not request.rid.startswith("HEALTH_CHECK")
        and request.multimodal_inputs is None
    )


def _say(request: Any, figures: dict[str, Any]) -> None:
    """Let a request's `meta_info["das"]` be these figures."""
    request.customized_info = {**(request.customized_info or {}), "das": [figures]}


def _figures(rollout: Rollout) -> dict[str, Any]:
    """What DAS did for a request, for its `meta_info["das"]`."""
    return {
        "proposed": rollout.drafted,
        "accepted": rollout.accepted,
        "verify_steps": rollout.steps,
        "mean_width": round(rollout.rows / rollout.steps, 2) if rollout.steps else 1.0,
        "length_class": None if rollout.length_class is None else CLASS_NAMES[rollout.length_class],
        "not_drafted": rollout.no_drafts,
    }


def _wishes(request: Any) -> dict[str, Any]:
    """What the client asked of DAS: `custom_params["das"]`."""
    wishes = (request.sampling_params.custom_params or {}).get("das")
    return wishes if isinstance(wishes, dict) else {}


def _room(rollouts: list[Rollout]) -> NDArray[np.int64]:
    """Drafts each request has room for: one of its remaining tokens is the sample after the drafts.

    0 where it must not be drafted for.
    """
    return np.array(
        [
            0 if r.no_drafts else r.request.sampling_params.max_new_tokens - len(r.request.output_ids) - 1
            for r in rollouts
        ],
        np.int64,
    )


def _positions(rollouts: list[Rollout]) -> NDArray[np.int64]:
    """Position of each request's root row in the verify forward: its last token has no key and value yet."""
    requests = [rollout.request for rollout in rollouts]
    return np.array([len(r.origin_input_ids_unpadded) + len(r.output_ids) - 1 for r in requests], np.int64)


def _unlearned(rollouts: list[Rollout]) -> tuple[NDArray[np.int64], NDArray[np.int64], Known]:
    """Tokens emitted since they were last learnt, one request after the other, their offsets `[n + 1]`, and what they
    were drawn from, `[tokens, CELLS]`.
    """
    parts = [rollout.request.output_ids[rollout.learned :] for rollout in rollouts]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    tokens = np.concatenate([np.frombuffer(part, np.int64) if part else np.empty(0, np.int64) for part in parts])
    known = [_known(rollout, len(part)) for rollout, part in zip(rollouts, parts, strict=True)]
    return tokens, offsets, Known.join(known)


def _known(rollout: Rollout, count: int) -> Known:
    """What is known of the rollout's next `count` tokens to be learnt."""
    pending: Pending | None = getattr(rollout.request, "das_known", None)
    return Known.none(count) if pending is None else pending.of(rollout.learned, count)


def _spread(drafts: Drafts, places: NDArray[np.int64], n: int) -> Drafts:
    """Drafts of the requests at `places` as drafts of all n."""
    if len(places) == n:
        return drafts

    def widen(values: NDArray[Any], fill: int) -> NDArray[Any]:
        wide = np.full((n, *values.shape[1:]), fill, values.dtype)
        wide[places] = values
        return wide

    return Drafts(
        widen(drafts.tokens, 0), widen(drafts.parents, -1), widen(drafts.probabilities, 0), widen(drafts.sizes, 0)
    )
