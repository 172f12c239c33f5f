"""Large blocks that come and go are the same pages each time."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# As requests do: a block that is larger than the last one, and freed before the next.
FAULTS = """
import resource
from services.kit.heap import keep_freed_memory
if {keeps}:
    keep_freed_memory()
before = 0
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray((12 << 20) + 5000 * number)
    kept = bytearray(1 << 10)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keeps: bool) -> int:
    code = FAULTS.format(keeps=keeps)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
@pytest.mark.skipif(
    HUGE.exists() and "[always]" in HUGE.read_text(), reason="pages are of 2 MiB, so there are few faults"
)
def test_a_block_like_the_last_costs_no_page_faults():
    assert faults(keeps=True) < 1000 < 10_000 < faults(keeps=False)
