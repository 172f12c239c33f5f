"""Runs the parts of a first run on a GPU, each in a process of its own; `scripts/first_gpu.sh` calls it.

python -m benchmarks.first_gpu check                 # which packages are needed, and which are missing
python -m benchmarks.first_gpu run PART --out FOLDER # one part; its rows go to FOLDER
python -m benchmarks.first_gpu table --out FOLDER    # the table of what is there
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.first_gpu.parts import BY_NAME, PARTS, Part
from benchmarks.first_gpu.rows import DONE, Row, Table

_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt|Exit)\b")  # as Python ends a traceback
_TINY_IS_SLOWER = 4  # a CPU compiles for minutes
_LEAST_S = 10  # with less left no part is begun


def check(names: Sequence[str], *, tiny: bool) -> int:
    """Print what is needed and missing. Returns 1 where nothing can be measured here."""
    parts = [BY_NAME[name] for name in names]
    needed = {name: None for part in parts for name in part.packages()}
    print(f"Packages: {', '.join(needed)}.\n\n| part | what | at most, s | missing |\n|---|---|---|---|")
    for part in parts:
        print(f"| {part.name} | {part.about} | {part.seconds} | {', '.join(part.missing())} |")
    absent = sorted({name for part in parts for name in part.missing()})
    left_out = ". A part that needs it gets a row that says so" if absent else ""
    print(f"\nMissing: {', '.join(absent) or 'nothing'}{left_out}.")
    if "torch" in absent:
        print("Nothing can be measured without torch: name another Python in PYTHON.", file=sys.stderr)
        return 1
    import torch

    if torch.cuda.is_available():
        print(f"GPU: {torch.cuda.get_device_name()}, torch {torch.__version__}.")
    elif not tiny:
        print(
            "torch sees no GPU here: --tiny runs every part on the CPU, at a size that says nothing of speed.",
            file=sys.stderr,
        )
        return 1
    return 0


def run(part: Part, out: Path, *, tiny: bool, again: bool, left_s: float) -> Row:
    """Measure a part in a process of its own, unless it was before. Returns its last row."""
    table = Table(out)
    if not again and table.is_finished(part.name):
        return Row(part.name, DONE, note="finished before")
    table.forget(part.name)
    last = _run(part, out, tiny=tiny, left_s=left_s)
    table.add(last)
    return last


def _run(part: Part, out: Path, *, tiny: bool, left_s: float) -> Row:
    if missing := part.missing():
        return Row(part.name, part.about, status="not run", note=f"missing here: {', '.join(missing)}")
    if left_s < _LEAST_S:
        return Row(part.name, part.about, status="not run", note="the time was over: start once more to go on")
    limit = min(part.seconds * (_TINY_IS_SLOWER if tiny else 1), left_s)
    command = [sys.executable, "-m", "benchmarks.first_gpu", "child", part.name, "--out", str(out)]
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (out / "log.txt").open("ab") as log:
        log.write(f"\n=== {part.name}\n".encode())
        log.flush()
        begins = log.tell()
        with subprocess.Popen(
            [*command, *(["--tiny"] if tiny else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                code = process.wait(limit)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)  # its services and workers, too
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                why = f"stopped after {limit:.0f} s" + (", when the time was over" if limit == left_s else "")
                return Row(
                    part.name, part.about, status="timed out", note=f"{why}; last words: {_last_words(out, begins)}"
                )
    if code:
        return Row(part.name, part.about, status="failed", note=f"exit {code}: {_last_words(out, begins)}")
    return Row(part.name, DONE, round(time.monotonic() - started, 1))


def _last_words(out: Path, begins: int) -> str:
    """What a part printed last: of an error its message, from the line that names it."""
    text = (out / "log.txt").read_bytes()[begins:].decode(errors="replace")
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    named = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    return " ".join(lines[named[-1] if named else -1 :])[:300] if lines else "none"


def child(part: Part, out: Path, *, tiny: bool) -> None:
    """Measure a part in this process; its rows are written one by one."""
    from benchmarks.first_gpu.setting import Setting

    table = Table(out)
    with tempfile.TemporaryDirectory() as scratch:
        module = importlib.import_module(f"benchmarks.first_gpu.{part.module}")
        for row in module.measure(Setting(part.name, tiny, Path(scratch)), **part.given):
            table.add(row)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("list", "check", "run", "child", "table"))
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"All of them: {' '.join(BY_NAME)}.")
    parser.add_argument("--out", type=Path, default=Path("outputs/first_gpu"))
    parser.add_argument("--tiny", action="store_true", help="At the size of a test; runs on a CPU.")
    parser.add_argument("--again", action="store_true", help="Measure what was finished before, too.")
    parser.add_argument("--left", type=float, default=3600.0, help="Seconds that are left for the part.")
    args = parser.parse_args(words)
    if unknown := [name for name in args.parts if name not in BY_NAME]:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(BY_NAME)}")
    names = args.parts or list(BY_NAME)
    if args.verb == "run":  # an end from outside ends the part, too, which is in a session of its own
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.verb == "list":
        print("\n".join(names))
    elif args.verb == "check":
        return check(names, tiny=args.tiny)
    elif args.verb == "table":
        print(Table(args.out).write_page([part.name for part in PARTS]))
        return int(any(row.verdict not in ("", "reached", "not judged") for row in Table(args.out).rows()))
    for name in names if args.verb in ("run", "child") else ():
        if args.verb == "child":
            child(BY_NAME[name], args.out, tiny=args.tiny)
            continue
        last = run(BY_NAME[name], args.out, tiny=args.tiny, again=args.again, left_s=args.left)
        told = last.verdict.lower() or "done"
        print(
            f"{name}: {told}{f' in {last.value} s' if last.value else ''}{f': {last.note}' if last.note else ''}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
