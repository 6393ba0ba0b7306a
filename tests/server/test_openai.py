"""The OpenAI routes: completions and chats are those of a plain server, whole or streamed, and drafted for."""

import json

import pytest

from .support import LETTERS, prompts

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["xy", "xz"]}, "b": {"type": "integer"}}, "required": ["a"]}
COMPLETIONS = [
    {"logprobs": 2},
    {"n": 2, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"stop": ["ab", "cd", "x"], "logit_bias": {"5": 2.0}},
    {"temperature": 0, "echo": True},
    {"regex": "[a-m]+z", "repetition_penalty": 1.1, "min_tokens": 1},
]
CHATS = [
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2, "frequency_penalty": 0.4, "top_p": 0.9},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    {"stop": ["ab", "cd", "x"], "min_tokens": 12},
    {"temperature": 0, "max_tokens": 17},
]


def letters(seed):
    return "".join(LETTERS[token % len(LETTERS)] for token in prompts(1, seed=seed)[0])


def completion(options, seed):
    return {"prompt": letters(seed), "temperature": 0.8, "max_tokens": 48, "seed": seed, "model": "m", **options}


def chat(options, seed):
    message = {"role": "user", "content": letters(seed)}
    return {"messages": [message], "temperature": 0.8, "max_tokens": 48, "seed": seed, "model": "m", **options}


def choices(client, path, request):
    return json.loads(client.post(path, request))["choices"]


def streamed(client, path, request):
    """The texts of a streamed answer's choices, put together."""
    lines = client.post(path, {**request, "stream": True}).decode().splitlines()
    texts = {}
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line[len("data: ") :])["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content")
                texts[choice["index"]] = texts.get(choice["index"], "") + (text or "")
    return [texts[index] for index in sorted(texts)]


def text_of(choice):
    return choice["text"] if "text" in choice else choice["message"]["content"]


def figures(value):
    """An answer without its floats, and these."""
    if isinstance(value, float):
        return None, [value]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [(key, *figures(item)) for key, item in items]
        return [(key, rest) for key, rest, _ in parts], [x for *_, numbers in parts for x in numbers]
    return value, []


@pytest.mark.parametrize(("path", "make", "kinds"), [("completions", completion, COMPLETIONS), ("chat", chat, CHATS)])
def test_answers_are_those_of_a_plain_server(servers, path, make, kinds):
    plain, das = servers("plain"), servers("das")
    path = "/v1/completions" if path == "completions" else "/v1/chat/completions"
    for i, options in enumerate(kinds):
        request = make(options, seed=900 + i)
        expected, numbers = figures(whole := choices(plain, path, request))
        before = das.das()["accepted"]
        for _ in range(3):
            found, others = figures(choices(das, path, request))
            assert found == expected, options
            assert others == pytest.approx(numbers, abs=1e-4), options
        assert das.das()["accepted"] > before, f"nothing was drafted right under {options}"
        if not options.get("echo"):
            assert streamed(das, path, request) == [text_of(choice) for choice in whole], options
