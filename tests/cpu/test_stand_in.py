"""The stand-in's functions do what SGLang expects of the real ones, against loops written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def kernels():
    import sgl_kernel

    return sgl_kernel


def test_slots_are_written_to_and_read_from_the_table(kernels):
    generator = np.random.default_rng(0)
    table = torch.zeros(6, 40, dtype=torch.int32)
    rows = torch.tensor([4, 0, 5])
    start = torch.tensor([3, 0, 10])
    end = start + torch.tensor([5, 0, 7])
    slots = torch.from_numpy(generator.permutation(1000)[:12].astype(np.int64))
    kernels.assign_req_to_token_pool_cpu(rows, table, start, end, slots, 40)
    assert table[4, 3:8].tolist() == slots[:5].tolist()
    assert table[5, 10:17].tolist() == slots[5:].tolist()
    assert int((table != 0).sum()) == 12 - int((slots == 0).sum())
    out = torch.full((15,), -7)
    kernels.assign_extend_cache_locs_cpu(rows, table, start, end, out, 40)
    assert out.tolist() == [*slots.tolist(), -7, -7, -7]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_greedy_verification_walks_the_tree(data):
    import sgl_kernel

    n, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    child, sibling = torch.full((n, width), -1), torch.full((n, width), -1)
    for b in range(n):
        for node in range(width - 1, 0, -1):
            parent = data.draw(st.integers(0, node - 1))
            sibling[b, node], child[b, parent] = child[b, parent], node
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n * width, max_size=n * width))).view(n, width)
    target = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n * width, max_size=n * width))).view(n, width)
    index = torch.arange(n * width).view(n, width)
    predicts = torch.zeros(n * width, dtype=torch.int32)
    path = torch.full((n, width), -1, dtype=torch.int32)
    counts = torch.zeros(n, dtype=torch.int32)
    sgl_kernel.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=path,
        accept_token_num=counts,
        candidates=tokens,
        retrive_index=index,
        retrive_next_token=child,
        retrive_next_sibling=sibling,
        target_predict=target,
    )
    for b in range(n):
        walked = [0]
        while True:
            node = int(child[b, walked[-1]])
            while node != -1 and tokens[b, node] != target[b, walked[-1]]:
                node = int(sibling[b, node])
            if node == -1:
                break
            walked.append(node)
        assert path[b].tolist() == [b * width + node for node in walked] + [-1] * (width - len(walked))
        assert counts[b] == len(walked) - 1
        assert [predicts[b * width + node] for node in walked] == [target[b, node] for node in walked]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_links_and_positions_follow_from_who_sees_whom(data):
    from sgl_kernel.speculative import reconstruct_indices_from_tree_mask

    batch, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    parents = [[-1, *(data.draw(st.integers(0, i - 1)) for i in range(1, n))] for _ in range(batch)]
    mask = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for node in range(n):
            at = node
            while at != -1:
                mask[b, node, at] = True
                at = parents[b][at]
    lengths = torch.arange(10, 10 + batch)
    positions = torch.zeros(batch * n, dtype=torch.int64)
    index, child, sibling = (torch.full((batch, n), -7) for _ in range(3))
    reconstruct_indices_from_tree_mask(mask.flatten(), lengths, positions, index, child, sibling, batch, n)
    assert index.flatten().tolist() == list(range(batch * n))
    for b in range(batch):
        for node in range(n):
            depth = int(mask[b, node].sum()) - 1
            children = [k for k in range(n) if parents[b][k] == node]
            later = [k for k in range(node + 1, n) if parents[b][k] == parents[b][node] != -1]
            assert positions[b * n + node] == lengths[b] + depth
            assert child[b, node] == min(children, default=-1)
            assert sibling[b, node] == min(later, default=-1)


def test_bonus_tokens_are_the_last_accepted(kernels):
    bonus = torch.zeros(3, dtype=torch.int64)
    kernels.fill_bonus_tokens_cpu(torch.arange(12), torch.tensor([1, 4, 2]), bonus, 4)
    assert bonus.tolist() == [0, 7, 9]


def test_what_is_not_supported_says_what_needs_it(kernels):
    with pytest.raises(NotImplementedError, match="build_tree_kernel_efficient_cpu is needed by EAGLE"):
        kernels.build_tree_kernel_efficient_cpu()


def test_the_hash_operator_has_the_engines_shape_and_type(kernels):
    seeds = torch.tensor([1, 2**63 + 5], dtype=torch.uint64)
    hashed = torch.ops.sgl_kernel.murmur_hash32_cpu(seeds, torch.tensor([3, 4]), torch.arange(5))
    assert (hashed.dtype, tuple(hashed.shape)) == (torch.uint32, (2, 5))
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def test_accepted_slots_are_packed(kernels):
    path = torch.tensor([[0, 2, -1], [3, -1, -1], [6, 7, 8]], dtype=torch.int32)
    slots = torch.arange(100, 109)
    packed = torch.zeros(9, dtype=torch.int64)
    kernels.fill_accept_out_cache_loc_cpu(path, slots, packed)
    assert packed.tolist() == [100, 102, 103, 106, 107, 108, 0, 0, 0]


def test_cache_rows_are_moved_as_if_all_at_once(kernels):
    buffers = [torch.arange(40, dtype=torch.float32).view(8, 5), torch.arange(24, dtype=torch.bfloat16).view(8, 3)]
    expected = [buffer.clone() for buffer in buffers]
    source, target = torch.tensor([2, 3, 0]), torch.tensor([3, 2, 7])
    for buffer in expected:
        buffer[target] = buffer[source].clone()
    addresses = torch.from_numpy(np.array([buffer.data_ptr() for buffer in buffers], np.uint64))
    strides = torch.tensor([buffer.stride(0) * buffer.element_size() for buffer in buffers])
    kernels.copy_all_layer_kv_cache_cpu(addresses, strides, target, source)
    assert all(torch.equal(moved, wanted) for moved, wanted in zip(buffers, expected, strict=True))


def test_unknown_names_are_import_errors():
    with pytest.raises(ImportError):
        from sgl_kernel import no_such_kernel  # noqa: F401
