"""Programs that are given what they train on: the same loop, checkpoints and evaluation as RL, without a reward in a step."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.__main__ import main
from trainer.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.registry import build_policy
from trainer.programs.given import GivenProgram
from trainer.quickstart.words import Word, draw_word, render

scripted = reward_servers.scripted  # the fixture
SMALL = {"type": "tiny", "num_layers": 1, "num_heads": 2, "head_dim": 16}
Make = Callable[..., Config]
# `loss/flow` of steps 1 to 6, as the loop logged it that made the shipped base: at this size, with a codec of 200 images.
GOLDEN = (
    2.1232032775878906,
    2.415283679962158,
    1.7585095167160034,
    2.1301066875457764,
    2.045689582824707,
    1.843395709991455,
)


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("trainer.programs.quickstart_base.PCA_PICTURES", 200)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def by_words(request: dict[str, Any]) -> Reply:
    return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)


def images(folder: Path) -> None:
    """Six rendered words with captions, and six pairs: the preferred image has the ink that was asked for."""
    rng, captions, pairs = random.Random(0), [], []
    for number in range(6):
        word = draw_word(rng, heldout=False)
        other = Word(word.text, "red" if word.color != "red" else "blue")
        for name, each in (("good", word), ("bad", other)):
            Image.fromarray(np.asarray(render(each, rng))).save(folder / f"{name}{number}.png")
        captions.append({"image_path": f"good{number}.png", "txt": word.prompt})
        pairs.append({"prompt": word.prompt, "chosen": f"good{number}.png", "rejected": f"bad{number}.png"})
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")


@pytest.fixture
def make(tmp_path: Path, scripted: Callable[..., ScriptedServer]) -> Make:
    """The config of a small run of any of the programs."""
    images(tmp_path)
    lines = (ROOT / "assets" / "quickstart" / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "heldout.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    sections: dict[str, dict[str, Any]] = {
        "supervised": {"SFT": {"path": str(tmp_path / "captions.json"), "batch_size": 4, "micro_batch_size": 2}},
        "preference": {
            "OBJECTIVE": {"type": "diffusion_dpo", "dpo_beta": 50.0},
            "preferences": {"path": str(tmp_path / "pairs.jsonl"), "batch_size": 4, "micro_batch_size": 2},
        },
        "quickstart_base": {"quickstart": {"output": str(tmp_path / "base.safetensors"), "batch_size": 8}},
    }

    def config(program: str, name: str = "run", **changes: Any) -> Config:
        server = scripted(by_words)
        tree = {
            "run_name": name,
            "output_dir": str(tmp_path / "outputs"),
            "program": program,
            "max_steps": 4,
            "policy": SMALL,
            "optim": {"lr": 1e-3, "schedule": "constant"},
            "rewards": {
                "services": {"svc": {"urls": [server.url], "timeout_s": 20.0}},
                "columns": {"r": {"service": "svc", "canary": "none"}},
            },
            "evaluation": {"path": str(tmp_path / "heldout.jsonl"), "every": 2, "num_inference_steps": 2},
            "checkpoint": {"save_every": 1},
            "distributed": {"device": "cpu", "num_threads": 1},
            "logging": {"report_every": 1000, "report_to": [], "progress": False},
            **_sections(sections.get(program, {})),
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(tree), encoding="utf-8")
        return load_config(path, Config)

    return config


def _sections(given: dict[str, Any]) -> dict[str, Any]:
    return {{"SFT": "sft", "OBJECTIVE": "objective"}.get(name, name): section for name, section in given.items()}


def state(config: Config) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    checkpoint = Checkpoint.open(list_checkpoints(config.run_dir / "checkpoints")[-1])
    return {f"{name}/{kind}": t for name in checkpoint.names for kind, t in checkpoint.read(name).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("program", ["supervised", "preference", "quickstart_base"])
def test_it_is_evaluated_by_rewards_saved_at_a_signal_and_goes_on_bit_for_bit(
    make: Make, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    whole = make(program, "whole")
    assert train(whole) == 0
    rows = read_metrics(whole.run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert ["eval/r" in row for row in rows] == [True, False, True, False, True]
    assert all(row["grad_norm"] > 0 and row["lr"] == 1e-3 for row in rows[1:])
    assert (whole.run_dir / "report.html").is_file()
    summary = json.loads((whole.run_dir / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["eval"]["gain"]["r"]["gain"] is not None

    ended = make(program, "ended")
    step = GivenProgram.step

    def ask_to_stop(run: GivenProgram) -> Any:
        row = step(run)
        if run.session.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(GivenProgram, "step", ask_to_stop)
        assert train(ended) == 0
    assert list_checkpoints(ended.run_dir / "checkpoints")[-1].name == "step_000002"
    assert train(ended) == 0
    assert same(state(ended), state(whole)) and read_metrics(ended.run_dir) == rows


@pytest.mark.parametrize("program", ["supervised", "preference"])
def test_the_cut_into_micro_batches_changes_nothing_but_rounding(make: Make, program: str) -> None:
    section = "sft" if program == "supervised" else "preferences"
    whole = make(program, "whole", max_steps=1, evaluation={})
    cut = make(program, "cut", max_steps=1, evaluation={})
    tree = json.loads((Path(whole.output_dir).parent / "cut.yaml").read_text())
    tree[section]["micro_batch_size"] = 4
    (Path(whole.output_dir).parent / "cut.yaml").write_text(json.dumps(tree))
    cut = load_config(Path(whole.output_dir).parent / "cut.yaml", Config)
    assert train(whole) == train(cut) == 0
    (_, two), (_, one) = read_metrics(whole.run_dir), read_metrics(cut.run_dir)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_a_preference_starts_at_log_two_and_is_learnt(make: Make) -> None:
    """Diffusion-DPO (arXiv 2311.12908, equation 14): without a difference to the reference the loss is log 2."""
    config = make("preference", max_steps=12, evaluation={}, optim={"lr": 3e-3, "schedule": "constant"})
    assert train(config) == 0
    rows = read_metrics(config.run_dir)[1:]
    assert rows[0]["loss/policy"] == pytest.approx(math.log(2), rel=1e-6) and rows[0]["dpo/margin"] == 0
    assert np.mean([row["loss/policy"] for row in rows[-4:]]) < math.log(2) < rows[0]["loss/policy"] + 1e-6
    assert np.mean([row["dpo/accuracy"] for row in rows[-4:]]) > 0.5


def test_the_first_losses_of_the_base_are_those_of_before(make: Make) -> None:
    """Numbers of the loop that made the shipped base: the same seed, sizes, Muon and AdamW."""
    config = make(
        "quickstart_base",
        max_steps=6,
        seed=1,
        evaluation={},
        optim={
            "lr": 1e-3,
            "groups": {"blocks": {"lr": 0.01, "optimizer": "muon", "weight_decay": 0.0}},
            "weight_decay": 0.01,
            "warmup_steps": 2,
            "decay_share": 0.3,
            "max_grad_norm": 1e9,
            "ema_decay": 0.998,
        },
    )
    assert train(config) == 0
    losses = [row["loss/flow"] for row in read_metrics(config.run_dir)[1:]]
    assert losses == pytest.approx(GOLDEN, rel=1e-6)
    with safe_open(str(config.quickstart and config.quickstart.output), framework="pt") as file:
        assert "6 steps" in file.metadata()["about"]
        assert {name.partition(".")[0] for name in file.keys()} == {"codec", "text", "transformer"}  # noqa: SIM118


def test_a_crash_leaves_the_last_steps(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = GivenProgram.step

    def fail(run: GivenProgram) -> Any:
        if run.session.step == 2:
            raise RuntimeError("the device fell off the bus")
        return step(run)

    monkeypatch.setattr(GivenProgram, "step", fail)
    config = make("supervised", evaluation={})
    with pytest.raises(RuntimeError, match="fell off"):
        train(config)
    assert main(["flight", str(config.run_dir)]) == 0
    told = capsys.readouterr().out
    assert "Step 2: program supervised, batch_size 4" in told and "loss sft" in told


def test_pairs_that_cannot_be_read_are_passed_over_or_stop_the_run(make: Make, tmp_path: Path) -> None:
    config = make("preference", evaluation={})
    (tmp_path / "bad0.png").write_bytes(b"\x89PNG\r\n\x1a\n not quite")
    assert train(config) == 0
    assert sum(row["preferences/skipped"] for row in read_metrics(config.run_dir)[1:]) > 0
    for number in range(6):
        (tmp_path / f"bad{number}.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"preferences: the first pair cannot be used: .*10 pairs in a row"):
        train(make("preference", "broken", evaluation={}))


def test_texts_that_are_held_out_are_left_out(make: Make, tmp_path: Path) -> None:
    config = make("supervised", max_steps=1, data={"overlap": "drop"})
    captions = json.loads((tmp_path / "captions.json").read_text())
    heldout = json.loads((tmp_path / "heldout.jsonl").read_text().splitlines()[0])["prompt"]
    captions[0]["txt"] = heldout
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    assert train(config) == 0
    listing = (config.run_dir / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in listing] == [heldout]


def test_another_program_cannot_go_on_from_its_checkpoint(make: Make) -> None:
    assert train(make("supervised", max_steps=1, evaluation={})) == 0
    with pytest.raises(CheckpointError, match=r"does not fit this config \(program was supervised, now preference\)"):
        train(make("preference", max_steps=2, evaluation={}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"program": "rl"}, "no training set"),
        ({"SFT": None}, r"program: supervised trains on images with texts; give the section sft"),
        ({"sft.coef": 0.5}, r"sft\.coef = 0\.5 weighs the loss beside an objective"),
        ({"sft.every": 2}, r"sft\.every = 2 weighs"),
        ({"program": "preference"}, r"program: preference trains on pairs of images; give the section preferences"),
        ({"optim.micro_batch_size": 2}, r"optim\.micro_batch_size = 2 cuts samples of program: rl"),
        ({"data.train.0": {"path": "a.txt", "rewards": {"r": 1.0}}}, "leave data.train out"),
        ({"quickstart": {"output": "x"}}, r"quickstart acts in program: quickstart_base alone"),
    ],
)
def test_sections_that_do_not_belong_to_the_program_are_refused(
    make: Make, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    make("supervised")
    overrides = [f"{key.replace('SFT', 'sft')}={json.dumps(value)}" for key, value in changes.items()]
    with pytest.raises(ConfigError, match=told):
        load_config(tmp_path / "run.yaml", Config, overrides)


def test_preferences_need_a_preference_objective(make: Make, tmp_path: Path) -> None:
    make("preference")
    with pytest.raises(ConfigError, match=r"trains by objective\.type = diffusion_dpo, not flow_grpo"):
        load_config(tmp_path / "run.yaml", Config, ["objective={type: flow_grpo}"])


def test_the_sft_verb_takes_every_recipe_without_rewards_in_a_step(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make("supervised", max_steps=1, evaluation={})
    assert main(["sft", str(tmp_path / "run.yaml")]) == 0
    assert [row["step"] for row in read_metrics(config.run_dir)] == [0, 1]
    assert main(["sft", str(ROOT / "configs" / "quickstart.yaml")]) == 2
    assert "use `python -m trainer train" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.programs.quickstart_base.TIME_MEAN", math.nan)
    config = make("quickstart_base", evaluation={})
    assert train(config) == 1
    assert "not finite" in json.loads((config.run_dir / "summary.json").read_text())["stopped"]
    assert not Path(str(config.quickstart and config.quickstart.output)).exists()


def test_the_base_of_the_quickstart_is_small_and_fits_its_config() -> None:
    base = ROOT / "assets" / "quickstart" / "base.safetensors"
    assert base.stat().st_size <= 8_000_000
    quickstart = load_config(ROOT / "configs" / "quickstart.yaml", Config).policy
    made = load_config(ROOT / "configs" / "quickstart_base.yaml", Config)
    assert quickstart.checkpoint == (made.quickstart and made.quickstart.output) == base.relative_to(ROOT).as_posix()
    assert quickstart.model_copy(update={"checkpoint": None}) == made.policy
    policy = build_policy(
        quickstart.model_copy(update={"checkpoint": str(base)}), torch.device("cpu"), keep_reference=False
    )
    assert all(parameter.isfinite().all() for parameter in policy.trainable.parameters())
