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
