"""Rewards that are a vision-language model of transformers with a small head that gives a number."""
