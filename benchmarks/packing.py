"""Packs against padded batches of the same rows, and what a million rows cost.

    python benchmarks/packing.py                     # all tables
    python benchmarks/packing.py layouts --rounds 7  # one of them: layouts, lengths, copies, rows, starts

layouts  The quickstart's rows of packed training through a small Mixture-of-Transformers, forward and backward, one thread: tokens of
         rows (not of padding) a CPU second, and the share of padding, for a padded batch and for packs of several lengths, each
         attended row by row and with one dense mask. Every layout has the same rows; they take turns, medians are shown; the ratio is
         to the padded batch attended row by row, the median of the rounds' own.
lengths  One pack of more and more rows, attended both ways: CPU microseconds a token, which stay the same where the cost is linear.
copies   Noised copies of each image that share their row's context: loss images a CPU second.
rows     A JSON lines file of so many rows: seconds and memory to open it, CPU microseconds to find which row comes where and to parse it.
starts   A whole run of one step on such a file: its CPU seconds and the most memory that it had.

CPU seconds count this process alone, so a busy machine moves them little; ratios of one run are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROWS = ROOT / "assets" / "unified_quickstart"
LENGTHS = (128, 256, 512, 1024, 2048)
WHOLE = (256, 512, 1024, 2048, 4096, 8192, 16384)
LONGEST_DENSE = 4096
FORMATS = {"t2i": "t2i.json", "edit": "edit.json", "t2i_reason": "t2i_reason.jsonl", "edit_reason": "edit_reason.jsonl"}
WEIGHTS = {"t2i": 0.35, "edit": 0.25, "t2i_reason": 0.2, "edit_reason": 0.2}


def packed(**fields: Any) -> Any:
    """The section `packed` of the quickstart's rows."""
    from trainer.config.packed import PackedConfig

    groups = [
        {"name": name, "weight": WEIGHTS[name], "sets": [{"path": str(ROWS / file), "format": name}]}
        for name, file in FORMATS.items()
    ]
    return PackedConfig.model_validate({"groups": groups, "workers": 0, **fields})


def policy_of(way: str) -> Any:
    """A fresh model of the quickstart's size; its last layer is not zero, so that nothing is left out of the backward pass."""
    import torch

    from trainer.config.mot import MotConfig
    from trainer.policies.registry import build_policy

    torch.manual_seed(0)
    fields = {
        "type": "mot",
        "initialize": {"words": vocabulary()},
        "dtype": "float32",
        "attention": way,
        "max_latent_size": 8,
    }
    policy = build_policy(MotConfig.model_validate(fields), torch.device("cpu"), keep_reference=False)
    torch.nn.init.normal_(policy.trainable.llm2vae.weight, std=0.02)
    return policy


def vocabulary() -> list[str]:
    """Every word of the rows is a token."""
    from trainer.data.formats.unireason.instructions import THINK
    from trainer.quickstart.scene_rows import FACTS

    said = re.findall(r"[A-Za-z]+", THINK)
    return sorted({*FACTS, *FACTS.values(), *said, "make", "like", "left", "right", "becomes"})


def laid_rows(policy: Any, tokens: int, copies: int = 1) -> list[Any]:
    """Rows as the quickstart draws them, until they have so many tokens."""
    from trainer.data.formats.groups import read_groups
    from trainer.data.packing.lanes import Lanes
    from trainer.policies.base import Laying

    config = packed(expected_tokens=tokens, max_tokens=2 * tokens, max_row_tokens=tokens)

    def lay(plan: Any, seed: int) -> Any:
        return policy.lay(plan, Laying(seed, 0.1, 0.1, 0.1, shift=3.0, copies=copies))

    [pack] = Lanes(config, read_groups(config, 1), 1, lay).packs()
    return list(pack.rows)


def cut(rows: Sequence[Any], length: int) -> list[list[Any]]:
    """Packs of about `length` tokens of rows that follow one another, equally full: a short rest would be a pack of its own."""
    total = sum(row.length for row in rows)
    count = max(round(total / length), 1)
    packs: list[list[Any]] = [[] for _ in range(count)]
    before = 0
    for row in rows:
        packs[int((before + row.length / 2) * count / total)].append(row)
        before += row.length
    return [pack for pack in packs if pack]


def padded(row: Any, length: int, word: int) -> Any:
    """The row with words behind its end, which nobody learns, up to a length."""
    more = length - row.length
    position, order = row.und[-1][1] + 1, row.und[-1][2] + 1
    und = [*row.und, *((len(row.words) + n, position + n, order + n, 0, False) for n in range(more))]
    return replace(row, words=[*row.words, *[word] * more], und=und)


def pass_over(policy: Any, packs: Sequence[Sequence[Any]]) -> float:
    """CPU seconds of a forward and a backward pass over each pack."""
    begun = time.process_time()
    for pack in packs:
        out = policy.read(pack)
        (out.cross_entropy_T.sum() + out.squared_error_L.sum()).backward()
    policy.trainable.zero_grad()
    return time.process_time() - begun


def take_turns(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each case's CPU seconds, round by round; the first round warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            seconds = case()
            if number:
                found[name].append(seconds)
    return found


def times_faster(base: Sequence[float], case: Sequence[float]) -> float:
    """The median of the rounds' own ratios, as what else the machine does is alike within a round."""
    return statistics.median(one / other for one, other in zip(base, case, strict=True))


def layouts(rounds: int, tokens: int) -> dict[str, Any]:
    policies = {way: policy_of(way) for way in ("rows", "dense")}
    rows = laid_rows(policies["rows"], tokens)
    real, longest = sum(row.length for row in rows), max(row.length for row in rows)
    word = rows[0].words[0]
    made = {f"padded, {len(rows)} rows of {longest}": [[padded(row, longest, word) for row in rows]]}
    made |= {f"packs of about {length}": cut(rows, length) for length in LENGTHS}
    cases = {
        f"{name}, {way}": partial(pass_over, policies[way], packs)
        for name, packs in made.items()
        for way in policies
        if way == "rows" or not name.startswith("padded")
    }
    seconds = take_turns(cases, rounds)
    base = next(iter(seconds.values()))
    found = {}
    print("\n| layout | packs | slots | padding | tokens / CPU s | ratio |\n|---|---|---|---|---|---|")
    for name, packs in made.items():
        slots = sum(row.length for pack in packs for row in pack)
        for way in policies:
            if (case := f"{name}, {way}") in seconds:
                ratio, median = times_faster(base, seconds[case]), statistics.median(seconds[case])
                found[case] = {
                    "slots": slots,
                    "padding": 1 - real / slots,
                    "tokens_per_s": real / median,
                    "ratio": ratio,
                    "packs": len(packs),
                }
                speed = f"{real / median:,.0f} | {ratio:.2f}"
                print(f"| {case} | {len(packs)} | {slots:,} | {1 - real / slots:.1%} | {speed} |")
    return found


def copies(rounds: int, tokens: int) -> dict[str, Any]:
    policy = policy_of("rows")
    rows = {number: laid_rows(policy, tokens, number) for number in (1, 2, 3, 4, 8)}
    cases = {str(number): partial(pass_over, policy, cut(each, 256)) for number, each in rows.items()}
    seconds = take_turns(cases, rounds)
    found = {}
    print("\n| copies | tokens | loss images / CPU s | tokens / CPU s |\n|---|---|---|---|")
    for number, each in rows.items():
        images = sum(latent.noise is not None for row in each for latent in row.latents)
        length, cpu = sum(row.length for row in each), statistics.median(seconds[str(number)])
        found[str(number)] = {"images_per_s": images / cpu, "tokens_per_s": length / cpu}
        print(f"| {number} | {length:,} | {images / cpu:,.0f} | {length / cpu:,.0f} |")
    return found


def lengths(rounds: int) -> dict[str, Any]:
    policies = {way: policy_of(way) for way in ("rows", "dense")}
    packs = {tokens: laid_rows(policies["rows"], tokens) for tokens in WHOLE}
    cases = {
        f"{tokens} {way}": partial(pass_over, policies[way], [rows])
        for tokens, rows in packs.items()
        for way in policies
        if way == "rows" or tokens <= LONGEST_DENSE
    }
    seconds = take_turns(cases, rounds)
    found = {}
    print("\n| tokens of a pack | rows | row by row, us a token | one dense mask, us a token |\n|---|---|---|---|")
    for tokens, rows in packs.items():
        length = sum(row.length for row in rows)
        took = {way: seconds[f"{tokens} {way}"] for way in policies if f"{tokens} {way}" in seconds}
        each = {way: 1e6 * statistics.median(rounds_of) / length for way, rounds_of in took.items()}
        found[str(tokens)] = {"tokens": length, "rows": len(rows), "us_a_token": each}
        dense = f"{each['dense']:.0f}" if "dense" in each else ""
        print(f"| {length:,} | {len(rows)} | {each['rows']:.0f} | {dense} |")
    return found


def write_rows(folder: Path, count: int) -> Path:
    """A JSON lines file of so many rows of about 300 bytes, and their one image."""
    path = folder / "rows.jsonl"
    shutil.copy(next((ROWS / "scenes").glob("*.png")), folder / "a.png")
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            text = f"draw a red disc left of a blue bar, number {row}, " + "in front of a wall " * 10
            file.write(json.dumps({"type": "T2I_SFT", "image": "", "image_path": "a.png", "txt": text}) + "\n")
    return path


def rows(count: int) -> dict[str, Any]:
    from trainer.config.packed import PackedConfig
    from trainer.data.formats.groups import read_groups

    found: dict[str, Any] = {}
    print("\n| rows | file MB | open s | memory MB | places us | with parsing us |\n|---|---|---|---|---|---|")
    for number in (count // 100, count // 10, count):
        with tempfile.TemporaryDirectory() as folder:
            path = write_rows(Path(folder), number)
            group = {"name": "all", "sets": [{"path": str(path), "format": "t2i"}]}
            config = PackedConfig.model_validate({"groups": [group]})
            before, begun = resident(), time.process_time()
            [opened] = read_groups(config, 1)
            opening, memory = time.process_time() - begun, resident() - before
            begun = time.process_time()
            places = [opened.row(position, 1) for position in range(2000)]
            finding = (time.process_time() - begun) / 2000
            begun = time.process_time()
            for plans, place in places:
                plans.plan(place)
            parsing = (time.process_time() - begun) / 2000
            found[str(number)] = {
                "open_s": opening,
                "memory_mb": memory,
                "place_us": 1e6 * finding,
                "plan_us": 1e6 * parsing,
            }
            size = path.stat().st_size / 1e6
            print(
                f"| {number:,} | {size:,.0f} | {opening:.2f} | {memory:.0f} | {1e6 * finding:.0f} | {1e6 * parsing:.0f} |"
            )
    return found


def starts(count: int) -> dict[str, Any]:
    """Processes of their own, so that what the first has read is in no other's memory."""
    found: dict[str, Any] = {}
    print("\n| rows | CPU s of a run of one step | most memory, MB |\n|---|---|---|")
    for number in (count // 1000, count):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = folder / "recipe.yaml"
            recipe.write_text(
                json.dumps(recipe_of(write_rows(folder, number), folder, min(64, number // 2))), encoding="utf-8"
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer", "train", str(recipe)], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            most, status = 0.0, 0
            while not status:  # a process id, once it has ended
                status, code, used = os.wait4(process.pid, os.WNOHANG)
                most = max(most, peak_mb(process.pid))
                time.sleep(0.05)
            if code:
                raise SystemExit(f"the run on {number:,} rows ended with {os.waitstatus_to_exitcode(code)}")
            found[str(number)] = {"cpu_s": used.ru_utime + used.ru_stime, "memory_mb": most}
            print(f"| {number:,} | {found[str(number)]['cpu_s']:.1f} | {found[str(number)]['memory_mb']:,.0f} |")
    return found


def recipe_of(path: Path, folder: Path, hold_out: int) -> dict[str, Any]:
    """A run of one step of a small Mixture-of-Transformers on a file of rows."""
    return {
        "run_name": "start",
        "output_dir": str(folder / "outputs"),
        "program": "supervised",
        "max_steps": 1,
        "policy": {"type": "mot", "initialize": {"words": vocabulary()}, "dtype": "float32"},
        "packed": {"groups": [{"name": "all", "sets": [{"path": str(path), "format": "t2i"}]}], "hold_out": hold_out}
        | {"expected_tokens": 512, "max_tokens": 1024, "max_row_tokens": 1024, "buffer_below": 0},
        "optim": {"lr": 1e-3, "ema_decay": 0.0},
        "logging": {"report_to": [], "progress": False},
        "distributed": {"device": "cpu", "num_threads": 1},
    }


def peak_mb(process: int) -> float:
    """The most memory that a process has had, MB; 0 where it has ended. `ru_maxrss` would count what its parent had at the fork."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def resident() -> float:
    """Memory of this process, MB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Packs against padded batches; a million rows.")
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="of the rows of layouts and copies")
    parser.add_argument("--count", type=int, default=1_000_000, help="rows of the largest file")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmarks" / "packing.json")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    for table in given.tables:
        found[table] = TABLES[table](given)
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


TABLES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "layouts": lambda given: layouts(given.rounds, given.tokens),
    "lengths": lambda given: lengths(given.rounds),
    "copies": lambda given: copies(given.rounds, given.tokens),
    "rows": lambda given: rows(given.count),
    "starts": lambda given: starts(given.count),
}


if __name__ == "__main__":
    main()
