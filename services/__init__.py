"""Reward services: each is a process that answers `POST /v1/score`."""
