"""Length-aware speculation policy: how much each rollout may draft and how wide each verify step is.

numpy only: no engine, no tree. :class:`Policy` is the whole interface; beneath it

* ``classes``: which rollouts will be long (:class:`LengthModel`),
* ``latency``: what a step costs (:class:`LatencyModel`),
* ``calibration``: what a draft probability is worth (:class:`Calibration`),
* ``width``: the width of best rate, and cheap exploration,
* ``switch``: rest where speculation has lost.
"""

from .calibration import Calibration
from .classes import CLASS_NAMES, LONG, MEDIUM, SHORT, LengthModel
from .config import PolicyConfig
from .latency import LatencyModel
from .policy import Plan, Policy
from .width import WidthChoice

__all__ = [
    "CLASS_NAMES",
    "LONG",
    "MEDIUM",
    "SHORT",
    "Calibration",
    "LatencyModel",
    "LengthModel",
    "Plan",
    "Policy",
    "PolicyConfig",
    "WidthChoice",
]
