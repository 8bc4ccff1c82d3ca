"""Holdfast measured beside Redis: `python -m benchmarks`, in the root of the repository."""
