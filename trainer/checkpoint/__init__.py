"""What survives a crash: weights, optimizer, average, random states, sampler position, step.

All ranks write a checkpoint together, each its share, in the background; any number of ranks can read it.
"""

from __future__ import annotations

from trainer.checkpoint.layout import (
    CheckpointError,
    DamagedError,
    UnreadableError,
    begins_at,
    find_resume,
    folder_name,
    list_checkpoints,
    saved_step,
    set_aside_after,
    tidy,
)
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.writing import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "DamagedError",
    "Retention",
    "UnreadableError",
    "begins_at",
    "find_resume",
    "folder_name",
    "list_checkpoints",
    "saved_step",
    "set_aside_after",
    "tidy",
]
