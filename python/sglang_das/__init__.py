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
"""

from sglang_das._native import Draft, RolloutHistory, Sequence, SuffixTree, __version__, step

__all__ = ["Draft", "RolloutHistory", "Sequence", "SuffixTree", "__version__", "step"]
