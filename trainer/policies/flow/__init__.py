"""Rectified-flow generators: one policy, the models it drives, and how each is read and written."""
