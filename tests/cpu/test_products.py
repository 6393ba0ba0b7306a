"""Matrix products and row operations compute what torch computes, and a row's bits do not depend on its batch."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got, wanted, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), features=st.integers(1, 200), outputs=st.integers(1, 200), bias=st.booleans())
def test_products_match_torch(dtype, rows, features, outputs, bias):
    from sglang_das.cpu.linear import multiply

    x, weight = random(rows, features, dtype=dtype), random(outputs, features, dtype=dtype, seed=1) / features**0.5
    added = random(outputs, dtype=dtype, seed=2) if bias else None
    wanted = torch.nn.functional.linear(x.double(), weight.double(), added.double() if bias else None)
    assert_close(multiply(x, weight, added), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "outputs"), [(576, 960), (576, 576), (576, 3072), (1536, 576), (64, 256)])
def test_a_row_of_a_product_has_the_same_bits_in_any_batch(dtype, features, outputs, threads):
    from sglang_das.cpu.linear import multiply

    weight = random(outputs, features, dtype=dtype, seed=1)
    for seed in range(4):  # one draw is not enough: a different order often rounds to the same bits
        x = random(130, features, dtype=dtype, seed=10 + seed)
        together = multiply(x, weight)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 33, 129):
            assert torch.equal(multiply(x[-rows:].clone(), weight), together[-rows:]), rows


def test_a_weight_update_in_place_takes_effect():
    from sglang_das.cpu.linear import multiply

    x, weight = random(3, 64, dtype=torch.bfloat16), random(8, 64, dtype=torch.bfloat16, seed=1)
    before = multiply(x, weight)
    weight.mul_(2)
    assert torch.equal(multiply(x, weight), before * 2)


def test_other_tensors_are_left_to_sglang():
    from sglang_das.cpu.linear import multiply

    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    assert multiply(x.half(), weight.half()) is None
    assert multiply(x.bfloat16(), weight) is None
    assert multiply(x, weight.t().contiguous().t()) is None
    assert multiply(x.requires_grad_(), weight) is None


def norm_layer(width, dtype):
    return SimpleNamespace(
        weight=random(width, dtype=dtype, seed=3),
        variance_size_override=None,
        override_orig_dtype=None,
        cast_x_before_out_mul=False,
        fp32_residual=False,
        hidden_size=width,
        variance_epsilon=1e-5,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), width=st.integers(1, 300), with_residual=st.booleans())
def test_normalisation_matches_the_formula_row_by_row(dtype, rows, width, with_residual):
    from sglang_das.cpu.rowwise import normalise

    layer, x = norm_layer(width, dtype), random(rows, width, dtype=dtype)
    residual = random(rows, width, dtype=dtype, seed=4) if with_residual else None
    wide = x.double() + (residual.double() if with_residual else 0)
    wanted = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * layer.weight.double()
    result = normalise(layer, x, residual)
    if with_residual:
        result, total = result
        assert_close(total, wide, dtype)
    assert_close(result, wanted, dtype)
    alone = normalise(layer, x[-1:].clone(), residual[-1:].clone() if with_residual else None)
    assert torch.equal(alone[0] if with_residual else alone, result[-1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gating_matches_the_formula_row_by_row(dtype):
    from sglang_das.cpu.rowwise import gate

    x = random(9, 2 * 77, dtype=dtype) * 4
    wanted = torch.nn.functional.silu(x[:, :77].double()) * x[:, 77:].double()
    assert_close(gate(x), wanted, dtype)
    assert torch.equal(gate(x[5:6].clone()), gate(x)[5:6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
def test_rotation_matches_sglangs_own(dtype, neox):
    from sglang.srt.layers.rotary_embedding.utils import apply_rotary_emb
    from sglang_das.cpu.rowwise import embed_positions

    heads, kv_heads, size, positions = 4, 2, 32, torch.tensor([0, 5, 99, 5])
    table = random(100, size, dtype=dtype, seed=6)
    layer = SimpleNamespace(cos_sin_cache=table, rotary_dim=size, is_neox_style=neox, head_size=size)
    packed = random(4, (heads + kv_heads) * size, dtype=dtype)
    query, key = packed.clone().split([heads * size, kv_heads * size], dim=1)
    cos, sin = table[positions].double().chunk(2, dim=-1)
    for got, original in zip(
        embed_positions(layer, positions, query, key), packed.split([heads * size, kv_heads * size], dim=1), strict=True
    ):
        wanted = apply_rotary_emb(original.double().view(4, -1, size), cos, sin, neox)
        assert_close(got.view(4, -1, size), wanted, dtype)


def test_the_check_at_start_finds_products_that_depend_on_the_batch():
    from sglang_das.cpu.linear import check

    class Method:
        def __init__(self, apply):
            self.apply = apply

    class Layer(torch.nn.Module):
        def __init__(self, method):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 16), requires_grad=False)
            self.quant_method = method

    sound = Layer(Method(lambda layer, x: torch.stack([layer.weight @ row for row in x])))
    leaning = Layer(Method(lambda layer, x: x @ layer.weight.t() + x.shape[0]))
    opaque = torch.nn.Module()
    opaque.quant_method = object()
    assert check(torch.nn.Sequential(sound)) == []
    assert any("differ" in problem for problem in check(torch.nn.Sequential(leaning)))
    assert any("not checked" in problem for problem in check(torch.nn.Sequential(opaque)))
