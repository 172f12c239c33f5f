"""Rewards that are plain functions: of images, of text answers, and those of a user's own Python file."""

from services.rules.functions import reward

__all__ = ["reward"]
