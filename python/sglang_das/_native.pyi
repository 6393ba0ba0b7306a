"""The native module: documented here, checked against the module by the tests."""

from collections.abc import Iterable
from os import PathLike
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__version__: str

# --- The suffix tree (rust/das-tree) ---

_Integers: TypeAlias = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint32] | Iterable[int]
_Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64] | Iterable[float]
_Shape: TypeAlias = Literal["tree", "chain"]
_Coupling: TypeAlias = Literal[0, 1, 2]
"""How the target picks its next tokens, as far as known: 0 by noise that is not known; 1 greedily; 2 by Gumbel-max with
SGLang's noise of a seed, where what follows the text is drawn at a position, and each token drafted below another a
position later."""
_KnownIds: TypeAlias = NDArray[np.int32] | NDArray[np.int64]
_KnownProbabilities: TypeAlias = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint8]
_Followed: TypeAlias = tuple[int, NDArray[np.int32], NDArray[np.float32]]
"""A token, and the ids and probabilities of the distribution it was drawn from, likeliest first: empty if none was
given or the token was nearly certain."""

@final
class SuffixTree:
    """An online suffix tree over the token sequences of one problem, any number of which grow at once.

    Methods may be called from any thread. Appends and drafts never wait for those of other sequences. Nothing is
    removed from a tree: its memory returns when it is dropped (see `RolloutHistory` for a window).
    """

    def __new__(cls, max_depth: int = 64) -> SuffixTree:
        """A tree with statistics of strings up to `max_depth` tokens, 2 to 64; drafts use contexts of half that."""

    def sequence(self, context: _Integers | None = None) -> Sequence:
        """Opens a sequence. `context` is its prompt: its own drafts draw on it, the tree does not contain it.

        Raises ValueError if a token is negative or above 2^31 - 1, TypeError if they are no integers.
        """

    def draft(
        self,
        context: _Integers,
        max_tokens: int = 16,
        min_probability: float = 0.0,
        shape: _Shape = "tree",
        coupling: _Coupling = 0,
        seed: int = 0,
        position: int = 0,
    ) -> Draft:
        """Drafts what may follow `context`, a text that is not in the tree: from its own repetitions and from what
        followed its last tokens in the tree. An empty context, or `max_tokens=0`, gives an empty draft. Arguments and
        errors otherwise as in `Sequence.draft`.
        """

    def count(self, tokens: _Integers) -> int:
        """How often `tokens` (1 to `max_depth` of them) occurs in the sequences.

        Exact once all sequences are closed. In a running one, the occurrences that begin in its longest suffix known
        from elsewhere are not counted yet. Where sequences differ in weight, as in a history with decay, it is `weight`
        to the nearest integer, but at least 1 for what occurs.
        """

    def weight(self, tokens: _Integers) -> float:
        """The sum of the weights of the occurrences that `count` counts."""

    def latest(self, tokens: _Integers) -> _Followed | None:
        """What followed the most recent occurrence of `tokens` (1 to `max_depth` of them): the one counted last."""

    def memory_usage(self) -> int:
        """Bytes allocated for the tree and its running sequences."""

    def check_integrity(self) -> None:
        """Re-derives the whole structure from the text; RuntimeError names the first violation. Slow: for tests."""

    @property
    def max_depth(self) -> int:
        """Longest string with statistics."""

    @property
    def sequences(self) -> int:
        """Number of sequences opened, closed ones included."""

    def __len__(self) -> int:
        """Number of tokens appended, contexts not included."""

@final
class Sequence:
    """A running rollout, made by `SuffixTree.sequence` or `RolloutHistory.rollout`.

    Threads may share it; they take turns. When it is dropped, it is closed. After `close`, `append`, `draft` and
    `match_length` raise ValueError.
    """

    def append(
        self, tokens: _Integers, ids: _KnownIds | None = None, probabilities: _KnownProbabilities | None = None
    ) -> None:
        """Appends output tokens; none of them if there is an error (as `SuffixTree.sequence`).

        Row i of `ids` and `probabilities`, both [tokens, k] with k <= 8, is what the target knew: the most probable
        entries of the distribution that token i was drawn from. Ids are below 2^24, a negative one marks an unused
        cell; probabilities are from 0 to 1, or uint8 in 255ths, as which they are kept. Nothing is kept where the
        token drawn has more than 0.95. ValueError or TypeError if shapes, types or values do not fit.
        """

    def reject(
        self, contexts: NDArray[np.int32] | NDArray[np.int64], ids: _KnownIds, probabilities: _KnownProbabilities
    ) -> None:
        """Learns what the target knew at places that came to nothing: drafted nodes that were not kept.

        Row i of `contexts`, int32 or int64 [places, 2], are the last two tokens before place i, the older first; of
        `ids` and `probabilities` the distribution there, as in `append`. Kept under those tokens for the whole problem.
        """

    def latest(self, length: int) -> tuple[_Followed | None, _Followed | None]:
        """What followed the most recent occurrence of the last `length` tokens: in the sequence's own context and
        output, and in the other sequences (there only for a context that lies in the output and has at most
        `max_depth` tokens).
        """

    def draft(
        self,
        max_tokens: int = 16,
        min_probability: float = 0.0,
        shape: _Shape = "tree",
        coupling: _Coupling = 0,
        seed: int = 0,
        position: int = 0,
    ) -> Draft:
        """Drafts what may come next, from the sequence's own context and output and from the others in the tree.

        `coupling` says how the target will pick: with 2 by the noise of `seed`, for what follows the text at `position`
        (the number of tokens so far, the context's included, less one). A draft is then what this noise picks from what
        the target knew in like places, not what is likely at large.

        At most `max_tokens` (0 to 1024) nodes, each with a path probability of at least `min_probability`. The shape
        "tree" takes the most probable nodes wherever they branch, "chain" one token after another. Raises ValueError
        for values out of range.
        """

    def close(self, weight: float | None = None) -> None:
        """Ends the sequence. Its tokens stay and its counts become exact. Closing again does nothing.

        In a history, `weight` (0 to 16) says what the rollout turned out to weigh, by its reward for instance: it
        does from the next rebuild of the problem's tree on, and with 0 it leaves then. ValueError if it is out of
        range.
        """

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""

    @property
    def match_length(self) -> int:
        """Length of the longest suffix of the output known from elsewhere (up to `max_depth - 1`; the beginning of the
        output counts as one token)."""

    def __len__(self) -> int:
        """Number of output tokens."""

@final
class Draft:
    """Drafted tokens in best-first order: parents before children, probabilities never rising, so that every prefix of
    the arrays is a draft too."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """[nodes] token ids."""

    @property
    def parents(self) -> NDArray[np.int32]:
        """[nodes] index of the node each one follows; -1 for those that follow the text itself."""

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """[nodes] estimated probability that the node and all above it are what comes."""

    def __len__(self) -> int:
        """Number of nodes."""

@final
class RolloutHistory:
    """The rollouts of many problems, a suffix tree for each.

    `advance` moves the policy version; the first rollout of a problem after that begins a new visit of it. A problem
    keeps the rollouts of its last `window` visits, the present one included, and an occurrence a visit older weighs
    `decay` times as much. `advance` makes room for the next visit: rollouts that will be outside the window leave,
    and a tree of those that stay is made in the background. The next rollout of the problem opens in it, and waits
    should it not be finished; rollouts that run meanwhile stay in the tree they are in. So what is drafted depends on
    the calls alone, not on the time the background work takes.

    Above `max_bytes` the problems visited least recently leave, whenever a rollout begins or ends, the version moves or
    `maintain` is called; one with running rollouts stays. Methods may be called from any thread.
    """

    def __new__(
        cls,
        window: int = 16,
        max_bytes: int = 4294967296,
        max_depth: int = 64,
        decay: float = 1.0,
        soft: bool = True,
        shared: bool = True,
        rejected: bool = True,
    ) -> RolloutHistory:
        """An empty history. What its drafts draw on beside counts can be switched off: `soft`, the target's
        distributions given with tokens; `shared`, what follows one or two tokens over all problems; `rejected`, what
        `Sequence.reject` was told. ValueError if `window` is below 1, `max_depth` not from 2 to 64, or `decay` not
        above 0 and at most 1."""

    @staticmethod
    def load(
        path: str | PathLike[str],
        window: int | None = None,
        max_bytes: int | None = None,
        max_depth: int | None = None,
        decay: float | None = None,
        soft: bool | None = None,
        shared: bool | None = None,
        rejected: bool | None = None,
    ) -> RolloutHistory:
        """Reads a history written by `save`; options given here replace those saved. Trees are made in the background.

        OSError if the file cannot be read; ValueError if it is no history, of a newer version, truncated or damaged.
        """

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the history to a file, in place of what is there: a new file is written beside it, and renamed when
        it is safely on disk. A rollout that runs is written as far as it has come. OSError if that fails; the old
        file is whole.
        """

    def rollout(self, problem: int, context: _Integers | None = None, weight: float = 1.0) -> Sequence:
        """Opens a rollout of the problem with this key (0 to 2^64 - 1), whose occurrences weigh `weight` (0 to 16)
        times as much as others of their visit; otherwise as `SuffixTree.sequence`."""

    def tree(self, problem: int) -> SuffixTree | None:
        """The present tree of a problem, to be read: a sequence opened in it directly is not the history's, and does
        not come along when the tree is made anew. Waits if it is being made."""

    def advance(self) -> int:
        """Moves to the next policy version and returns its number. Waits until the work of the last call is done."""

    def maintain(self) -> None:
        """Waits until all background work is done and what has left is freed. There is no need to call it; when there
        is time between two policy versions, it spares the next rollouts a wait."""

    @property
    def window(self) -> int:
        """Visits of a problem that are kept."""

    @property
    def max_bytes(self) -> int:
        """Byte budget."""

    @property
    def max_depth(self) -> int:
        """Depth of the trees."""

    @property
    def decay(self) -> float:
        """What an occurrence weighs, compared with one a visit younger."""

    @property
    def generation(self) -> int:
        """The policy version: how often `advance` was called."""

    def memory_usage(self) -> int:
        """Bytes allocated for all problems, trees being made or dropped included."""

    def stats(self) -> dict[str, int]:
        """`generation`; `problems`, `rollouts`, `running` rollouts, `tokens` and `bytes` present; problems whose tree
        is `rebuilding`; `expired_rollouts` and `evicted_problems` since the beginning."""

    def __contains__(self, problem: int, /) -> bool:
        """Whether there are rollouts of the problem."""

    def __len__(self) -> int:
        """Number of problems."""

def step(
    sequences: list[Sequence],
    tokens: _Integers,
    offsets: _Integers,
    max_nodes: _Integers,
    min_probability: _Floats,
    width: int,
    shape: _Shape = "tree",
    ids: _KnownIds | None = None,
    probabilities: _KnownProbabilities | None = None,
    coupling: NDArray[np.uint8] | _Integers | None = None,
    seeds: _Integers | None = None,
    positions: _Integers | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """One engine step for n sequences: appends `tokens[offsets[i]:offsets[i + 1]]` to each, then drafts for all.

    Every draft knows what all of them have said; if a sequence is given twice, what the rows before it have said.

    `offsets` has n + 1 entries; `max_nodes` (0 to `width`) and `min_probability` have n. Returns tokens, parents (both
    int32) and path probabilities (float32), each [n, width], and the number of nodes in each row, int32 [n]; cells
    beyond it hold token 0, parent -1 and probability 0. `ids` and `probabilities` are what the target knew of each of
    `tokens`, as in `Sequence.append`. Of prompts longer than 4096 tokens a step takes in a part; until all of it is in,
    drafts draw on what is. `coupling`, `seeds` and `positions` [n] are as in `Sequence.draft`, 0 where not given; seeds
    and positions are needed where the coupling is 2. Arrays are read where they are, if they are contiguous and nothing
    is to be converted (int32 for tokens and ids, uint8 for probabilities, any listed type for what has an entry per
    sequence), so none must change before the call returns. If an argument is invalid or a sequence closed, ValueError
    or TypeError, and nothing is appended.
    """

# --- The CPU engine (rust/das-cpu) ---
#
# numpy has no bfloat16, so tensors come as addresses (`Tensor.data_ptr()`) and strides in elements. The caller keeps
# them alive, of the stated shapes, and to itself during the call.

_Contenders: TypeAlias = tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32]]
"""Offsets [rows + 1], and for each contender: what its noise is keyed by, its token, its probability."""

_Top: TypeAlias = tuple[NDArray[np.int32], NDArray[np.float32]]
"""The likeliest tokens of each row, [rows, cells], likeliest first, and what they have; -1 and 0 in unused cells."""

@final
class AttentionPlan:
    """What each row of a batch sees: made once per forward pass, used by every layer."""

    def __new__(
        cls,
        req_to_token: NDArray[np.int32],
        req_pool_indices: NDArray[np.int64],
        prefix_lens: NDArray[np.int64],
        row_counts: NDArray[np.int64],
        pool_slots: int,
        mask: NDArray[np.bool_] | None = None,
        new_slots: NDArray[np.int64] | None = None,
    ) -> AttentionPlan:
        """Request i has `row_counts[i]` rows after `prefix_lens[i]` earlier tokens; token j of it lies in pool slot
        `req_to_token[req_pool_indices[i], j]`. Without a mask row r sees all tokens up to itself; with one it sees the
        prefix and those rows c <= r whose entry [r, c] is set, the requests' square masks following each other.
        `new_slots`, one per row, are where `Attention.store` writes. ValueError if something does not fit, a slot
        outside the pool included."""

    @property
    def rows(self) -> int:
        """Rows over all requests."""

@final
class Attention:
    """Attention over a paged key-value pool for layers of one shape. A row's bits depend on that row alone."""

    def __new__(
        cls,
        query_heads: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        dtype: Literal["bfloat16", "float32"],
        threads: int,
        isa: str | None = None,
    ) -> Attention:
        """`isa` is one of `cpu_isas()`, by default the first."""

    @property
    def isa(self) -> str:
        """The instruction set in use."""

    def store(
        self,
        plan: AttentionPlan,
        new_key: int,
        new_key_stride: int,
        new_value: int,
        new_value_stride: int,
        key: int,
        key_stride: int,
        value: int,
        value_stride: int,
    ) -> None:
        """Writes the step's keys and values, [rows, kv_heads, dim], to the plan's new slots of the pool. ValueError if
        the plan has none."""

    def run(
        self,
        plan: AttentionPlan,
        query: int,
        query_stride: int,
        key: int,
        key_stride: int,
        value: int,
        value_stride: int,
        output: int,
        output_stride: int,
        scale: float,
    ) -> None:
        """softmax(scale q k) v of one layer. Queries and output are [rows, query_heads, dim] with rows `stride`
        elements apart, keys and values [pool slots, kv_heads, dim] likewise."""

@final
class Linear:
    """Matrix products y = x w^T + b of one element type. A row's bits depend on that row alone."""

    def __new__(cls, dtype: Literal["bfloat16", "float32"], threads: int, isa: str | None = None) -> Linear:
        """`isa` is one of `cpu_isas()`, by default the first."""

    @property
    def isa(self) -> str:
        """The instruction set in use."""

    def run(
        self,
        x: int,
        x_stride: int,
        weight: int,
        weight_stride: int,
        bias: int,
        y: int,
        y_stride: int,
        rows: int,
        features: int,
        outputs: int,
    ) -> None:
        """x is [rows, features], the weight [outputs, features], the bias [outputs] or address 0, y [rows, outputs]."""

def rms_norm(
    x: int,
    x_stride: int,
    residual: int,
    residual_stride: int,
    weight: int,
    y: int,
    sum: int,
    rows: int,
    width: int,
    epsilon: float,
    dtype: Literal["bfloat16", "float32"],
    threads: int,
) -> None:
    """y = x / sqrt(mean(x^2) + epsilon) * weight, row by row. With a residual (an address other than 0), x + residual
    takes the place of x and is written to `sum`. `y` and `sum` are contiguous [rows, width]."""

def silu_and_mul(
    x: int, x_stride: int, y: int, rows: int, width: int, dtype: Literal["bfloat16", "float32"], threads: int
) -> None:
    """y = silu(x[:, :width]) * x[:, width:] for x [rows, 2 width] and contiguous y [rows, width]."""

def rotate(
    positions: int,
    table: int,
    table_rows: int,
    rotated: int,
    halves: bool,
    query: int,
    query_stride: int,
    query_heads: int,
    key: int,
    key_stride: int,
    key_heads: int,
    rows: int,
    head_dim: int,
    dtype: Literal["bfloat16", "float32"],
    threads: int,
) -> None:
    """Rotary embedding in place of queries and keys [rows, heads * head_dim], by int64 positions [rows] and a
    contiguous table [table_rows, rotated] of cosines, then sines. The first `rotated` elements of a head turn in pairs:
    two halves, or else neighbours. Rows whose position is outside the table stay as they are."""

def cpu_isas() -> list[str]:
    """Instruction sets of this machine that the kernels have inner loops for, best first."""

def race_columns(
    probabilities: NDArray[np.float32],
    rows: NDArray[np.int64],
    seeds: NDArray[np.int64],
    positions: NDArray[np.int64],
    cells: int,
    threads: int,
) -> tuple[_Contenders, _Top]:
    """The columns of each listed row that may win its Gumbel race, one save for ties within rounding, and its `cells`
    likeliest tokens; rows, seeds and positions are equally long."""

def filter_columns(
    probabilities: NDArray[np.float32],
    rows: NDArray[np.int64],
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
    by_rank: NDArray[np.bool_],
    cells: int,
    threads: int,
) -> tuple[_Contenders, _Top]:
    """The tokens of each listed row that its filters leave, their noise keyed by rank (likeliest first, ties by token)
    or by token; and the `cells` likeliest of them, with their probabilities among those left."""

def highest_columns(
    values: NDArray[np.float32], rows: NDArray[np.int64], cells: int, above: float, threads: int
) -> _Top:
    """The `cells` columns of each listed row with the highest values above `above`, and those values."""

def rank_columns(
    offsets: NDArray[np.int64],
    columns: NDArray[np.uint32],
    log_probabilities: NDArray[np.float64],
    seeds: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where in `columns` the highest log-probability plus Gumbel noise of each row is, the first of equals."""

def murmur_hash32(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """The hash [rows, columns] behind the noise, as in SGLang's kernels/ops/sampling/murmur_hash.py."""

def copy_rows(
    buffers: NDArray[np.uint64], row_bytes: NDArray[np.uint64], target: NDArray[np.int64], source: NDArray[np.int64]
) -> None:
    """Copies row `source[i]` to row `target[i]` in every buffer, given by address and bytes per row; all source rows of
    a buffer are read before any is written."""
