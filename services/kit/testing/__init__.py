"""Servers with known behaviour, for tests and trials: scorers that need no model, broken servers, a scripted judge."""
