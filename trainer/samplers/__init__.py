"""Samplers: pure functions of tensors and floats, used alike by the rollout and by its replay."""
