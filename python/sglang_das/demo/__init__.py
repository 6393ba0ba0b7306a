"""The main job on one machine: rollouts of a real model through real SGLang servers, without and with DAS.

`model` makes the checkpoint, `tasks` the prompts, `server` runs SGLang, `client` sends the rollouts as an RL framework
does, `report` adds up and prints, and `run` is the command that ties them together.
"""


class DemoError(Exception):
    """Something the user can put right; the message names the cause and the remedy."""
