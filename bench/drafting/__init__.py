"""Drafters beside each other on recorded rollouts, ours with each of its ideas switched off in turn.

`__main__` replays every file by `sglang_das.replay`, the peers from their own packages (`bench.tree.peers`), with a
history and without; `cost` times engine steps of 64 requests on one core.
"""
