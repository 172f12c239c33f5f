"""Rewards that are a CLIP and at most a small head: likeness of image and prompt, taste, edits, diversity."""
