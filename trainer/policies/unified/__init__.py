"""Policies that both read and draw: one network that answers questions about images and draws images by tokens."""
