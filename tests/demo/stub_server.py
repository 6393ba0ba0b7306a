"""A small HTTP server with the endpoints the demo uses. Its tokens follow from prompt and seed alone.

Usage: stub_server.py PORT FOLDER [plain|das|wrong|stubborn|dies|deaf]

It appends what it is asked to FOLDER/<port>.jsonl. `das` reports drafting, `wrong` changes one token of one prompt,
`stubborn` and a child it starts ignore SIGTERM, `dies` ends during the first epoch, `deaf` finds its port taken and
stays, as SGLang does.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from aiohttp import web

port, folder, kind = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
journal = (folder / f"{port}.jsonl").open("a", buffering=1)
drafted = 0


def tokens_of(prompt: list[int], params: dict) -> list[int]:
    length = 2 + (sum(prompt) + params.get("sampling_seed", 0)) % (params["max_new_tokens"] - 1)
    tokens = [(params.get("sampling_seed", 7) + 31 * at) % 1000 for at in range(length)]
    if kind == "wrong" and prompt[0] == 1:
        tokens[-1] += 1
    return tokens


async def generate(request: web.Request) -> web.Response:
    global drafted
    body = await request.json()
    journal.write(json.dumps(body) + "\n")
    if kind == "dies" and body["sampling_params"].get("sampling_seed", 0) > 1000:
        print("the stub server gives up", flush=True)
        os._exit(3)
    tokens = tokens_of(body["input_ids"], body["sampling_params"])
    await asyncio.sleep(0.2 if kind == "stubborn" else 0.002)
    meta = {"completion_tokens": len(tokens), "finish_reason": {"type": "stop"}}
    if body.get("return_logprob"):
        meta["output_top_logprobs"] = [
            [[-0.5 * (rank + 1), token + rank, None] for rank in range(body["top_logprobs_num"])] for token in tokens
        ]
    if kind == "das":
        drafted += 2 * len(tokens)
        meta["spec_verify_ct"] = (len(tokens) - 1 + 1) // 2
    return web.json_response({"output_ids": tokens, "meta_info": meta})


async def flush_cache(request: web.Request) -> web.Response:
    journal.write('{"flush": true}\n')
    return web.Response(text="Cache flushed.")


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def server_info(request: web.Request) -> web.Response:
    state = (
        {"das": {"drafted": drafted, "accepted": drafted // 4, "draft_cpu_s": drafted / 1000}} if kind == "das" else {}
    )
    shared = {"device": "cpu", "dtype": "bfloat16", "attention_backend": "stub", "sampling_backend": "stub"}
    return web.json_response(shared | {"max_running_requests": 2, "internal_states": [state]})


def main() -> None:
    if kind == "deaf":
        print(f"[Errno 98] error while attempting to bind on address ('127.0.0.1', {port})", flush=True)
        signal.pause()
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited by the child
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (folder / "child.pid").write_text(str(child.pid))
    app = web.Application()
    app.add_routes([web.post("/generate", generate), web.post("/flush_cache", flush_cache)])
    app.add_routes([web.get("/health", health), web.get("/server_info", server_info)])
    if kind == "stubborn":
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(app)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
        loop.run_forever()
    web.run_app(app, host="127.0.0.1", port=port, print=None)


main()
