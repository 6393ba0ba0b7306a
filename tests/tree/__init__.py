"""Tests of the suffix tree, its drafts and its history, through the Python classes."""
