"""Objectives of rectified flows: on the stochastic steps of the sampler, and on the forward process."""
