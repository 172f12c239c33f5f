"""From items to scores in one process: who waits for what, batches, worker processes, the cache of scores.

`base` has the words of this room: a *job* is what is scored together, and a *dispatcher* takes jobs and answers them.
"""
