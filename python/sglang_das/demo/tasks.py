"""The prompts: reasoning-gym problems in the model's chat template, as token ids."""

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import DemoError


@dataclass(frozen=True)
class Prompt:
    """One problem: the task family it comes from and its token ids, chat template applied."""

    task: str
    input_ids: list[int]


def make_prompts(tasks: Sequence[str], count: int, model: Path, seed: int) -> list[Prompt]:
    """Make `count` prompts, taking the task families in turn; the same arguments give the same prompts.

    Raises:
        DemoError: a task name that reasoning-gym does not know.
    """
    gym = _reasoning_gym()
    known = gym.factory.DATASETS
    for name in tasks:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {', '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}"
            raise DemoError(f"--tasks names {name!r}, which reasoning-gym does not have. {hint}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    prompts = []
    for number in range(count):
        turn, which = divmod(number, len(tasks))
        # A dataset's entry depends on its seed and index alone, so more prompts do not change the earlier ones.
        question = gym.create_dataset(tasks[which], size=turn + 1, seed=seed)[turn]["question"]
        chat = [{"role": "user", "content": question}]
        encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        prompts.append(Prompt(tasks[which], [int(token) for token in encoded["input_ids"]]))
    return prompts


def _reasoning_gym() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", SyntaxWarning
        )  # one of its dependencies has some, seen when it is first compiled
        try:
            import reasoning_gym
        except ImportError as error:
            raise DemoError(f"{error.name} is needed for the prompts. Run: pip install 'sglang-das[demo]'") from error
    return reasoning_gym
