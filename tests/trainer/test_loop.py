"""The loop as a whole, in this process, against scripted reward servers: what is recorded, kept and made up for."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.checkpoint import CheckpointError, list_checkpoints
from trainer.config import Config, ConfigError
from trainer.config.file import dump_config, load_config
from trainer.doctor.run_folder import check_run
from trainer.loop import train
from trainer.programs.assemble import assemble
from trainer.report.by_construction import flat
from trainer.update.tally import Tally
from trainer.update.updater import Updater

Request = dict[str, Any]
scripted = reward_servers.scripted  # the fixture


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(recipe: Callable[..., Path]) -> Callable[..., Config]:
    """The config of a run of four steps against one scripted server."""

    def make(server: ScriptedServer, name: str = "run", **changes: Any) -> Config:
        rewards = {
            "services": {"svc": {"urls": [server.url], "max_attempts": 1, "timeout_s": 20.0}},
            "columns": {"r": {"service": "svc", "canary": "none", "max_failure_rate": 1.0}},
        }
        rewards["columns"]["r"] |= changes.pop("column", {})
        data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]}
        logging = {"report_every": 1000, "report_to": [], "progress": False}
        return load_config(recipe(name, rewards=rewards, data=data, logging=logging, **changes), Config)

    return make


def by_words(request: Request) -> Reply:
    """A score that depends on the item alone."""
    return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)


def weights(config: Config) -> dict[str, torch.Tensor]:
    return saved_weights(list_checkpoints(config.run_dir / "checkpoints")[-1])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(config: Config) -> list[int]:
    return [row["step"] for row in read_metrics(config.run_dir)]


def test_the_order_in_which_rewards_answer_does_not_matter(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """Services with random latencies: bit for bit the same weights and rows as with those that answer at once."""
    rng = random.Random(0)

    def late(request: Request) -> Reply:
        reply = by_words(request)
        reply.delay_s = rng.choice([0.0, 0.05, 0.15])
        return reply

    changes = {"sampling__micro_batch_size": 2, "max_steps": 3}
    prompt, slow = small(scripted(by_words), "prompt", **changes), small(scripted(late), "slow", **changes)
    assert train(prompt) == train(slow) == 0
    assert same(weights(prompt), weights(slow))
    assert read_metrics(prompt.run_dir) == read_metrics(slow.run_dir)
    # What a report would call fixed by the configuration has not moved.
    tree = yaml.safe_load((prompt.run_dir / "config.yaml").read_text())
    told = [(key, value, flat(tree, key)) for row in read_metrics(prompt.run_dir) for key, value in row.items()]
    fixed = [(key, value, found) for key, value, found in told if found is not None]
    assert len({key for key, _, _ in fixed}) == 8
    assert [key for key, value, found in fixed if abs(value - found.value) > found.tolerance] == []


def test_sigterm_before_the_first_step_leaves_one_first_row(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    asked = 0

    def terminate_once(request: Request) -> Reply:
        nonlocal asked
        asked += 1
        if asked == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return by_words(request)

    config = small(scripted(terminate_once), max_steps=1)
    assert train(config) == 0
    assert steps(config) == [0]
    assert train(config) == 0
    assert steps(config) == [0, 1]
    assert json.loads((config.run_dir / "summary.json").read_text())["steps"] == 1


@pytest.mark.parametrize("failing", [0, 2])
def test_an_evaluation_that_stopped_the_run_is_made_up_for(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], failing: int
) -> None:
    """Of the first and of the last step: `before` and `after` are what the whole report is about."""
    server = scripted(by_words)
    config = small(server, max_steps=2, column={"on_failure": "stop"}, evaluation__every=100)
    heldout = {json.loads(line)["id"] for line in Path(str(config.evaluation.path)).read_text().splitlines()}
    seen = 0

    def fail_one_evaluation(request: Request) -> Reply:
        nonlocal seen
        if request["items"][0]["id"].partition("#")[0] in heldout:
            seen += 1
            if seen == (1 if failing == 0 else 3):  # two requests of four prompts each
                return Reply({"error": {"code": "internal", "message": "out of order"}}, status=500)
        return by_words(request)

    server.behave = fail_one_evaluation
    assert train(config) == 1
    assert steps(config) == list(range(failing + 1))
    assert "eval/r" not in read_metrics(config.run_dir)[-1]
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert "on_failure is stop" in summary["stopped"]
    server.behave = by_words
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "eval/r" in rows[0] and "eval/r" in rows[2]
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert summary["stopped"] is None and summary["eval"]["before"] and summary["eval"]["after"]


def test_a_kill_after_the_last_checkpoint_still_gets_its_summary_and_report(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    config = small(scripted(by_words), max_steps=1)
    assert train(config) == 0
    before = weights(config)
    (config.run_dir / "summary.json").unlink()
    (config.run_dir / "report.html").unlink()
    assert train(config) == 0
    assert (config.run_dir / "summary.json").exists() and (config.run_dir / "report.html").exists()
    assert same(weights(config), before) and steps(config) == [0, 1]


def test_a_finished_run_whose_last_checkpoint_is_damaged_makes_it_again(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    config = small(scripted(by_words), max_steps=2, checkpoint={"save_every": 1, "keep": 2})
    assert train(config) == 0
    before = weights(config)
    (shard,) = list_checkpoints(config.run_dir / "checkpoints")[-1].glob("shard_*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert train(config) == 0
    assert same(weights(config), before) and steps(config) == [0, 1, 2]


def test_going_back_to_a_checkpoint_gives_up_the_later_ones(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    server = scripted(by_words)
    config = small(server, checkpoint={"save_every": 1, "keep": 3}, max_steps=4)
    assert train(config) == 0
    expected = weights(config)
    first = list_checkpoints(config.run_dir / "checkpoints")[0]
    assert first.name == "step_000002"
    back = small(server, checkpoint={"save_every": 100, "keep": 1}, max_steps=3, resume=str(first), optim__lr=1e-4)
    assert train(back) == 0
    assert [path.name for path in list_checkpoints(config.run_dir / "checkpoints")] == ["step_000003"]
    assert steps(back) == [0, 1, 2, 3]
    assert not same(weights(back), expected)


def test_a_size_that_cannot_be_drawn_is_refused_before_the_first_step(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """Not at the step of the schedule that asks for it."""
    with pytest.raises(ConfigError, match="draws 24x48 pixels, not 512x512"):
        train(small(scripted(by_words), sampling__resolution_schedule=[[5000, 512, 512]]))


def test_the_same_command_again_goes_on_and_not_back_again(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the launcher starts it after a kill; the checkpoint it went back to is gone by then."""
    server = scripted(by_words)
    assert train(small(server, checkpoint={"save_every": 1, "keep": 2}, max_steps=2)) == 0
    first = list_checkpoints(small(server).run_dir / "checkpoints")[0]
    assert first.name == "step_000001"
    again = {"checkpoint": {"save_every": 1, "keep": 1}, "resume": str(first)}
    assert train(small(server, max_steps=2, **again)) == 0
    assert f"Going on from {first}" in "".join(capsys.readouterr()) and not first.exists()
    assert train(small(server, max_steps=2, **again)) == 0
    assert "is finished" in "".join(capsys.readouterr())
    assert train(small(server, max_steps=3, **again)) == 0
    assert f"Going on from {first.with_name('step_000002')}" in "".join(capsys.readouterr())


def test_the_checkpoint_a_run_goes_on_from_is_not_kept_open(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """An open file keeps its room on disk when the checkpoint is removed, and on NFS its folder, too."""
    server = scripted(by_words)
    assert train(small(server, max_steps=1)) == 0
    with assemble(small(server, max_steps=2)) as program:
        assert program.session.step == 1
        assert str(program.session.config.run_dir / "checkpoints") not in Path("/proc/self/maps").read_text()


def test_going_on_with_another_config_is_said_and_each_is_kept(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = scripted(by_words)
    assert train(small(server, max_steps=1)) == 0
    assert "has changed" not in capsys.readouterr().err
    config = small(server, max_steps=2, optim={"lr": 5e-4}, column={"max_failure_rate": 0.5})
    findings = [finding.message for finding in check_run(config, None)]
    assert train(config) == 0
    changes = [
        "max_steps: 1 -> 2",
        "optim.lr: 0.001 -> 0.0005",
        "rewards.columns.r.max_failure_rate: 1.0 -> 0.5",
    ]
    told = capsys.readouterr().err
    assert "The config has changed since step 1 was trained:\n" + "".join(f"  {line}\n" for line in changes) in told
    [warned] = [message for message in findings if "differs" in message]
    assert warned.endswith(": " + "; ".join(changes[1:])), (
        "the doctor's is the trainer's, but for what is no experiment"
    )
    starts = sorted((config.run_dir / "starts").iterdir())
    assert [path.name for path in starts] == ["0001_step_000000.yaml", "0002_step_000001.yaml"]
    assert "lr: 0.001" in starts[0].read_text() and starts[1].read_text() == dump_config(config)
    assert "<code>optim.lr</code>" in (config.run_dir / "report.html").read_text(encoding="utf-8")


def test_another_model_or_other_rewards_cannot_go_on(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    server = scripted(by_words)
    first = small(server, max_steps=1)
    assert train(first) == 0
    kept = (first.run_dir / "config.yaml").read_text()
    with pytest.raises(
        CheckpointError,
        match=r"step 1 does not fit this config .*policy: \d+ trained parameters differ.*choose another run_name",
    ):
        train(small(server, max_steps=2, policy={"type": "tiny", "num_layers": 1, "num_heads": 2, "head_dim": 16}))
    with pytest.raises(CheckpointError, match=r"does not fit this config .*rewards\.columns were r, now r, s"):
        rewards = {
            "services": {"svc": {"urls": [server.url]}},
            "columns": {name: {"service": "svc", "canary": "none"} for name in "rs"},
        }
        config = small(server, max_steps=2).model_dump(mode="json") | {"rewards": rewards}
        train(load_config(_written(config), Config))
    assert (first.run_dir / "config.yaml").read_text() == kept, "a start that is refused leaves it as it was"
    assert len(list((first.run_dir / "starts").iterdir())) == 1


def _written(config: dict[str, Any]) -> Path:
    path = Path(config["output_dir"]).parent / "more.yaml"
    path.write_text(json.dumps(config))
    return path


def test_a_failed_score_drops_its_group_from_the_step(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """`drop_group`: one failure in a group of four out of sixteen samples leaves twelve that train."""

    def one_fails(request: Request) -> Reply:
        reply = by_words(request)
        for result in reply.body["results"]:
            if re.search(r"#0$", result["id"]) and request["items"][0]["id"] == result["id"]:
                result |= {"score": None, "error": {"code": "parse_error", "message": "unreadable"}}
        return reply

    changes = {"max_steps": 1, "evaluation": {}}
    shares = {}
    for policy in ("mask", "drop_group"):
        config = small(scripted(one_fails), policy, column={"on_failure": policy}, **changes)
        assert train(config) == 0
        row = read_metrics(config.run_dir)[-1]
        assert row["failed/r/parse_error"] == 2.0
        shares[policy] = row["adv/trained_share"]
    assert shares == {"mask": 14 / 16, "drop_group": 8 / 16}


def test_a_full_disk_stops_with_a_sentence_and_what_was_saved_stays(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(by_words)
    assert train(small(server, max_steps=1)) == 0
    config = small(server, max_steps=3)
    saved = weights(config)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.writing.save_file", full)
        with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left.*free space"):
            train(config)
    assert [path.name for path in (config.run_dir / "checkpoints").iterdir()] == ["step_000001"]
    assert same(weights(config), saved)
    assert train(config) == 0
    assert steps(config) == [0, 1, 2, 3]


def test_weights_that_are_not_finite_are_never_saved(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that destroys the model ends the run with code 1; the checkpoint before it stays usable."""
    server = scripted(by_words)
    config = small(server, max_steps=3, evaluation={}, checkpoint={"save_every": 1, "keep": 1})
    step = torch.optim.AdamW.step
    taken = 0

    def explode(self: torch.optim.AdamW, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        outcome = step(self, *args)
        if taken == 2:
            with torch.no_grad():
                for group in self.param_groups:
                    group["params"][0].fill_(torch.nan)
        return outcome

    monkeypatch.setattr(torch.optim.AdamW, "step", explode)
    assert train(config) == 1
    (checkpoint,) = list_checkpoints(config.run_dir / "checkpoints")
    assert checkpoint.name == "step_000001"
    assert all(tensor.isfinite().all() for tensor in weights(config).values())
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert "is not finite" in summary["stopped"]


@pytest.mark.parametrize("failing", [3, 4])
def test_a_step_that_stops_at_an_update_is_made_again_from_its_start(
    small: Callable[..., Config],
    scripted: Callable[..., ScriptedServer],
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """The first or the second update of the second step fails; resumed, the run ends where an undisturbed one does."""
    server = scripted(by_words)
    changes: dict[str, Any] = {"max_steps": 2, "evaluation": {}, "checkpoint": {"save_every": 1}}
    changes |= {"optim": {"lr": 1e-3, "updates_per_rollout": 2}, "advantage": {"std_floor": 1.0}}  # the spread counts
    undisturbed = small(server, "undisturbed", **changes)
    assert train(undisturbed) == 0

    config, real, taken = small(server, "stopped", **changes), Updater.apply, 0

    def fail_once(self: Updater, number: int, counts: Any, step: int, tally: Tally, *, scale: float = 1.0) -> float:
        nonlocal taken
        taken += 1
        if taken == failing:
            tally.add("loss/policy", torch.tensor(torch.nan))
        return real(self, number, counts, step, tally, scale=scale)

    monkeypatch.setattr(Updater, "apply", fail_once)
    assert train(config) == 1
    assert [each.name for each in list_checkpoints(config.run_dir / "checkpoints")] == ["step_000001"]
    made = "this update was not made" if failing == 3 else "The 1 of 2 before it were"
    assert made in json.loads((config.run_dir / "summary.json").read_text())["stopped"]
    assert train(config) == 0
    assert same(weights(config), weights(undisturbed))


def test_evaluation_runs_on_the_averaged_weights(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """Training is the same with and without an average; what is evaluated is not."""
    servers = [scripted(by_words), scripted(by_words)]
    follow = small(servers[0], "follow", optim={"lr": 0.05, "ema_decay": 0.0}, max_steps=2)
    slow = small(servers[1], "slow", optim={"lr": 0.05, "ema_decay": 0.99}, max_steps=2)
    assert train(follow) == train(slow) == 0
    assert same(weights(follow), weights(slow))
    last = [sorted((c.run_dir / "samples" / "step_000002").iterdir())[0].read_bytes() for c in (follow, slow)]
    first = [sorted((c.run_dir / "samples" / "step_000000").iterdir())[0].read_bytes() for c in (follow, slow)]
    assert first[0] == first[1] and last[0] != last[1]


BRIGHTNESS = """
from PIL import ImageStat
from services.kit.scorer import Item
from services.rules import reward


@reward(range=(0, 1))
def brightness(item: Item) -> float:
    return ImageStat.Stat(item.images[0].convert("L")).mean[0] / 255
"""


@pytest.mark.slow
def test_it_learns_what_it_is_rewarded_for_and_nothing_from_dealt_out_scores(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """A real service, random weights: twenty steps raise the held-out reward; the shuffled control stays."""
    (tmp_path / "rewards.py").write_text(BRIGHTNESS)
    gains = {}
    for name, shuffle in (("learns", False), ("control", True)):
        path = recipe(
            name,
            max_steps=20,
            rewards={
                "launch": "local",
                "services": {"rules": {"module": "rules", "args": {"functions": str(tmp_path / "rewards.py")}}},
                "columns": {"light": {"service": "rules", "reward": "brightness"}},
                "shuffle_control": shuffle,
            },
            data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"light": 1.0}}]},
            optim={"lr": 5e-3, "ema_decay": 0.0, "schedule": "constant"},
            sampling={"prompts_per_step": 4, "group_size": 8, "micro_batch_size": 16, "num_inference_steps": 4},
            checkpoint={"save_every": 1000},
            evaluation__every=1000,
            logging={"report_every": 1000, "report_to": [], "progress": False},
        )
        config = load_config(path, Config)
        assert train(config) == 0
        evaluation = json.loads((config.run_dir / "summary.json").read_text())["eval"]
        gains[name] = evaluation["after"]["light"] - evaluation["before"]["light"]
    assert gains["learns"] > 0.05, gains
    assert abs(gains["control"]) < gains["learns"] / 2, gains
