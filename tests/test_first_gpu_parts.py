"""scripts/first_gpu.sh: the table, what is skipped and measured again, failures as rows, and the FLOPs that MFU is counted with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.first_gpu import __main__ as command
from benchmarks.first_gpu.flops import decoder_forward, sd3_forward, training_factor
from benchmarks.first_gpu.parts import BY_NAME, PARTS, Part
from benchmarks.first_gpu.rows import DONE, Row, Table, summary
from benchmarks.first_gpu.setting import Setting
from benchmarks.gpu_sd35 import MEDIUM, TINY
from benchmarks.scaling_plan import FORWARD_TFLOP
from trainer.policies.flow.sd3_tokens import Sd3Transformer
from trainer.records.hardware import FlopMeter

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/first_gpu.sh"


@pytest.mark.parametrize(("geometry", "side", "texts"), [(MEDIUM, 64, 333), (TINY, 8, 21)], ids=["medium", "tiny"])
def test_the_formula_counts_what_torchs_counter_counts(geometry: dict[str, object], side: int, texts: int) -> None:
    """On the meta device, where tensors have shapes and no data; two blocks of medium's width tell as much as all."""
    changed = geometry | {"num_layers": 3, "dual_attention_layers": (0, 1)}
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = Sd3Transformer(**changed)
        network(
            hidden_states=torch.zeros(2, 16, side, side),
            encoder_hidden_states=torch.zeros(2, texts, int(str(geometry["joint_attention_dim"]))),
            pooled_projections=torch.zeros(2, int(str(geometry["pooled_projection_dim"]))),
            timestep=torch.zeros(2),
            return_dict=False,
        )
    assert 2 * sd3_forward(changed, side, side, texts) == counter.get_total_flops()


def test_the_forecasts_of_the_pages_count_the_same_work() -> None:
    """`scaling_plan` has what the counter gave of two rows, which are guidance."""
    assert 2 * sd3_forward(MEDIUM, 64, 64, 333) / 1e12 == pytest.approx(FORWARD_TFLOP, rel=1e-3)


def test_a_decoders_formula_counts_what_torchs_counter_counts() -> None:
    """All but the frequencies of places, a product of no weight. The counter takes causal attention for a whole square."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    network = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, attn_implementation="eager"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(input_ids=torch.zeros(3, 10, dtype=torch.int64), use_cache=False)
    weights = sum(p.numel() for p in network.model.layers.parameters() if p.dim() == 2)
    told = decoder_forward(weights, 40 * 16, 16, 2, tokens=30, predicted=30, keys=3 * 10 * 10)
    assert told == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_training_counts_as_the_trainers_own_meter_counts() -> None:
    network = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    network[0].requires_grad_(False)
    meter = FlopMeter(network, enabled=True)
    network(torch.randn(1, 8)).sum().backward()
    assert meter.take()[1] == training_factor(64, 128) * 2 * 128


def test_rows_are_a_table_and_nothing_bad_is_hidden(tmp_path: Path) -> None:
    table = Table(tmp_path)
    for row in (
        Row("b", "speed, images/s", 12.3456, note="a | b\nc"),
        Row("a", "MFU", 0.5, goal=">= 0.55", reached=False),
        Row("a", "memory", 1.0, goal="0.9 to 1.1", reached=True),
        Row("b", "alike", None, goal="True"),
        Row("b", "all of b", status="timed out", note="stopped after 3 s"),
    ):
        table.add(row)
    text = table.write_page(["a", "b"])
    assert text.index("| a | MFU | 0.5 | >= 0.55 | MISSED |  |") < text.index(
        "| b | speed, images/s | 12.35 |  |  | a \\| b c |"
    )
    assert "1 reached, 1 MISSED, 1 not judged, 0 FAILED, 1 TIMED OUT, 0 NOT RUN" in text
    assert (
        "- a: MFU: MISSED, 0.5 where >= 0.55 is the goal" in text
        and "- b: all of b: TIMED OUT: stopped after 3 s" in text
    )
    assert (tmp_path / "table.md").read_text() == text and summary([])[0].startswith("Goals")


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add(Row("a", "one", 1))
    with table.path.open("a") as file:
        file.write('{"part": "a", "wh')
    assert [row.what for row in table.rows()] == ["one"]
    table.forget("b")
    table.add(Row("a", DONE, 2.0))
    assert table.is_finished("a") and not table.is_finished("b")


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Part]:
    """A part that needs no package; what it does, a file says."""
    package = tmp_path / "benchmarks" / "first_gpu"
    shutil.copytree(ROOT / "benchmarks/first_gpu", package, ignore=shutil.ignore_patterns("__pycache__"))
    # The part is run by another process, which looks it up in its own list.
    (package / "parts.py").write_text(
        (package / "parts.py").read_text() + "\nBY_NAME = {'probe': Part('probe', 'probe', 'a probe', 60, ())}\n"
    )
    (package / "setting.py").write_text(
        "class Setting:\n    def __init__(self, *given):\n        self.part = given[0]\n"
    )
    (package / "probe.py").write_text(
        "import os, time\n"
        "from benchmarks.first_gpu.rows import Row\n"
        "def measure(setting):\n"
        "    yield Row(setting.part, 'begun', 1)\n"
        "    exec(os.environ['PROBE'])\n"
        "    yield Row(setting.part, 'ended', 2)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield Part("probe", "probe", "a probe", 60, ())


def told(out: Path) -> list[tuple[str, str]]:
    return [(row.what, row.status) for row in Table(out).rows()]


def test_a_part_that_fails_is_a_row_with_its_reason_and_is_tried_again(
    probe: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("PROBE", "raise MemoryError('no room on the card')")
    last = command.run(probe, out, tiny=True, again=False, left_s=60)
    assert last.status == "failed" and last.note == "exit 1: MemoryError: no room on the card"
    assert told(out) == [("begun", "measured"), ("a probe", "failed")], "what was measured before stays"
    monkeypatch.setenv("PROBE", "pass")
    assert command.run(probe, out, tiny=True, again=False, left_s=60).what == DONE
    finished = [("begun", "measured"), ("ended", "measured"), (DONE, "measured")]
    assert told(out) == finished
    monkeypatch.setenv("PROBE", "raise MemoryError")
    assert command.run(probe, out, tiny=True, again=False, left_s=60).note == "finished before"
    assert told(out) == finished
    assert command.run(probe, out, tiny=True, again=True, left_s=60).status == "failed"


def test_a_part_that_takes_too_long_is_stopped(probe: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LEAST_S", 0)
    monkeypatch.setenv("PROBE", "print('waiting', flush=True); time.sleep(60)")
    begun = time.monotonic()
    last = command.run(probe, tmp_path / "out", tiny=True, again=False, left_s=1)
    assert last.status == "timed out" and time.monotonic() - begun < 30
    assert (
        last.note == "stopped after 1 s, when the time was over; last words: waiting" or "last words: none" in last.note
    )


def test_a_part_that_cannot_be_begun_says_why(tmp_path: Path) -> None:
    lacks = Part("probe", "probe", "a probe", 60, ("torch", "a_package_of_nobody"))
    assert command.run(lacks, tmp_path, tiny=True, again=False, left_s=60).note == "missing here: a_package_of_nobody"
    late = command.run(Part("probe", "probe", "a probe", 60, ()), tmp_path, tiny=True, again=False, left_s=3)
    assert late.status == "not run" and "start once more" in late.note
    assert [row.status for row in Table(tmp_path).rows()] == ["not run"]


def test_parts_have_modules_and_every_package_a_name() -> None:
    assert len(BY_NAME) == len(PARTS)
    for part in PARTS:
        assert (ROOT / "benchmarks/first_gpu" / f"{part.module}.py").is_file() and part.seconds <= 300
        assert not part.missing(), "the environment of the tests has what the parts need"


def test_the_script_explains_itself_and_refuses_what_it_does_not_know() -> None:
    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": sys.executable}
        return subprocess.run(
            ["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False
        )

    told = asked("--help")
    assert told.returncode == 0 and all(
        f"--{name}" in told.stdout for name in ("out", "minutes", "parts", "again", "tiny")
    )
    for words, said in (
        (["--out"], "--out needs a value"),
        (["--fast"], "--fast is no flag"),
        (["--minutes", "x"], "no whole number"),
    ):
        refused = asked(*words)
        assert refused.returncode == 2 and said in refused.stderr


def test_a_goal_is_judged_on_the_card_it_was_set_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("a", False, tmp_path)
    assert setting.on_an_h200(True) is None and setting.on_a_gpu(True) is None, "no GPU is here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    assert setting.on_an_h200(False) is False and setting.on_a_gpu(True) is True
    assert Setting("a", True, tmp_path).on_an_h200(True) is None, "a tiny run says nothing of speed"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    assert setting.on_an_h200(False) is None


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    """At tiny size, by the script itself; started once more it measures nothing anew."""
    out = tmp_path / "found"
    words = ["bash", str(SCRIPT), "--tiny", "--minutes", "60", "--out", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    rows = Table(out).rows()
    assert done.returncode == 0, (out / "log.txt").read_text()[-4000:] + done.stdout
    assert {row.part for row in rows if row.what == DONE} == set(BY_NAME)
    assert not [row for row in rows if row.status != "measured" or row.reached is False]
    by = {(row.part, row.what): row for row in rows}
    assert by["sd3_full", "replay - rollout, largest log-prob"].value == 0
    assert by["checkpoint", "stopped and resumed: alike bit for bit"].reached
    assert "attention" in str(by["sd3_lora", "attention, by the kernels of a rollout"].value)
    assert by["sd3_full_compiled", "update: MFU"].verdict == "not judged"
    assert "RANDOM" in by["hps", "bf16 - fp32, largest score"].note
    before = out.joinpath("rows.jsonl").read_text()
    again = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert again.stdout.count("finished before") == len(PARTS) and out.joinpath("rows.jsonl").read_text() == before
    assert all(json.loads(line)["part"] in BY_NAME for line in before.splitlines())
