"""The service kit: a service brings a `Scorer`, and the kit makes a reward service of it.

What a service's author imports lies here: `scorer` (what a service brings), `settings` (its flags), `run.serve` (the
process) and `commands` (several commands under one name). The rooms below do the work:

- `http/` reads requests and writes answers; `guard/` decides who may ask, for how much;
- `dispatch/` turns requests into batches for the scorer; `scale/` does so across processes, through Redis;
- `models/` loads networks and images for scorers that compute; `judge/` asks a vision-language model behind a server;
- `legacy/` speaks the protocols of other trainers' reward clients;
- `testing/` has servers that behave, and misbehave, in a known way.
"""
