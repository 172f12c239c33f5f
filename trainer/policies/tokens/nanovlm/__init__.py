"""nanoVLM models: read onto transformers' Idefics3 by renaming, and written back to their own layout."""
