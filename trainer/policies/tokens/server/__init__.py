"""Rollouts drawn by vLLM servers that get the weights after every update."""

ROOT_VARIABLE = "ROLLOUT_WEIGHTS"  # tells a server below which folder alone it may read weights
