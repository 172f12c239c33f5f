"""Rows that fill packs: which row comes where is known from the seed and counts alone, whoever computes it.

`shuffle` orders rows without a table, `groups` says which rows of which files take part, `lanes` fills packs, `reader` reads ahead.
"""
