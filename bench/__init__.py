"""Measurements of sglang-das beside what else one could install: `python -m bench.tree`. See README.md here."""
