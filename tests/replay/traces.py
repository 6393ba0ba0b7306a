"""Recorded rollouts made up for tests."""

import json

import numpy as np
from sglang_das.replay.trace import Trace


def make_trace(responses, problems=None, epochs=None, *, prompt=(1, 2, 3), learned_epochs=0, known=False):
    """A trace of these responses, all of one problem and epoch unless said."""
    count = len(responses)
    problems = np.array(problems or [0] * count)
    tokens = np.concatenate([np.array(response, np.int32) for response in responses])
    return Trace(
        prompts=[np.array(prompt, np.int32)] * count,
        tokens=tokens,
        offsets=np.cumsum([0, *map(len, responses)], dtype=np.int64),
        problems=problems,
        epochs=np.array(epochs or [0] * count),
        seeds=np.arange(count, dtype=np.int64) + 7,
        seeded=np.ones(count, bool),
        greedy=np.zeros(count, bool),
        ids=np.stack([tokens, tokens + 1], axis=1) if known else None,
        probabilities=np.tile(np.array([0.6, 0.2], np.float32), (len(tokens), 1)) if known else None,
        names=[f"p{i}" for i in range(int(problems.max()) + 1)],
        learned_epochs=learned_epochs,
    )


def random_responses(seed, count, vocabulary=4, longest=40):
    """Responses of few different tokens, so that drafts are often right and often wrong."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, random.integers(1, longest)).tolist() for _ in range(count)]


def lines(responses, epochs=2, **more):
    """JSON lines of a recording in which every epoch brings these responses, each of a problem of its own."""
    return "".join(
        json.dumps({"prompt": [1, 2, 3, i], "response": response, "problem": i, "epoch": epoch, "sample": 0} | more)
        + "\n"
        for epoch in range(epochs)
        for i, response in enumerate(responses)
    )
