"""The program that makes the base of the quickstart of pairs: what is imitated, resumed to the bit, and the folder it writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import Config, ConfigError, JanusConfig, ScenesConfig
from trainer.config.file import load_config
from trainer.config.programs import BASE_GROUPS
from trainer.loop import train
from trainer.policies.registry import build_policy
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.processes.distributed import World
from trainer.programs import pair_base
from trainer.programs.pair_base import PairBase, Scenes
from trainer.quickstart.scenes import careless_scene, draw_scene, is_heldout, questions_of, render
from trainer.quickstart.small_janus import tokens_of
from trainer.types import Prompt

RECIPE = ROOT / "configs" / "pair_base.yaml"
QUICKSTART = ROOT / "configs" / "pair_quickstart.yaml"
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(folder: Path, *more: str, url: str = "http://127.0.0.1:9") -> Config:
    changes = [
        *("max_steps=3", "scenes={drawings: 4, talks: 2, decoded: 2, careless: 1}", "optim.warmup_steps=1"),
        *("distributed={num_threads: 1, device: cpu}", "logging.report_to=[]", "checkpoint.save_every=1"),
        *("evaluation.sets=[]", "rewards.launch=none", f"rewards.services.rules.urls=['{url}']"),
        *(f"output_dir={folder}", f"policy.pretrained={folder / 'base'}"),
    ]
    return load_config(RECIPE, Config, [*changes, *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JanusModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        policy = pair_base._policy(small(tmp_path_factory.mktemp("made")), torch.device("cpu"))
    assert isinstance(policy.texts.model, JanusModel)
    return policy.texts.model


def scenes(**changes: Any) -> Scenes:
    return Scenes(ScenesConfig(**{"drawings": 4, "talks": 2, "careless": 0, **changes}), 5, 10, ALONE)


def test_a_batch_is_what_the_policy_makes_of_the_same_scenes(model: JanusModel, tmp_path: Path) -> None:
    """Prompts, pixels, placeholders and the frame of turns, so that what is trained is what is asked later."""
    batch = scenes(dropout=0.0, descriptions=0.0).draw(0, model)
    rng = random.Random(5)
    for row in range(4):
        scene = draw_scene(rng, heldout=False)
        rng.random()  # whether the caption is emptied
        image = render(scene, rng)
        assert batch.prompts_BT[row].equal(model.read_drawing(Prompt("a", scene.prompt)).cond_T)
        assert batch.codes_BN[row].equal(tokens_of(image))
        shown = ((batch.shown[row].permute(1, 2, 0) + 1) / 2 * 255).round().to(torch.uint8)
        assert torch.from_numpy(image).equal(shown)
    for row in range(2):
        scene = draw_scene(rng, heldout=False)
        first, second = rng.sample(questions_of(scene), 2)
        rng.random()  # whether it is described
        Image.fromarray(render(scene, rng)).save(tmp_path / "asked.png")
        reading = model.read(Prompt(f"{row}", first.text, source_images=(str(tmp_path / "asked.png"),)))
        ids, labels = batch.ids_QW[row].tolist(), batch.labels_QW[row].tolist()
        answer = [*model.encode(f"<answer> {first.answer} </answer>"), model.ends[0]]
        length = len(reading.ids_T)
        assert ids[: length + len(answer)] == [*reading.ids_T.tolist(), *answer]
        assert torch.allclose(batch.pixels[row], reading.inputs["pixel_values"][0], atol=1e-6)
        said = [token for token in labels if token != -100]
        assert said == [*answer, *model.encode(f"<answer> {second.answer} </answer>"), model.ends[0]]
        (tmp_path / "asked.png").unlink()
        model._kept.__init__(0)  # type: ignore[misc]  # the next image has the same path


def test_captions_and_answers_are_careless_in_the_last_steps_alone(model: JanusModel) -> None:
    settings = {"careless": 4, "wrong_color": 0.9, "wrong_shape": 0.9, "dropout": 0.0}
    for step, careful in ((5, True), (6, False)):
        drawn = scenes(**settings)
        batch, rng, same = drawn.draw(step, model), random.Random(5), []
        for row in range(4):
            scene = draw_scene(rng, heldout=False)
            said = scene if careful else careless_scene(scene, drawn._care(), rng)
            rng.random()
            render(scene, rng)
            same.append(batch.prompts_BT[row].equal(model.read_drawing(Prompt("a", scene.prompt)).cond_T))
            assert batch.prompts_BT[row].equal(model.read_drawing(Prompt("a", said.prompt)).cond_T)
            assert not is_heldout(said)
        assert all(same) == careful


def test_emptied_captions_are_the_unconditional_branch(model: JanusModel) -> None:
    batch = scenes(dropout=1.0).draw(0, model)
    wanted = model.read_drawing(Prompt("a", "draw red disc left blue bar right")).uncond_T
    assert all(row.equal(wanted) for row in batch.prompts_BT)


def test_all_ranks_together_train_on_the_batch_of_one(model: JanusModel) -> None:
    def drawn(rank: int, size: int) -> Any:
        world = World(rank, size, torch.device("cpu"))
        return Scenes(ScenesConfig(drawings=4, talks=2, careless=0), 5, 10, world).draw(0, model)

    whole, parts = drawn(0, 1), [drawn(rank, 2) for rank in range(2)]
    for name in ("prompts_BT", "codes_BN", "pixels", "shown"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))


def test_the_parts_that_are_trained_are_in_their_groups(tmp_path: Path) -> None:
    policy = pair_base._policy(small(tmp_path), torch.device("cpu"))
    groups = policy.group_of
    assert set(groups.values()) == set(BASE_GROUPS["pair_base"]) == {"matrices", "decoder", "rest"}
    named = dict(policy.trainable.named_parameters())
    assert all(named[name].dim() == 2 for name, group in groups.items() if group == "matrices")
    # Four layers of seven matrices, and two of the vision encoder with six.
    assert sum(group == "matrices" for group in groups.values()) == 4 * 7 + 2 * 6
    assert not any(part.requires_grad for name, part in named.items() if "vqmodel.encoder" in name)


def _stopped_after_two(step: Callable[[PairBase], Any]) -> Callable[[PairBase], Any]:
    def stopped(run: PairBase) -> Any:
        if run.session.step == 2:
            raise RuntimeError("the plug was pulled")
        return step(run)

    return stopped


def test_a_run_is_resumed_to_the_bit_and_its_folder_can_be_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules_url: str
) -> None:
    def losses(name: str) -> list[Any]:
        kinds = ("loss/drawn", "loss/answers", "loss/pixels")
        return [[row[kind] for kind in kinds] for row in read_metrics(tmp_path / name)[-3:]]

    assert train(small(tmp_path, url=rules_url)) == 0
    assert "3 steps of 4 captions" in (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(PairBase, "step", _stopped_after_two(PairBase.step))
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        train(small(tmp_path, "run_name=cut", url=rules_url))
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert train(small(tmp_path, "run_name=cut", url=rules_url)) == 0
    assert losses("cut") == losses("pair_base")
    section = load_config(QUICKSTART, Config).policy.model_copy(update={"pretrained": str(tmp_path / "base")})
    policy = build_policy(section, torch.device("cpu"), keep_reference=False)
    assert isinstance(policy, UnifiedPolicy)


def test_the_shipped_base_is_small_and_fits_its_recipes() -> None:
    base = ROOT / "assets" / "pair_base"
    assert sum(path.stat().st_size for path in base.iterdir()) <= 8_000_000
    made, used = load_config(RECIPE, Config), load_config(QUICKSTART, Config)
    assert isinstance(made.policy, JanusConfig) and isinstance(used.policy, JanusConfig)
    assert made.policy.pretrained == used.policy.pretrained == base.relative_to(ROOT).as_posix()
    policy = build_policy(used.policy, torch.device("cpu"), keep_reference=False)
    assert all(parameter.isfinite().all() for parameter in policy.trainable.parameters())
    about = (base / "README.md").read_text(encoding="utf-8")
    assert made.scenes is not None and f"{made.max_steps} steps of {made.scenes.drawings} captions" in about
    assert f"{made.scenes.careless} on those of careless people" in about


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["scenes=null"], r"program: pair_base trains on scenes to draw and to ask about; give the section scenes"),
        (["scenes.careless=4"], r"scenes\.careless = 4 steps are more than max_steps = 3"),
        (
            ["policy={type: vlm, pretrained: a}", "sampling={}"],
            r"pair_base writes the folder that a policy of type janus",
        ),
        (["program=rl"], r"no training set"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small(tmp_path, *changes)


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    config, world = small(tmp_path, "scenes.talks=3"), World(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"scenes\.talks = 3 cannot be shared by 2 ranks"):
        pair_base._deal(config, pair_base._read(config), world)
