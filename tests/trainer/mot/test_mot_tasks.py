"""Pair-GRPO of a Mixture-of-Transformers: answers by their tokens, images by their denoising steps, one update."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.pair_rows import pair, side, write_pairs
from tests.support.reward_servers import Reply, ScriptedServer, good, scripted
from tests.support.small_mot import SIZES, image, picture, row, small_mot, text
from tests.support.trainer_runs import ROOT, read_metrics, run_trainer
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.data.sequences import TextItem
from trainer.doctor.weights import held_bytes, sizes
from trainer.loop import train
from trainer.policies.base import Laying
from trainer.policies.registry import build_policy
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.records import keys
from trainer.types import Prompt, Rollout

__all__ = ["scripted"]  # a fixture


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    folder = tmp_path_factory.mktemp("questions")
    return [
        Prompt("seen", "left ?", source_images=(picture(folder, "asked"),), task="understand"),
        Prompt("plain", "like blood", task="understand"),
    ]


def answered(policy: MotPolicy, prompts: Sequence[Prompt], size: int, **plan: Any) -> list[Rollout]:
    return list(policy.sample(prompts, 3, list(range(3 * len(prompts))), TokenPlan(size, 6, **plan)))


@pytest.mark.parametrize("plan", [{}, {"temperature": 0.7, "top_k": 5}], ids=["all", "filtered"])
def test_answers_are_scored_as_they_were_drawn(questions: Sequence[Prompt], plan: dict[str, Any]) -> None:
    policy = small_mot()
    (whole,) = answered(policy, questions, 6, **plan)
    (part,) = policy.parts(whole)
    replay = policy.replay(whole, part)
    assert whole.mask_BS is not None
    torch.testing.assert_close(replay.logp_BS[whole.mask_BS], whole.logp_BS[whole.mask_BS], rtol=1e-4, atol=1e-5)
    replay.logp_BS.sum().backward()
    with_gradient = {name for name, p in policy.trainable.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("vit_model" in name for name in with_gradient) and not any("moe_gen" in name for name in with_gradient)
    for n, alone in enumerate(answered(policy, questions, 1, **plan)):
        assert alone.samples[0].text == whole.samples[n].text, "an answer depends on its seed and prompt"


def test_ranks_that_share_weights_write_equally_long(questions: Sequence[Prompt]) -> None:
    """Under ZeRO-3 all ranks gather a layer together: one whose answers have ended goes on beside the others, and says no more."""
    found = []
    for shared in (False, True):
        policy, passes = small_mot(), []
        if shared:
            next(policy.trainable.parameters()).ds_id = 0  # as DeepSpeed marks them
        policy.trainable.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        every = tuple(range(policy.model.network.geometry.language.vocab_size))
        (rollout,) = answered(policy, questions, 6, stop_ids=every)
        found.append(([sample.text for sample in rollout.samples], rollout.logp_BS, len(passes)))
    (texts, logp_BS, few), (again, same_BS, many) = found
    assert (few, many) == (1 + 1, 1 + 6), "the questions are read, then word by word"
    assert texts == again and torch.equal(logp_BS, same_BS) and logp_BS.shape == (6, 1)


def test_an_answers_tokens_cost_what_a_packs_do(policy: MotPolicy, questions: Sequence[Prompt]) -> None:
    """The log-probability of an answer is minus the cross-entropy of the same text, learnt in a row: of the model's own distribution,
    without what an answer may not hold."""
    (whole,) = answered(policy, questions[:1], 3)
    sample = next(each for each in whole.samples if each.finished or len(each.tokens) > 1)
    number = list(whole.samples).index(sample)
    said = policy.model.words.decode(sample.tokens)
    logits_of_all = policy._texts.logp(
        [whole.trace.readings_B[number]], [[*policy.model.words.encode(said), policy.model.words.end]]
    )  # type: ignore[attr-defined]
    plan = row("r", image(questions[0].source_images[0], "seen"), text("left ?"), TextItem(said, learnt=True))
    cross_entropy_T = policy.read([policy.lay(plan, Laying(0))]).cross_entropy_T
    torch.testing.assert_close(-logits_of_all[0], cross_entropy_T, rtol=1e-5, atol=1e-5)


def recipe(folder: Path, url: str, **generate: Any) -> Config:
    rows = [
        pair(
            0.5 + n / 10,
            generate_ann=side("b.png", f"draw red disc {n}"),
            understand_ann=side("a.png", question=f"left {n} ?\nA. red\nB. blue"),
        )
        for n in range(4)
    ]
    tasks = {
        "understand": {"group_size": 4, "micro_batch_size": 8, "max_new_tokens": 5, "rewards": {"words": 1.0}},
        "generate": {
            "group_size": 4,
            "micro_batch_size": 4,
            "rewards": {"pixels": 1.0},
            "flow": {
                "num_inference_steps": 4,
                "timestep_fraction": 0.7,
                "guidance_scale": 1.5,
                "guidance": {"interval": [0.3, 1.0], "renorm": "global"},
            },
            **generate,
        },
    }
    data = write_pairs(folder / "pairs", *rows)
    heldout = write_pairs(
        folder / "heldout",
        pair(
            generate_ann=side("b.png", "draw blue ring"),
            understand_ann=side("c.png", question="right ?\nA. red\nB. blue"),
        ),
    )
    sets = [
        {"name": task, "path": str(heldout), "format": "pairs", "task": task} for task in ("understand", "generate")
    ]
    config = {
        "run_name": "pairs",
        "output_dir": str(folder / "outputs"),
        "max_steps": 2,
        "policy": {
            "type": "mot",
            "initialize": {**SIZES, "words": list(SIZES["words"])},
            "dtype": "float32",
            "max_latent_size": 8,
        },
        "sampling": {"type": "tasks", "prompts_per_step": 2, "tasks": tasks},
        "objective": {"type": "grpo", "kl_beta": 0.01},
        "advantage": {"type": "grpo"},
        "rewards": {
            "services": {"s": {"urls": [url]}},
            "columns": {name: {"service": "s", "canary": "none"} for name in ("words", "pixels")},
        },
        "data": {"train": [{"path": str(data), "format": "pairs"}]},
        "evaluation": {"sets": sets, "every": 2},
        "optim": {"lr": 1e-3},
        "distributed": {"num_threads": 1, "device": "cpu"},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return load_config(path, Config)


def varied(request: dict[str, Any]) -> Reply:
    """A reward that samples of a group differ in."""
    return good(request, lambda item: (sum(json.dumps(item, sort_keys=True, default=str).encode()) % 17) / 17)


def test_both_halves_are_trained_in_one_update(tmp_path: Path, scripted: Callable[..., ScriptedServer]) -> None:
    config = recipe(tmp_path, scripted(varied).url)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    last = rows[-1]
    for task in ("understand", "generate"):
        assert last[f"{task}/ratio/min"] == last[f"{task}/ratio/max"] == 1, "one update: every ratio is 1 to the bit"
        assert last[f"{task}/loss_share"] > 0
        assert f"{task}/loss/kl" in last
    assert last["eval/understand/words"] is not None and last["eval/generate/pixels"] is not None


@pytest.mark.parametrize(
    "kind",
    ["diffusion_nft", *(pytest.param(each, marks=pytest.mark.slow) for each in ("awm", "diffusion_dpo"))],
)
def test_images_may_be_trained_on_the_forward_process(
    tmp_path: Path, scripted: Callable[..., ScriptedServer], kind: str
) -> None:
    """With a moving average that draws images, answers are drawn by the trained weights all the same."""
    averaged = {"old_decay": 0.9} if kind != "diffusion_dpo" else {}
    flow = {"num_inference_steps": 3, "objective": {"type": kind, "kl_beta": 0.01, **averaged}}
    config = recipe(tmp_path, scripted(varied).url, flow=flow)
    sampled = config.sampling.model_copy(update={"old_logp": "sampled"})
    optim = config.optim.model_copy(update={"lr": 2e-2})
    config = config.model_copy(update={"sampling": sampled, "optim": optim, "max_steps": 3})
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    drawn = [key for each in rows for key in each if key.startswith("generate/")]
    assert [key for key in drawn if keys.sentence_of(key) is None] == []
    for each in rows[1:]:
        assert each["understand/ratio/min"] == pytest.approx(1, abs=1e-4) == each["understand/ratio/max"]
        assert each["grad_norm"] > 0 and "generate/loss/policy" in each
        assert each["understand/loss_share"] > 0 < each["generate/loss_share"]
    if kind == "diffusion_nft":
        assert rows[1]["generate/nft/drift"] == 0 < rows[3]["generate/nft/drift"], "images are drawn by the average"


@pytest.mark.parametrize(
    ("generate", "said"),
    [
        ({"flow": None}, "policy.type = mot denoises images, which sampling.tasks.generate.flow is about; add it"),
        ({"temperature": 0.5}, "temperature = 0.5 is of images drawn by tokens, and flow says that they are denoised"),
        ({"think": True}, "is of images drawn by tokens"),
        (
            {"flow": {"objective": {"type": "grpo_guard"}}},
            "sampling.tasks.generate.flow.objective.type = grpo_guard normalises ratios",
        ),
        (
            {"flow": {"objective": {"type": "flow_grpo", "importance_cap": 3.0}}},
            "sampling.tasks.generate.flow.objective.importance_cap = 3 acts only on rollouts of older weights",
        ),
        (
            {"flow": {"kind": "flow_sde", "objective": {"type": "awm"}}},
            "sampling.tasks.generate.flow.kind = flow_sde shapes stochastic steps, but sampling.tasks.generate.flow.objective.type = awm",
        ),
        (
            {"flow": {"guidance": {}, "objective": {"type": "diffusion_nft"}}},
            "sampling.tasks.generate.flow.guidance draws the samples, but sampling.tasks.generate.flow.objective.type = diffusion_nft trains",
        ),
        ({"flow": {"sde_window": [0, 9]}}, "sde_window [0, 9) does not fit num_inference_steps = 6"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, generate: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, "http://127.0.0.1:1", **generate)
    assert said in str(caught.value)


@pytest.mark.slow
def test_both_halves_are_trained_by_two_ranks_that_share_the_weights(
    tmp_path: Path, scripted: Callable[..., ScriptedServer]
) -> None:
    """ZeRO-3: answers of unlike lengths, images by the average that DiffusionNFT draws with; nobody waits for ever."""
    flow = {"num_inference_steps": 3, "objective": {"type": "diffusion_nft", "old_decay": 0.5, "kl_beta": 0.01}}
    config = recipe(tmp_path, scripted(varied).url, flow=flow)
    zero = tmp_path / "zero3.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    run_trainer(tmp_path / "recipe.yaml", f"distributed.deepspeed={zero}", "optim.schedule=constant", ranks=2)
    last = read_metrics(config.run_dir)[-1]
    assert last["step"] == 2 and last["grad_norm"] > 0 and last["generate/nft/drift"] > 0
    assert last["understand/ratio/min"] == last["understand/ratio/max"] == 1
    assert last["eval/understand/words"] is not None and last["eval/generate/pixels"] is not None


def test_the_doctor_counts_the_copy_that_a_tasks_objective_compares_with(tmp_path: Path) -> None:
    """All of it, what is frozen included; and the average that draws a task's images."""
    flow = {"objective": {"type": "diffusion_nft", "kl_beta": 0.01, "old_decay": 0.5}}
    config = recipe(tmp_path, "http://127.0.0.1:1", flow=flow)
    plain = config.objective.model_copy(update={"kl_beta": 0.0})
    policy = config.policy.model_copy(update={"freeze": ("vision", "language")})
    config = config.model_copy(update={"objective": plain, "policy": policy})
    found = sizes(config)
    assert found is not None
    told = held_bytes(config, found, ranks=1).device
    built: MotPolicy = build_policy(config.policy, torch.device("cpu"), keep_reference=True)
    assert built._flow.copy is not None
    assert told["reference"] == sum(each.nbytes for each in built._flow.copy.parameters())
    assert told["sampling policy"] == told["weights"] > 0 < told["frozen weights"]


def test_a_size_that_cannot_be_drawn_is_said_before_the_first_step(
    tmp_path: Path, scripted: Callable[..., ScriptedServer]
) -> None:
    with pytest.raises(ConfigError, match="images of 20 x 32 pixels cannot be drawn"):
        train(recipe(tmp_path, scripted(varied).url, flow={"height": 20, "width": 32}))
