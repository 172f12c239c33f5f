"""Several processes serve one reward together: they share a score cache and pull jobs from one stream, in Redis.

A *front* takes requests and puts their jobs into the stream of their reward; a *worker* owns a model, takes jobs from
the streams and puts the answers into the front's reply stream. A process may be both. A job is in Redis from the
moment it is sent until the moment it is answered, so whoever dies, another can go on:

- a worker that falls silent: after the visibility timeout another worker claims its jobs;
- a front: nobody waits for its jobs any more, so workers drop them, and its keys expire;
- Redis: what it lost, the fronts send again under the same job id.

A job may so be scored twice, but it is answered once: taking a job out of the front's set of open jobs and writing its
answer is one step in Redis, and the front takes the first answer it reads. Nothing here is imported without `--redis`.
"""
