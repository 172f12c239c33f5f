"""Policies that write texts, token by token."""
