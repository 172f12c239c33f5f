"""Pairs of a question about an image and a prompt to draw: files of them, and how they are built.

A row holds `similarity` and two sides, `generate_ann` and `understand_ann`, each with `image_path`, `prompt`, `question`,
`answer` and `tag` (PairUni, section 3.2). Training asks the question of one side and draws the prompt of the other.
"""

from trainer.data.pairs.file import TASKS, read_pairs, sides_of

__all__ = ["TASKS", "read_pairs", "sides_of"]
