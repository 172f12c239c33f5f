"""Rewards that are functions of a user's Python file: which of its functions they are, and what they may return."""
