"""DAS: distribution-aware speculative decoding for RL rollouts.

The suffix tree and its drafts, usable on their own; importing this needs numpy at most. The SGLang plugin is
`sglang_das.engine`, found by SGLang through its entry point.

>>> from sglang_das import SuffixTree
>>> tree = SuffixTree()
>>> first = tree.sequence()
>>> first.append([5, 6, 7, 8, 9])
>>> first.close()
>>> second = tree.sequence()
>>> second.append([5, 6])
>>> second.draft(max_tokens=3).tokens
array([7, 8, 9], dtype=int32)

`RolloutHistory` keeps a tree for each of many problems, for the last visits of each, weighs older visits less, and
survives in a file:

>>> from sglang_das import RolloutHistory
>>> history = RolloutHistory(window=8, decay=0.8)
>>> rollout = history.rollout(problem=1, context=[1, 2, 3])
>>> rollout.append([5, 6, 7])
>>> rollout.close(weight=0.5)
>>> history.advance()
1
>>> history.save("history.das")  # doctest: +SKIP
>>> history = RolloutHistory.load("history.das")  # doctest: +SKIP

Beside a token it can keep the distribution that the token was drawn from:

>>> import numpy as np
>>> rollout = history.rollout(problem=1)
>>> rollout.append([5, 6], ids=np.array([[5, 8], [9, 6]]), probabilities=np.array([[0.75, 0.25], [0.5, 0.5]]))
>>> rollout.close()
>>> token, ids, probabilities = history.tree(1).latest([5])
>>> token, ids
(6, array([6, 9], dtype=int32))
"""

from sglang_das._native import Draft, RolloutHistory, Sequence, SuffixTree, __version__, step

__all__ = ["Draft", "RolloutHistory", "Sequence", "SuffixTree", "__version__", "step"]
