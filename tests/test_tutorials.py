"""The tutorials, each as a reader would follow it: the file of the page in a folder of their own, and the command of the page.

Every block is taken from the page, so that page and test cannot differ: docs/tutorials/alarm.md, objective.md, policy.md, prompt_set.md,
reward_function.md, reward_model.md.
"""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from PIL import Image

from machine.own import find
from rewards.command import main as rewards
from rewards.shipped import recipe as shipped_recipe
from services.kit.scorer import Item, Score
from services.own.scorer import scorer_of
from tests.support.documents import ROOT, blocks_of
from tests.support.policy_contract import CPU, GROUP, STEPS, drawn
from tests.support.pretended_gpu import pretended_gpu
from tests.support.pretended_steps import UPDATE, policy_on, rl_steps
from tests.support.service_process import running_service
from tests.support.serving_here import serving_here
from tests.support.tiny_pipelines import make_auraflow
from tests.support.tiny_updates import objective_config
from tests.support.trainer_runs import read_metrics, run_trainer
from trainer.config import Config
from trainer.config.file import checked
from trainer.config.objective import OwnConfig, OwnForwardConfig
from trainer.config.policy import OwnPolicyConfig
from trainer.evaluation.own_alarms import own_alarms
from trainer.losses import clipped_surrogate
from trainer.migration import load_recipe
from trainer.objectives.own import forward_loss, steps_loss
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.tiny_model import tokenize
from trainer.policies.registry import entry_of
from trainer.programs.assemble import kind_of
from trainer.types import Prompt
from wire.images import to_ref

PAGES = {path.stem: path for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "README"}
FILES = {  # what the page calls each of its files
    "reward_function": {"brightness.py": "def brightness"},
    "reward_model": {"cats.py": "class Cats"},
    "prompt_set": {"signs.py": "def signs"},
    "policy": {"aura.py": "class Aura"},
    "objective": {"clipped.py": "def clipped", "rwr.py": "def rwr"},
    "alarm": {"dark.py": "def too_dark"},
}
MOST = 15  # lines of code of a file, without blank lines and what a docstring says


def block(page: str, words: str) -> str:
    (found,) = [each for each in blocks_of(PAGES[page]) if words in each.text]
    return found.text + "\n"


def commands(page: str) -> list[list[str]]:
    """The commands of a page that train, as words."""
    shell = [each for each in blocks_of(PAGES[page]) if each.language == "bash"]
    lines = [shlex.split(line, comments=True) for each in shell for line in each.commands]
    return [words for words in lines if words[:2] == ["rewards", "train"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with the files of all pages, where they type."""
    for page, files in FILES.items():
        for name, words in files.items():
            (tmp_path / name).write_text(block(page, words), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_tutorial_is_here_and_its_files_are_short() -> None:
    assert PAGES.keys() == FILES.keys()
    for page, files in FILES.items():
        for name, words in files.items():
            lines = [line for line in block(page, words).splitlines() if line.strip() and '"""' not in line]
            assert len(lines) <= MOST, (name, len(lines))
            assert f"`{name}`" in PAGES[page].read_text(encoding="utf-8") or name in block(page, f"{name}:"), name


def test_a_reward_function(folder: Path) -> None:
    scorer = scorer_of("brightness.py", conversational=False, checkpoint=None, options={})
    white, gray = (Item(color, "", (Image.new("RGB", (4, 4), color),)) for color in ("white", "#333333"))
    assert list(scorer.rewards) == ["brightness"] and scorer.rewards["brightness"].range == (0.0, 1.0)
    assert scorer.score("brightness", [white, gray]) == [Score(1.0), Score(0.2)]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two animals on random weights, as transformers saves it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("pets")
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTForImageClassification(
            ViTConfig(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, **shape)
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_reward_model(folder: Path, pets: Path) -> None:
    """Five images in one request: one batch of them, each with the network's own probability; the weights' hash is shown."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    scorer: Any = scorer_of("cats.py", conversational=False, checkpoint=pets, options={"device": "cpu"})
    sizes: list[int] = []
    whole: Callable[..., Any] = scorer.score
    scorer.score = lambda reward, items: sizes.append(len(items)) or whole(reward, items)
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue", "white", "#806020")]
    items: list[dict[str, Any]] = [
        {"id": str(n), "prompt": "a cat", "images": [to_ref(each, "image/png").model_dump(exclude_none=True)]}
        for n, each in enumerate(pictures)
    ]
    items.append({"id": "two", "prompt": "a cat", "images": [*items[0]["images"], *items[1]["images"]]})
    with serving_here(scorer, "own") as url:
        sizes.clear()
        answer = httpx.post(f"{url}/v1/score", json={"items": items}, trust_env=False).json()
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
    assert "results" in answer, answer
    answer = answer["results"]
    read = AutoImageProcessor.from_pretrained(pets)
    with torch.no_grad():
        logits = AutoModelForImageClassification.from_pretrained(pets)(**read(pictures, return_tensors="pt")).logits
    assert [each["score"] for each in answer[:5]] == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-5)
    assert len({round(each["score"], 4) for each in answer[:5]}) == 5, "the network tells these images apart"
    assert answer[5]["score"] is None and answer[5]["error"]["code"] == "bad_input"
    assert sizes == [6]
    (reward,) = info["rewards"]
    assert reward["name"] == "Cats" and reward["range"] == [0.0, 1.0]
    assert (
        f"{pets.name} sha256:" in reward["revision"] and find("cats.py:Cats", "x").source.sha256 in reward["revision"]
    )


def test_the_service_of_a_file_is_started_by_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rewards serve FILE.py --checkpoint FOLDER` of docs/tutorials/reward_model.md is services.own with the file as a flag."""
    words = shlex.split(block("reward_model", "rewards serve"), comments=True)
    started: list[object] = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **_: started.append([module, *sys.argv[1:]]))
    monkeypatch.setattr(sys, "argv", [])
    assert words[0] == "rewards" and rewards(words[1:]) == 0
    assert started == [["services.own", "--file", "cats.py", "--checkpoint", "models/pets"]]


@pytest.mark.slow
def test_a_file_is_served_by_a_process(folder: Path, pets: Path) -> None:
    flags = ("--file", folder / "cats.py", "--checkpoint", pets)
    with running_service(*flags, module="services.own") as server:
        server.wait_ready()
        assert httpx.get(f"{server.url}/v1/info", trust_env=False).json()["rewards"][0]["name"] == "Cats"


def test_a_prompt_set(folder: Path) -> None:
    config = load_recipe(shipped_recipe("quickstart"), Config, commands("prompt_set")[0][3:])
    material = kind_of("rl").read(config)
    assert material.num_train == 72 and material.prompts[0].targets == ("CAT2",)
    assert material.prompts[0].text == 'the word "CAT2" in red' and material.prompts[0].dataset == "signs"
    assert len(material.heldout) == 36 and material.heldout[-1].text == 'the word "CAR9" in blue'
    assert all(tokenize(prompt.text) for prompt in [*material.prompts, *material.heldout]), (
        "the quickstart can draw them"
    )


@pytest.fixture(scope="module")
def aura(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_auraflow(tmp_path_factory.mktemp("models") / "aura")


def _section(aura: Path, **fields: Any) -> OwnPolicyConfig:
    given = {"lora": None, "dtype": "float32", "max_sequence_length": 16, **fields}
    return OwnPolicyConfig(type="own", code="aura.py:Aura", pretrained=str(aura), **given)


def test_a_policy_that_nobody_here_knows(folder: Path, aura: Path) -> None:
    """AuraFlow by its ten lines: what is replayed is what was drawn, bit for bit, and without noise it draws what diffusers draws."""
    section, prompts = _section(aura), [Prompt("a", "a red cat"), Prompt("b", "a blue dog")]
    entry = entry_of(section)
    policy: Any = entry.family.policy(entry.build(section, CPU), keep_reference=False)
    (whole,) = drawn(policy, prompts, GROUP * len(prompts))
    replayed = torch.cat([policy.replay(whole, part).logp_BS for part in policy.parts(whole)], 1)
    assert torch.equal(replayed.detach(), whole.logp_BS) and whole.logp_BS.shape == (6, len(STEPS))
    assert whole.logp_BS.unique().numel() == whole.logp_BS.numel()

    plan = SamplingPlan(num_inference_steps=4, micro_batch_size=2, shift=None, keep_final=True)
    (ours,) = policy.sample(prompts, 1, [7, 8], plan)
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    pipeline = policy.model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [each.text for each in prompts],
        latents=noise,
        num_inference_steps=4,
        guidance_scale=1.0,
        height=16,
        width=16,
        max_sequence_length=16,
        output_type="latent",
    ).images
    torch.testing.assert_close(policy.clean(ours), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_policy_that_nobody_here_knows_waits_as_others_do(folder: Path, aura: Path) -> None:
    """On a pretended GPU."""
    plan = SamplingPlan(3, 8, "flow_sde", 0.7, (0, 1), (0, 1), height=16, width=16, shift=None)
    with pretended_gpu() as gpu:
        policy = policy_on(_section(aura))
        prompts = [Prompt("a", "a red cat"), Prompt("b", "a blue dog")]
        even = replace(plan, stochastic_steps=(), trained_steps=())
        steps = rl_steps(gpu, policy, objective_config("flow_grpo"), prompts, plan, even)
    images = {"read policies/flow/policy.py": 1, "read records/phases.py": 1}
    steps.check(sample=images, update=UPDATE, evaluation=images)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["diffusers", "lora"])
def test_what_is_exported_of_it_draws_the_same_and_its_size_is_told(folder: Path, aura: Path, format: str) -> None:
    """In full as a folder, adapters as a file that diffusers loads."""
    section = _section(aura, lora={"rank": 2, "alpha": 2.0} if format == "lora" else None)
    entry, prompts = entry_of(section), [Prompt("a", "a red cat"), Prompt("b", "a blue dog")]
    torch.manual_seed(0)
    policy: Any = entry.family.policy(entry.build(section, CPU), keep_reference=False)
    trained = [each for each in policy.trainable.parameters() if each.requires_grad]
    assert entry.sizes(section).trained == sum(each.numel() for each in trained)
    for each in trained:
        torch.nn.init.normal_(each, std=0.2)
    (before,) = drawn(policy, prompts, 6)
    (folder / "out").mkdir()
    entry.exporters[format].write(policy.model, folder / "out", torch.float32)
    again: Any = entry.family.policy(entry.exporters[format].reload(section, folder / "out", CPU), keep_reference=False)
    (after,) = drawn(again, prompts, 6)
    torch.testing.assert_close(after.logp_BS, before.logp_BS)


@pytest.mark.slow
def test_a_run_with_a_policy_of_ones_own(folder: Path, aura: Path, recipe: Callable[..., Path]) -> None:
    """Adapters on AuraFlow by rewards: each step's first ratios are exactly 1, and they move."""
    policy = {
        "type": "own",
        "code": f"{folder / 'aura.py'}:Aura",
        "pretrained": str(aura),
        "dtype": "float32",
        "lora": {"rank": 2},
    }
    path = recipe(policy={**policy, "max_sequence_length": 24}, max_steps=2, evaluation__every=2)
    run_trainer(path)
    rows = read_metrics(folder / "outputs" / "run")
    assert [row["ratio/mean"] for row in rows[1:]] == [1.0, 1.0] and [
        row["ratio/replay_error"] for row in rows[1:]
    ] == [0.0, 0.0]
    assert all(row["grad_norm"] > 0 for row in rows[1:])


def test_an_objective_on_drawn_steps(folder: Path) -> None:
    """It is the clipped surrogate of the trainer's own, term by term and in its gradient."""
    loss = steps_loss(OwnConfig(type="own", code="clipped.py:clipped", options={"width": 0.1}))
    draw = torch.Generator().manual_seed(1)
    old_BS, adv_B = torch.randn(5, 3, generator=draw), torch.randn(5, generator=draw)
    logps = [(old_BS + 0.2 * torch.randn(5, 3, generator=draw.manual_seed(2))).requires_grad_(True) for _ in range(2)]
    ratio_BS = (logps[0] - old_BS).exp()
    ours = loss(old_BS.shape, logp_BS=logps[0], old_logp_BS=old_BS, ratio_BS=ratio_BS, adv_B1=adv_B[:, None]).sum()
    theirs, stats = clipped_surrogate(logps[1], old_BS, adv_B, torch.ones(5), clip_range=0.1)
    assert 0 < stats.sums["clip_share"] < 15
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(logps[0].grad, logps[1].grad)


def test_an_objective_on_the_forward_process(folder: Path) -> None:
    loss = forward_loss(OwnForwardConfig(type="own_forward", code="rwr.py:rwr"))
    given = dict.fromkeys(("v", "x", "x0", "noise", "sigma_B"), torch.zeros(3))
    error_B, adv_B = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.5, -1.0, 2.0])
    assert loss(adv_B.shape, **given, error_B=error_B, adv_B=adv_B).tolist() == [1.0, 0.0, 8.0]


def test_an_alarm(folder: Path) -> None:
    (alarm,) = own_alarms(("dark.py:too_dark",))
    start = {"stats/heldout/brightness": 0.8}
    assert alarm.look({"stats/heldout/brightness": 0.65}, start, 20) is None
    said = alarm.look({"stats/heldout/brightness": 0.62}, start, 20)
    assert said is not None and said.name == "own/too_dark"
    assert said.text == "held-out images got darker, from 0.80 to 0.62"
    broken = alarm.look({}, start, 30)
    assert broken is not None and "raised KeyError: 'stats/heldout/brightness' (line 2)" in broken.text


@pytest.mark.parametrize("page", sorted(FILES))
def test_the_commands_and_recipes_load(page: str, folder: Path) -> None:
    quickstart = shipped_recipe("quickstart")
    found = [load_recipe(quickstart, Config, words[3:]) for words in commands(page)]
    assert all(words[2] == "quickstart" for words in commands(page))
    for part in (yaml.safe_load(each.text) for each in blocks_of(PAGES[page]) if each.language == "yaml"):
        tree = yaml.safe_load(quickstart.read_text(encoding="utf-8"))
        services = part.get("rewards", {}).get("services", {})
        tree["rewards"]["services"] |= services
        tree["rewards"]["columns"] |= part.get("rewards", {}).get("columns", {})
        tree |= {key: value for key, value in part.items() if key != "rewards"}
        found.append(checked("recipe.yaml", Config, tree))
    assert found or page == "reward_model"


@pytest.mark.slow
def test_a_run_with_a_reward_an_objective_prompts_and_an_alarm_of_ones_own(
    folder: Path, recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the pages in one run: what is recorded, and what a run that goes on says of a file that has changed."""
    (folder / "always.py").write_text("def always(step):\n    return f'step {step} is over'\n", encoding="utf-8")
    path = recipe(objective={"type": "own", "code": str(folder / "clipped.py") + ":clipped"}, max_steps=2)
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["rewards"]["launch"] = "local"
    tree["rewards"]["services"]["mine"] = {"module": str(folder / "brightness.py")}
    tree["rewards"]["columns"]["brightness"] = {"service": "mine"}
    tree["data"]["train"] = [{"path": f"{folder / 'signs.py'}:signs", "rewards": {"color": 1.0, "brightness": 0.5}}]
    tree["evaluation"] |= {
        "path": f"{folder / 'signs.py'}:signs",
        "alarms": {"own": [f"{folder / 'always.py'}:always"]},
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    run_trainer(path)
    run_dir = folder / "outputs" / "run"
    rows = read_metrics(run_dir)
    assert all(0 < row["reward/brightness/mean"] < 1 and row["reward/brightness/valid_share"] == 1 for row in rows[1:])
    assert rows[1]["ratio/replay_error"] == 0.0 and rows[1]["ratio/mean"] == 1.0
    assert rows[2]["alarm/own/always"] == 1.0 and "eval/brightness/gain" in rows[2]
    kept = {each["field"]: each for each in json.loads((run_dir / "own" / "code.json").read_text(encoding="utf-8"))}
    assert sorted(kept) == [
        "data.train.0.path",
        "evaluation.alarms.own.0",
        "evaluation.path",
        "objective.code",
        "rewards.services.mine.module",
    ]
    assert (run_dir / "own" / kept["objective.code"]["copy"]).read_bytes() == (folder / "clipped.py").read_bytes()

    (folder / "always.py").write_text("def always(step):\n    return f'step {step} is over, too'\n", encoding="utf-8")
    done = run_trainer(path, "max_steps=3")
    assert "evaluation.alarms.own.0" in done.stdout + done.stderr
    assert "the file has changed since the last start" in done.stdout + done.stderr
    assert (run_dir / "own" / kept["evaluation.alarms.own.0"]["copy"]).is_file(), "the former file stays"

    assert rewards(["doctor", str(path), "max_steps=3"]) == 0
    said = capsys.readouterr().out
    assert said.count("tried by a small call") == 4 and "tried by its canary" in said
