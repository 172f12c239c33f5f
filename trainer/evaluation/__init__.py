"""Held-out evaluation: the same prompts, the same noise, the deterministic ODE, the averaged weights, every time."""
