"""SGLang's own test kits against a DAS server: `python -m bench.kits`."""
