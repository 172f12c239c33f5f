"""Rewards that are plain functions: colour match, JPEG size, and those of a user's own Python file."""

from services.rules.functions import reward

__all__ = ["reward"]
