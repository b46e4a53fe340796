"""The old name of `analysis/intervals.py`, until everything imports that."""

from sublora.analysis.intervals import *  # noqa: F403
