"""`python -m trainer generate`: pictures and texts of a file of prompts, in a folder that can be gone on with."""
