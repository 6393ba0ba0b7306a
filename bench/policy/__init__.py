"""Makespans of RL rollout epochs under each arm of the policy, in a simulation: `python -m bench.policy`."""
