"""`runs`: one page for all runs of a folder."""

from trainer.runs.command import add_flags
from trainer.runs.command import show_runs as run

__all__ = ["add_flags", "run"]
