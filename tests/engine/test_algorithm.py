"""Server options DAS cannot honour are refused at start, with the reason and the remedy."""

from types import SimpleNamespace

import pytest

algorithm = pytest.importorskip("sglang_das.engine.algorithm")


def arguments(**changes):
    plain = {
        "pp_size": 1,
        "attn_dp_size": 1,
        "enable_lora": None,
        "lora_paths": None,
        "disaggregation_mode": "null",
        "enable_two_batch_overlap": False,
        "enable_pdmux": False,
        "speculative_draft_model_path": None,
        "speculative_use_rejection_sampling": False,
        "speculative_accept_threshold_single": 1.0,
        "speculative_accept_threshold_acc": 1.0,
        "speculative_num_draft_tokens": None,
        "rl_on_policy_target": None,
        "enable_watermark": False,
    }
    return SimpleNamespace(attention_backend="fa3", page_size=64, **{**plain, **changes})


def make():
    return algorithm.DasAlgorithm("DAS", factory=lambda _: None, supports_overlap=True)


def test_arguments_are_completed():
    resolved = arguments()
    make().handle_server_args(resolved)
    assert resolved.speculative_num_draft_tokens == 16
    assert resolved.speculative_num_steps == 15
    assert resolved.speculative_eagle_topk == 1
    assert resolved.disable_overlap_schedule is True
    assert resolved.enable_mixed_chunk is False


def test_trees_are_announced_to_the_engine():
    resolved = arguments()
    resolved.page_size = 1
    make().handle_server_args(resolved)
    assert resolved.speculative_num_draft_tokens == 16
    assert resolved.speculative_eagle_topk > 1


def test_a_given_width_is_kept():
    resolved = arguments(speculative_num_draft_tokens=5)
    make().handle_server_args(resolved)
    assert resolved.speculative_num_draft_tokens == 5


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"pp_size": 2}, "use --pp-size 1"),
        ({"attn_dp_size": 2}, "drop --enable-dp-attention"),
        ({"enable_lora": True}, "drop --enable-lora"),
        ({"disaggregation_mode": "decode"}, "drop --disaggregation-mode"),
        ({"enable_two_batch_overlap": True}, "drop --enable-two-batch-overlap"),
        ({"speculative_draft_model_path": "x"}, "drop --speculative-draft-model-path"),
        ({"speculative_use_rejection_sampling": True}, "drop --speculative-use-rejection-sampling"),
        ({"speculative_accept_threshold_acc": 0.9}, "drop --speculative-accept-threshold-acc"),
        ({"speculative_num_draft_tokens": 0}, "give --speculative-num-draft-tokens 16"),
        ({"rl_on_policy_target": "fsdp"}, "drop --rl-on-policy-target"),
        ({"enable_watermark": True}, "drop --enable-watermark"),
    ],
)
def test_an_unsupported_option_is_refused_with_a_remedy(change, remedy):
    with pytest.raises(algorithm.UnsupportedOption, match=remedy):
        make().handle_server_args(arguments(**change))


def test_every_question_the_engine_asks_has_an_answer():
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    asked = {name for name, value in vars(SpeculativeAlgorithm).items() if callable(value) and not name.startswith("_")}
    missing = asked - set(dir(algorithm.DasAlgorithm)) - {"from_string", "register"}
    assert not missing
