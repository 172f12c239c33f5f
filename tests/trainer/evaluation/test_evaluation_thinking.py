"""Held-out images that are drawn after a thought: who is asked for it, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config import Config, ConfigError
from trainer.config.generation import GenerationConfig
from trainer.data.datasets import Dataset
from trainer.data.formats.unireason.instructions import REFINE, THINK
from trainer.evaluation.sampling import Placed, draw, evaluation_seed
from trainer.evaluation.sets import load_sets
from trainer.evaluation.thinking import instructions_of
from trainer.policies.generation import Instructions, Made, Written
from trainer.processes.distributed import World
from trainer.types import Prompt

NO_DATASETS: list[Dataset] = []


class Thinker:
    """Thinks the prompt backwards and draws an image of its seed; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, GenerationConfig]] = []

    def check_generation(self, settings: GenerationConfig) -> None:
        assert settings.think

    def generate(
        self,
        prompts_B: Sequence[Prompt],
        seeds_B: Sequence[int],
        settings: GenerationConfig,
        instructions: Instructions,
    ) -> list[Made]:
        self.asked.append((len(prompts_B), settings))
        return [
            Made((Written("thought", prompt.text[::-1], finished=prompt.text != "cut"), _image(seed)))
            for prompt, seed in zip(prompts_B, seeds_B, strict=True)
        ]


def _image(seed: int) -> np.ndarray:
    return np.full((2, 2, 3), seed % 251, np.uint8)


def config(folder: Path, *, shift: float | None = 3.0, **fields: Any) -> Config:
    path = folder / "prompts.txt"
    path.write_text("one\ntwo\ncut\n", encoding="utf-8")
    chosen = {"name": "thoughtful", "path": str(path), "think": 9, "duplicates": 2, "num_inference_steps": 7, **fields}
    return Config.model_validate(
        {
            "run_name": "r",
            "max_steps": 2,
            "data": {"train": [{"path": "t.txt", "rewards": {"bright": 1.0}}]},
            "sampling": {"shift": shift},
            "rewards": {
                "services": {"s": {"urls": ["http://127.0.0.1:1"]}},
                "columns": {"bright": {"service": "s"}},
            },
            "evaluation": {"sets": [chosen], "batch_size": 4},
        }
    )


def drawn(policy: Any, given: Config) -> list[Placed]:
    [chosen] = load_sets(given, [], NO_DATASETS)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    return [placed for batch in draw(policy, chosen, given, world) for placed in batch]


def test_the_policy_thinks_and_draws_as_the_set_says(tmp_path: Path) -> None:
    policy, given = Thinker(), config(tmp_path, guidance_scale=2.0)
    found = drawn(policy, given)
    assert [size for size, _ in policy.asked] == [4, 2]
    settings = policy.asked[0][1]
    assert (settings.max_new_tokens, settings.temperature) == (9, 0)
    assert (settings.num_inference_steps, settings.shift, settings.text_guidance) == (7, 3.0, 2.0)
    assert [(p.index, p.duplicate, p.sample.text) for p in found] == [
        (index, duplicate, text) for index, text in enumerate(("eno", "owt", "tuc")) for duplicate in range(2)
    ]
    assert [p.sample.finished for p in found] == [True] * 4 + [False] * 2
    seeds = [evaluation_seed(given.evaluation.seed, p.index, p.duplicate) for p in found]
    assert [p.sample.images[0].tolist() for p in found] == [_image(seed).tolist() for seed in seeds]
    assert found[1].sample.id == f"{found[1].sample.group_id}#1"


def test_a_policy_that_only_draws_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"thoughtful\.think = 9: policy\.type = tiny does not write and draw"):
        drawn(object(), config(tmp_path))


def test_thoughts_need_evenly_spaced_levels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.shift = null takes the model's own"):
        drawn(Thinker(), config(tmp_path, shift=None))


@pytest.mark.parametrize("drawn_by", ["tokens", "tasks"])
def test_a_policy_that_does_not_denoise_has_no_such_sets(tmp_path: Path, drawn_by: str) -> None:
    evaluation = config(tmp_path, num_inference_steps=None).evaluation
    with pytest.raises(ValueError, match=r"evaluation\.sets\.0\.think = 9 acts where the policy"):
        evaluation.check_drawing(drawn_by)


def test_the_sentences_are_those_of_the_recipe(tmp_path: Path) -> None:
    own = instructions_of(config(tmp_path))
    assert own.think == THINK and own.refine == REFINE
    (tmp_path / "think.txt").write_text("Think it over.\n")
    given = {
        "run_name": "r",
        "max_steps": 2,
        "program": "supervised",
        "policy": {"type": "mot", "initialize": {}},
        "packed": {
            "groups": [{"name": "a", "sets": [{"path": "a.json", "format": "t2i"}]}],
            "think_instruction": str(tmp_path / "think.txt"),
        },
    }
    assert instructions_of(Config.model_validate(given)) == Instructions("Think it over.", REFINE)
