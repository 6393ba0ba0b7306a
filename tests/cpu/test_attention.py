"""The attention kernel computes attention, and a row's bits depend on nothing but what the row sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_das._native import Attention, AttentionPlan, cpu_isas

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HEADS, KV_HEADS, DIM = 6, 2, 64
SLOTS, LONGEST = 1200, 400


class Pool:
    """Keys and values of a few requests, scattered over a pool of slots."""

    def __init__(self, dtype, requests=4, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.keys, self.values = (
            torch.randn(SLOTS, KV_HEADS, DIM, generator=generator).to(DTYPES[dtype]) for _ in range(2)
        )
        slots = np.random.default_rng(seed).permutation(SLOTS)[: requests * (SLOTS // requests)].astype(np.int32)
        self.req_to_token = slots.reshape(requests, -1)
        self.queries = torch.randn(requests, SLOTS, HEADS, DIM, generator=generator).to(DTYPES[dtype])

    def query(self, request, tokens):
        """Queries belong to tokens, so that a row means the same in every forward."""
        return self.queries[request, tokens]

    def run(self, batch, mask=None, threads=1, isa=None):
        """Attention for `batch`, a list of (request, prefix, queries `[rows, heads, dim]`); one output per entry."""
        plan = AttentionPlan(
            self.req_to_token,
            np.array([request for request, _, _ in batch], np.int64),
            np.array([prefix for _, prefix, _ in batch], np.int64),
            np.array([len(queries) for _, _, queries in batch], np.int64),
            SLOTS,
            mask,
        )
        query = torch.cat([queries for _, _, queries in batch]).contiguous()
        output = torch.empty_like(query)
        Attention(HEADS, KV_HEADS, DIM, DIM, self.dtype, threads, isa).run(
            plan,
            query.data_ptr(),
            query.stride(0),
            self.keys.data_ptr(),
            self.keys.stride(0),
            self.values.data_ptr(),
            self.values.stride(0),
            output.data_ptr(),
            output.stride(0),
            DIM**-0.5,
        )
        return output.split([len(queries) for _, _, queries in batch])

    def reference(self, request, tokens, queries):
        """One row that sees `tokens` of a request, by torch in float64."""
        slots = self.req_to_token[request, tokens].astype(np.int64)
        keys, values = (x[slots].double().repeat_interleave(HEADS // KV_HEADS, 1) for x in (self.keys, self.values))
        weights = torch.softmax(torch.einsum("hd,thd->ht", queries.double(), keys) * DIM**-0.5, -1)
        return torch.einsum("ht,thd->hd", weights, values)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_attention(dtype, isa):
    pool = Pool(dtype)
    batch = [(0, 0, pool.query(0, range(70))), (2, 130, pool.query(2, range(130, 135))), (1, 299, pool.query(1, [299]))]
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
    for (request, prefix, queries), output in zip(batch, pool.run(batch, isa=isa), strict=True):
        for row in range(len(queries)):
            expected = pool.reference(request, np.arange(prefix + row + 1), queries[row])
            torch.testing.assert_close(output[row].double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 280), min_size=1, max_size=4),
    rows=st.integers(1, 17),
    cut=st.integers(0, 279),
)
def test_a_row_has_the_same_bits_however_it_is_computed(dtype, threads, lengths, rows, cut):
    pool = Pool(dtype)
    batch = [(i, length, pool.query(i, range(length, length + rows))) for i, length in enumerate(lengths)]
    verified = pool.run(batch, threads=threads)
    for (request, prefix, queries), output in zip(batch, verified, strict=True):
        for row in range(rows):  # alone, as decoding computes it
            alone = pool.run([(request, prefix + row, queries[row : row + 1])])[0]
            assert torch.equal(alone[0], output[row])
        start = min(cut, prefix)  # as prefill of prompt and output after a cached prefix computes it
        prefilled = pool.run([(request, start, pool.query(request, range(start, prefix + rows)))], threads=threads)[0]
        assert torch.equal(prefilled[prefix - start :], output)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_draft_tree_has_the_bits_of_its_path(dtype):
    # Nodes 1 and 2 hang under the root, 3 under 2, 4 under 3; decoding would have stored root, 2, 3, 4 in a row.
    pool = Pool(dtype, requests=2)
    prefix, parents = 77, [-1, 0, 0, 2, 3]
    mask = np.zeros((5, 5), bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] = mask[parent]
        mask[node, node] = True
    queries = pool.query(0, range(prefix, prefix + 5))
    tree = pool.run([(0, prefix, queries)], mask=mask.ravel())[0]
    path = [0, 2, 3, 4]
    pool.req_to_token[1, :prefix] = pool.req_to_token[0, :prefix]
    pool.req_to_token[1, prefix : prefix + 4] = pool.req_to_token[0, [prefix + node for node in path]]
    chain = pool.run([(1, prefix, queries[path])])[0]
    assert torch.equal(tree[path], chain)


def test_a_slot_outside_the_pool_is_refused():
    table = np.array([[SLOTS]], np.int32)
    with pytest.raises(ValueError, match="slot"):
        AttentionPlan(table, np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64), SLOTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_keys_and_values_are_stored_at_their_slots(dtype):
    pool = Pool(dtype)
    rows, new_slots = 3, np.array([7, 1100, 0], np.int64)
    batch = np.zeros(1, np.int64), np.array([5], np.int64), np.array([rows], np.int64)
    kernel = Attention(HEADS, KV_HEADS, DIM, DIM, dtype, 1)
    # As a model hands them over: keys and values side by side in one matrix.
    packed = torch.randn(rows, 2 * KV_HEADS * DIM).to(DTYPES[dtype])
    key, value = packed.chunk(2, dim=1)
    expected = pool.keys.clone(), pool.values.clone()
    for pool_of, new in zip(expected, (key, value), strict=True):
        pool_of[new_slots] = new.reshape(rows, KV_HEADS, DIM)
    target = pool.keys.data_ptr(), pool.keys.stride(0), pool.values.data_ptr(), pool.values.stride(0)
    source = key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0)
    kernel.store(AttentionPlan(pool.req_to_token, *batch, SLOTS, None, new_slots), *source, *target)
    assert torch.equal(pool.keys, expected[0])
    assert torch.equal(pool.values, expected[1])
    with pytest.raises(ValueError, match="new_slots"):
        kernel.store(AttentionPlan(pool.req_to_token, *batch, SLOTS), *source, *target)
