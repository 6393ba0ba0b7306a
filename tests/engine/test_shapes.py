"""Trees where the attention backend can verify them, chains elsewhere."""

from types import SimpleNamespace

import pytest
from sglang_das.engine.config import ConfigError
from sglang_das.engine.shapes import TREE_TOPK, choose_shape, verify_steps


def server(backend, page_size=1, **more):
    return SimpleNamespace(attention_backend=backend, page_size=page_size, **more)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (server("torch_native"), "tree"),
        (server("fa3"), "tree"),
        (server("triton", None), "tree"),
        (server("flashinfer", 16), "tree"),
        (server("fa3", 64), "chain"),
        (server("triton", 16), "chain"),
        (server("trtllm_mha"), "chain"),
        (server("fa3", prefill_attention_backend="fa3", decode_attention_backend="fa3"), "tree"),
        (server("fa3", decode_attention_backend="flashinfer"), "chain"),
    ],
)
def test_the_shape_follows_backend_and_page_size(arguments, shape):
    assert choose_shape(arguments, "auto")[0] == shape
    assert choose_shape(arguments, "chain")[0] == "chain"
    if shape == "tree":
        assert choose_shape(arguments, "tree")[0] == "tree"
    else:
        with pytest.raises(ConfigError, match="leave the shape at auto"):
            choose_shape(arguments, "tree")


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_the_engine_reserves_a_width_and_no_more(width):
    for topk in (1, TREE_TOPK):
        assert max(verify_steps(width, topk) * topk, width) <= max(width, 2)
