"""From a teacher to compact, verified checkpoints in one command: `python -m distill recipe=NAME`."""

__version__ = "0.1.0"
