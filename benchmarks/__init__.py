"""Benchmarks: each against a naive baseline or a stated target, recorded as JSON. See `python -m benchmarks list`."""
