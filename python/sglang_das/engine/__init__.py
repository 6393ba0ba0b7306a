"""Everything that touches SGLang: registration, the speculative worker, verification, problems, metrics.

`plugin` is the entry point SGLang loads in every process; `algorithm` says what the engine may ask of DAS; `worker`
runs one decode step; `drafting` decides what to draft; `verify` samples and matches; `problems` knows which prompt a
request belongs to.
"""
