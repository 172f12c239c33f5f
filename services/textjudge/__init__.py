"""Rewards of free text by a judge: how good an answer is, and whether it says what a reference says, as a mark in a range."""
