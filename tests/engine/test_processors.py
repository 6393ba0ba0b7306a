"""A logit processor at a drafted node is shown its request as it would be there."""

import weakref
from array import array
from types import SimpleNamespace

import numpy as np
from sglang_das.engine.drafts import Drafts, DraftTree
from sglang_das.engine.processors import params_of_rows


class Request(SimpleNamespace):
    pass


def test_every_node_has_its_own_output():
    request = Request(output_ids=array("q", [7, 8]), origin_input_ids=array("q", [1, 2]), rid="a")
    params = [None, {"n": 3, "__req__": weakref.proxy(request)}, {"n": 4}]
    #  root - 10 - 11
    #       \ 12 - 13
    drafts = Drafts(
        np.tile(np.array([10, 12, 11, 13], np.int32), (3, 1)),
        np.tile(np.array([-1, -1, 0, 1], np.int32), (3, 1)),
        np.ones((3, 4), np.float32),
        np.full(3, 4, np.int32),
    )
    found = params_of_rows(params, DraftTree(drafts), np.arange(15))
    assert found[:5] == [None] * 5
    assert found[10:] == [{"n": 4}] * 5
    shown = [each["__req__"] for each in found[5:10]]
    assert [each.output_ids.tolist() for each in shown] == [
        [7, 8],
        [7, 8, 10],
        [7, 8, 12],
        [7, 8, 10, 11],
        [7, 8, 12, 13],
    ]
    assert {(each.rid, tuple(each.origin_input_ids)) for each in shown} == {("a", (1, 2))}
    assert [each["n"] for each in found[5:10]] == [3] * 5
    assert request.output_ids.tolist() == [7, 8]
