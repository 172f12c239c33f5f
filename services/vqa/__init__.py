"""Rewards read off the first word of a judge's answer: the probabilities of "yes" and "no", or of five marks."""
