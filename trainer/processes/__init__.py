"""The processes of a run: ranks, their launcher, how they end, and the lock on a run's folder."""
