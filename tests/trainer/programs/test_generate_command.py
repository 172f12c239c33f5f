"""`python -m trainer generate`: prompts in, pictures and scores out, in a folder that can be gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support.forked import ForkedTrainer, run_ranks
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.task_configs import task_config
from tests.support.tiny_neo import make_qwen3, neo_section
from tests.support.trainer_runs import ROOT
from trainer.__main__ import main
from trainer.config.generation import GenerationConfig
from trainer.policies.generation import Instructions, Made, Written
from trainer.processes.run_lock import run_lock
from trainer.programs.generating import command
from trainer.programs.generating.folder import OutputFolder, stem_of
from trainer.types import Prompt

FEW = [
    "--num-inference-steps",
    "3",
    "--shift",
    "1",
    "--text-guidance",
    "1",
    "--checkpoint",
    "base",
    "--batch-size",
    "2",
]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(
        "".join(f'the word "{word}" in {ink}\n' for word, ink in [("AC", "red"), ("K7", "blue"), ("X", "green")])
    )
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def test_prompts_become_pictures_that_are_scored(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [
        "generate",
        str(recipe()),
        "--prompts",
        str(prompts),
        "--output",
        str(out),
        *FEW,
        "--samples",
        "2",
        "--score",
    ]
    assert main(given) == 0
    made = lines(out / "made.0.jsonl")
    assert [row["prompt"] for row in made[::2]] == prompts.read_text().splitlines()
    assert len(made) == 6 and made[0]["id"] == f"{made[0]['prompt_id']}#0"
    with Image.open(out / made[0]["steps"][0]["image"]) as image:
        assert image.size == (48, 24)
    scored = lines(out / "scores.0.jsonl")
    assert [row["id"] for row in scored] == [row["id"] for row in made]
    assert all(row["scores"].keys() == {"color", "small"} and "errors" not in row for row in scored)
    mean = sum(row["scores"]["color"] for row in scored) / 6
    printed = capsys.readouterr().out
    assert f"{mean:.4g}" in printed and "6 of 6" in printed


def test_a_start_that_was_stopped_is_gone_on_with(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte what a start that was not stopped makes; what is there is not made again. A torn line and an image whose line is
    missing are what a kill leaves behind."""
    path = str(recipe())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        assert main(["generate", path, "--prompts", str(prompts), "--output", str(folder), *FEW]) == 0
    kept, *lost = (cut / "made.0.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "made.0.jsonl").write_bytes(kept + lost[0][:30])
    (cut / json.loads(lost[1])["steps"][0]["image"]).unlink()
    batches: list[int] = []

    def counting(*args: Any, shown: bool) -> Iterator[Sequence[Any]]:
        for batch in watched(*args, shown=shown):
            batches.append(len(batch))
            yield batch

    watched = command._watched
    monkeypatch.setattr(command, "_watched", counting)
    assert main(["generate", path, "--prompts", str(prompts), "--output", str(cut), *FEW]) == 0
    assert batches == [2]
    assert pictures(cut) == pictures(whole)
    assert lines(cut / "made.0.jsonl") == lines(whole / "made.0.jsonl")


def asked(path: Path | str, prompts: Path, out: Path, *more: str) -> list[str]:
    return ["generate", str(path), "--prompts", str(prompts), "--output", str(out), *FEW, *more]


def made(out: Path) -> dict[str, dict[str, Any]]:
    """Whole lines of all ranks, by sample."""
    rows = [json.loads(line) for path in sorted(out.glob("made.*")) for line in path.read_bytes().split(b"\n")[:-1]]
    assert len({row["id"] for row in rows}) == len(rows), "no sample twice"
    return {row["id"]: row for row in rows}


@pytest.mark.slow
def test_a_killed_start_is_gone_on_with(recipe: Callable[..., Path], prompts: Path, tmp_path: Path) -> None:
    """By SIGKILL, wherever it is; then by one start that goes on: to the byte what an undisturbed one makes, nothing twice."""
    path, many = recipe(), ["--samples", "12", "--batch-size", "1"]
    with ForkedTrainer(asked(path, prompts, tmp_path / "cut", *many), tmp_path / "killed", dict(os.environ)) as killed:
        while not (there := tmp_path / "cut" / "made.0.jsonl").exists() or there.read_bytes().count(b"\n") < 3:
            assert killed.poll() is None, killed.stderr
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
    assert 3 <= len(made(tmp_path / "cut")) < 36
    for name in ("cut", "whole"):
        assert main(asked(path, prompts, tmp_path / name, *many)) == 0
    assert made(tmp_path / "cut") == made(tmp_path / "whole") and len(made(tmp_path / "whole")) == 36
    finished = {name: data for name, data in pictures(tmp_path / "cut").items() if not name.startswith(".")}
    assert finished == pictures(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_share_what_is_made_and_one_goes_on_with_it(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path
) -> None:
    """Also behind the torn lines that both leave when they are killed."""
    path, out = recipe(), tmp_path / "two"
    run_ranks(
        "trainer.__main__", *asked(path, prompts, out, "--samples", "4", "--score"), ranks=2, output=tmp_path / "ranks"
    )
    assert main(asked(path, prompts, tmp_path / "one", "--samples", "4", "--score")) == 0
    assert made(out).keys() == made(tmp_path / "one").keys() and len(lines(out / "made.1.jsonl")) == 6
    assert pictures(out) == pictures(tmp_path / "one")
    scores = [
        sorted((row["id"], row["scores"]["color"]) for path in folder.glob("scores.*") for row in lines(path))
        for folder in (out, tmp_path / "one")
    ]
    assert scores[0] == scores[1]
    for rank in (0, 1):
        kept, torn, *_ = (out / f"made.{rank}.jsonl").read_bytes().splitlines(keepends=True)
        (out / f"made.{rank}.jsonl").write_bytes(kept + torn[:20])
    assert main(asked(path, prompts, out, "--samples", "4")) == 0
    assert made(out) == made(tmp_path / "one") and pictures(out) == pictures(tmp_path / "one")


def test_a_torn_line_of_a_rank_that_is_no_more_is_passed_over(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(recipe(), prompts, tmp_path / "out")
    assert main(given) == 0
    whole = made(tmp_path / "out")
    kept, *rest = (tmp_path / "out" / "made.0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "made.0.jsonl").write_bytes(kept)
    (tmp_path / "out" / "made.1.jsonl").write_bytes(rest[0] + rest[1][:40])
    assert main(given) == 0
    assert made(tmp_path / "out") == whole
    (tmp_path / "out" / "made.1.jsonl").write_bytes(b"no JSON\n")
    assert main(given) == 2
    assert "made.1.jsonl:1 is damaged (Expecting value" in capsys.readouterr().err


def test_two_starts_do_not_write_into_one_folder(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(recipe(), prompts, tmp_path / "out")
    with run_lock(tmp_path / "out"):
        assert main(given) == 2
    assert "another process generates in " in (said := capsys.readouterr().err) and "or give another --output" in said
    assert main(given) == 0


def test_a_disk_that_is_full_is_said_and_the_same_command_goes_on(
    recipe: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever it fills up: behind an image, or inside a line."""
    given, fsync, left = asked(recipe(), prompts, tmp_path / "out"), os.fsync, {"now": 0}

    def full(descriptor: int) -> None:
        left["now"] -= 1
        if left["now"] < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for room in (0, 2, 1):
        left["now"] = room
        assert main(given) == 2
        said = capsys.readouterr().err
        assert f"the output folder {tmp_path / 'out'} cannot be written: No space left on device; make room" in said
        assert "Traceback" not in said
    monkeypatch.setattr(os, "fsync", fsync)
    assert main(given) == 0
    assert main(asked(recipe(), prompts, tmp_path / "whole")) == 0
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert pictures(tmp_path / "whole").items() <= pictures(tmp_path / "out").items()


def test_ctrl_c_says_how_to_go_on(
    recipe: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add, given = OutputFolder.add, asked(recipe(), prompts, tmp_path / "out")

    def interrupted(*args: Any) -> dict[str, Any]:
        monkeypatch.setattr(OutputFolder, "add", add)
        raise KeyboardInterrupt

    monkeypatch.setattr(OutputFolder, "add", interrupted)
    assert main(given) == 130
    assert "interrupted; what is made is kept, and the same command goes on" in capsys.readouterr().err
    assert main(given) == 0 and len(made(tmp_path / "out")) == 3


def test_another_recipe_does_not_go_on_in_its_folder(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`base` is another model there, and the sentences before a thought may be others."""
    assert main(asked(recipe(), prompts, tmp_path / "out")) == 0
    assert main(asked(recipe(seed=99), prompts, tmp_path / "out")) == 2
    assert "was begun with recipe = " in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(asked(recipe(), prompts, tmp_path / "mine")) == 2
    assert "mine holds notes.txt and nothing of an earlier start; give a new folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main(asked(recipe(), prompts, tmp_path / "file")) == 2
    assert "file cannot be written: File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--temperature", ".5"], ["--temperature does nothing here: policy.type = tiny draws by its own sampler, which has no such setting"]),
        (["--renorm", "channel", "--guidance-interval", "0", "1"], ["--guidance-interval does nothing", "--renorm does nothing"]),
        (["--samples", "2", "--seed", "3"], []),
    ],
)  # fmt: skip
def test_a_setting_that_does_nothing_is_said(
    recipe: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    given: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(asked(recipe(), prompts, tmp_path / "out", *given)) == 0
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("generate: ")]
    assert len(found) == len(said) and all(each in line for each, line in zip(said, found, strict=True))


def test_names_of_files_are_of_one_sample_each() -> None:
    names = ["a#0", "a#0#1", "a-0#1", "a b#0", "a/b#0", "../a#0", "A#0", ".a#0", "é#0", "a" * 150 + "#0"]
    stems = [stem_of(name) for name in names]
    assert len(set(stems)) == len(names) and stems[0] == "a-0"
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", stem) for stem in stems)


def test_a_folder_of_other_settings_or_prompts_is_refused(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", str(recipe()), "--prompts", str(prompts), "--output", str(tmp_path / "out"), *FEW]
    assert main(given) == 0
    assert main([*given, "--seed", "5"]) == 2
    assert "was begun with seed = 1, not 5: give a new folder" in capsys.readouterr().err
    assert main([*given, "--batch-size", "3"]) == 0, "how many at a time does not matter"
    prompts.write_text('the word "Z" in red\n')
    assert main(given) == 2
    assert "was begun with prompts = " in capsys.readouterr().err
    (tmp_path / "out" / "settings.json").unlink()
    assert main(given) == 2
    assert "has samples and no settings.json" in capsys.readouterr().err


def test_a_score_that_failed_is_no_number_and_asked_for_again(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = {"on": True}

    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request, lambda item: 0.5)
        if failing["on"]:
            first = next((r for r in reply.body["results"] if r["id"].endswith("#0")), None)  # not the canary
            if first is not None:
                first |= {"score": None, "error": {"code": "parse_error", "message": "no number"}}
        return reply

    server = ScriptedServer(behave)
    try:
        rewards = {
            "services": {"judge": {"urls": [server.url]}},
            "columns": {"judge": {"service": "judge", "canary": "none", "max_failure_rate": 1.0}},
        }
        path = recipe(
            rewards=rewards, data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"judge": 1.0}}]}
        )
        out = tmp_path / "out"
        given = ["generate", str(path), "--prompts", str(prompts), "--output", str(out), *FEW, "--score"]
        assert main(given) == 0
        said = capsys.readouterr().out
        assert "judge: 1 of 2 scores failed (parse_error 1)" in said and "1 of 3" in said
        rows = lines(out / "scores.0.jsonl")
        assert rows[0]["scores"] == {"judge": None} and rows[0]["errors"] == {"judge": "parse_error"}
        failing["on"] = False
        assert main(given) == 0
        assert "3 of 3" in capsys.readouterr().out
    finally:
        server.close()


class TwoRounds:
    """Writes a thought, draws, suggests and draws again, as a policy that does both would."""

    def __init__(self, *_: Any) -> None: ...

    def check_generation(self, settings: GenerationConfig) -> None: ...

    def generate(
        self,
        prompts_B: Sequence[Prompt],
        seeds_B: Sequence[int],
        settings: GenerationConfig,
        instructions: Instructions,
    ) -> list[Made]:
        def image(value: int) -> np.ndarray:
            return np.full((8, 8, 3), value, np.uint8)

        return [
            Made((Written("thought", "a plan"), image(1), Written("suggestion", "brighter", finished=False), image(2)))
            for _ in prompts_B
        ]


def test_texts_and_images_are_kept_in_order_and_the_last_is_scored(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "maker", TwoRounds)
    server = ScriptedServer()
    try:
        rewards = {
            "services": {"judge": {"urls": [server.url]}},
            "columns": {"judge": {"service": "judge", "canary": "none"}},
        }
        path = recipe(
            rewards=rewards, data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"judge": 1.0}}]}
        )
        out = tmp_path / "out"
        assert main(["generate", str(path), "--prompts", str(prompts), "--output", str(out), *FEW, "--score"]) == 0
    finally:
        server.close()
    row = lines(out / "made.0.jsonl")[0]
    stem = row["id"].replace("#", "-")
    assert row["steps"] == [
        {"thought": "a plan"},
        {"image": f"images/{stem}.1.png"},
        {"suggestion": "brighter", "cut_off": True},
        {"image": f"images/{stem}.png"},
    ]
    items = [item for request in server.requests for item in request["items"] if "#" in item["id"]]
    assert all(item["completion"] == "a plan" and len(item["images"]) == 1 for item in items) and len(items) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shift", "0"], "--shift: must be greater than 0 (given: 0). It is: s of the noise levels"),
        (["--samples", "many"], "--samples: must be a valid integer"),
        (["--guidance-interval", ".9", ".4"], "guidance_interval = 0.9 0.4 holds no noise level; give low, then high"),
        (["--height", "64"], "height = 64 and width = None: give both, or neither"),
        (["--task", "answer", "--think"], "think and refine are about pictures, and task is answer"),
        (["--think"], "policy.type = tiny does not write and draw in turns, which --think asks for; leave it out"),
        (["--refine", "2"], "which --refine asks for"),
        (["--task", "answer"], "--task answer: policy.type = tiny can draw; give --task draw"),
        (["--height", "32", "--width", "32"], "the tiny policy draws 24x48 pixels, not 32x32"),
        (["--checkpoint", "nowhere"], "--checkpoint: nothing at "),
    ],
)
def test_what_cannot_be_made_is_said(
    recipe: Callable[..., Path],
    prompts: Path,
    tmp_path: Path,
    flags: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(["generate", str(recipe()), "--prompts", str(prompts), "--output", str(tmp_path / "o"), *FEW, *flags]) == 2
    )
    assert said in capsys.readouterr().err


def test_what_is_missing_is_said(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = str(
        recipe(rewards={}, data={"train": []}, evaluation={"path": None}, program="supervised", sft={"path": "x.json"})
    )
    given = ["--prompts", str(prompts), "--output", str(tmp_path / "o"), *FEW]
    assert main(["generate", bare, *given, "--score"]) == 2
    assert "--score asks the recipe's rewards, and it has none" in capsys.readouterr().err
    assert main(["generate", str(recipe()), *given[2:], "--prompts", "none.txt"]) == 2
    assert "--prompts: nothing at " in capsys.readouterr().err
    assert main(["generate", str(recipe()), "--prompts", str(prompts), "--output", "/dev/null/x", *FEW]) == 2
    assert "the output folder /dev/null/x cannot be written" in capsys.readouterr().err


def test_overrides_may_stand_behind_flags(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked(recipe(), prompts, tmp_path / "o"), "seed=99"]) == 0
    assert main(asked(recipe(seed=99), prompts, tmp_path / "o")) == 0, "the same recipe"
    assert main([*asked(recipe(), prompts, tmp_path / "o"), "no_such_field=1"]) == 2
    assert "no_such_field: unknown key" in capsys.readouterr().err
    for words in (["word"], ["--no-such-flag", "3"], ["--no-such-flag=3", "seed=1"]):
        with pytest.raises(SystemExit, match="2"):
            main([*asked(recipe(), prompts, tmp_path / "o"), *words])
        assert f"unrecognized arguments: {' '.join(words)}" in capsys.readouterr().err


def test_every_setting_is_a_flag_and_described() -> None:
    for name, field in GenerationConfig.model_fields.items():
        assert field.description, name


def test_a_native_model_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any policy that writes does, by its own sampler: questions about images, the same texts at every start."""
    base = make_qwen3(tmp_path / "qwen3")
    config = {
        "run_name": "answers",
        "output_dir": str(tmp_path / "outputs"),
        "max_steps": 1,
        "program": "supervised",
        "policy": neo_section(base).model_dump(mode="json", exclude_defaults=True) | {"type": "neo"},
        "packed": {"groups": [{"name": "a", "sets": [{"path": "a.json", "format": "conversations"}]}]},
        "distributed": {"num_threads": 1, "device": "cpu"},
    }
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump(config))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    asked = [{"prompt": "what color", "source_images": ["red.png"]}, {"prompt": "what shape"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    given = ["generate", str(tmp_path / "answers.yaml"), "--prompts", str(tmp_path / "questions.jsonl")]
    flags = ["--checkpoint", "base", "--task", "answer", "--max-new-tokens", "4", "--samples", "2"]
    for name in ("one", "two"):
        assert main([*given, "--output", str(tmp_path / name), *flags]) == 0
    made = lines(tmp_path / "one" / "made.0.jsonl")
    assert [row["prompt"] for row in made] == ["what color", "what color", "what shape", "what shape"]
    assert all([*step] in (["answer"], ["answer", "cut_off"]) for row in made for step in row["steps"])
    assert made == lines(tmp_path / "two" / "made.0.jsonl")
    assert main([*given, "--output", str(tmp_path / "three"), *flags[:2]]) == 2
    assert "--task draw: policy.type = neo can answer; give --task answer" in capsys.readouterr().err


def test_rewards_of_texts_are_probed_as_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also after a pause: a service that takes texts refuses pictures, and nothing would be proved."""
    seen: dict[str, Any] = {}

    class Client(ExitStack):
        def __init__(self, rewards: Any, **given: Any) -> None:
            super().__init__()
            self.config = rewards
            seen.update(given)

    monkeypatch.setattr(command, "RewardClient", Client)
    monkeypatch.setattr(command, "addresses", lambda *given: {})
    group, folder = SimpleNamespace(is_main=True), SimpleNamespace(folder=tmp_path)
    with ExitStack() as stack:
        command._scoring(task_config(), cast(Any, group), stack, cast(Any, folder), None)
    assert seen["requests"].texts == {"letter"}
