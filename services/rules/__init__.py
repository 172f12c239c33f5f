"""Rewards that are plain functions: of images, of text answers, and those of a user's own Python file.

`reward` is that of `services.own`, where files that were written before it was there look for it.
"""

from services.kit.functions.file import reward

__all__ = ["reward"]
