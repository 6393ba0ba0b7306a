"""Replay of recorded rollouts against drafters: what each would have saved, exactly.

Under sample and match a draft counts as far as it equals what the target sampled, and what it sampled is recorded. So a
replay needs no model, and tells the tokens per verify step that a server would have had. One thing a server learns
too is not in a recording: the target's distributions at drafted nodes that were not kept.

`trace` holds recorded rollouts, `read` gets them from files; `drafters` and `peers` are who drafts, behind one
interface; `control` says how much, `accept` what of it counts, and `play` runs the steps of a server, in a process of
its own (`worker`) for the peers. `figures` adds up, `report` and `page` show, and `run` is the command.
"""


class ReplayError(Exception):
    """Something the user can put right; the message names the cause and the remedy."""
