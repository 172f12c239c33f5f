"""The steps that must happen whole, as Lua for EVAL. Redis runs a script with nothing in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.kit.scale.connection import Command
from services.kit.scale.keys import GROUP

# Memory being short must not keep a job from being answered: answering it frees more than the answer takes.
_FINISH = """#!lua flags=allow-oom
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if redis.call('SREM', KEYS[2], ARGV[3]) == 0 then return 0 end
redis.call('XADD', KEYS[3], '*', 'job', ARGV[3], 'answer', ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
redis.call('INCR', KEYS[4])
return 1
"""

# Only what is still ours: a worker that slept must not take back what another has claimed.
_KEEP = """
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
"""

_HAND_BACK = """
local count = 0
for _, job in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 10000, ARGV[2])) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, job[1],
             'IDLE', ARGV[3], 'RETRYCOUNT', math.max(0, job[4] - 1), 'JUSTID')
  count = count + 1
end
return count
"""


def finish(
    keys: tuple[str, str, str, str], entry_id: bytes, job_id: bytes, answer: bytes, *, replies_ttl_ms: int
) -> Command:
    """Take a job out of its stream and, if it is still open, answer it. Returns 1, or 0 when nobody waits for it.

    `keys`: the job stream, the front's open jobs, the front's replies, the count of answered jobs.
    """
    return _eval(_FINISH, keys, GROUP, entry_id, job_id, answer, replies_ttl_ms)


def keep(jobs: str, consumer: str, entry_ids: Sequence[bytes]) -> Command:
    """Say that `consumer` still works on those of the jobs that are its own."""
    return _eval(_KEEP, (jobs,), GROUP, consumer, *entry_ids)


def hand_back(jobs: str, consumer: str, idle_ms: int) -> Command:
    """Let others claim at once all that `consumer` holds, as if it had never been given out. Returns how many."""
    return _eval(_HAND_BACK, (jobs,), GROUP, consumer, idle_ms)


def _eval(script: str, keys: Sequence[str], *arguments: Any) -> Command:
    return ("EVAL", script, len(keys), *keys, *arguments)
