"""Objectives of text policies."""
