"""What the doctor says a step on a pack takes: held to the bytes that torch allocates at small size, and what it is for published sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.allocations import peak_bytes
from tests.support.small_mot import small_mot
from tests.support.tiny_neo import make_qwen3, neo_section
from trainer.config import Config
from trainer.config.file import load_config
from trainer.config.mot import MotConfig
from trainer.config.neo import NeoConfig
from trainer.data.sequences import ImageItem, Resize, SequencePlan, TextItem
from trainer.doctor.weights import working
from trainer.policies.base import Laid, Laying
from trainer.policies.registry import build_policy
from trainer.policies.unified.mot.geometry import Geometry, LanguageGeometry, VisionGeometry
from trainer.policies.unified.mot.memory import pack_bytes as mot_bytes
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.memory import pack_bytes as neo_bytes
from trainer.policies.unified.pack_memory import PackTokens

RECIPE = Path(__file__).resolve().parents[4] / "configs" / "unified_sft_quickstart.yaml"
ROWS = 8
# Layers whose activations are most of what is allocated, as in real ones.
MOT = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 352,
    "image_size": 64,
    "vision_layers": 2,
    "words": ("red", "disc"),
}
QWEN3 = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "head_dim": 32}
CASES = [("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)]


def picture(folder: Path) -> str:
    path = folder / "noise.png"
    Image.effect_noise((64, 64), 64).convert("RGB").save(path)
    return str(path)


def told_of(rows: Sequence[Laid], seen: int) -> PackTokens:
    return PackTokens(sum(row.length for row in rows), sum(sum(row.learnt) for row in rows), seen)


def measured(policy: Any, rows: Sequence[Laid]) -> int:
    """Of a forward and a backward pass; gradients count as held."""
    for parameter in policy.trainable.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)

    def train() -> None:
        out = policy.read(rows)
        (out.cross_entropy_T.sum() + out.squared_error_L.sum()).backward()

    return peak_bytes(train)


@pytest.mark.parametrize(("dtype", "again"), CASES)
def test_what_a_pack_of_a_mixture_takes_is_what_is_told(tmp_path: Path, dtype: str, again: bool) -> None:
    """Rows of a seen image, a clean and a drawn one, and a learnt text."""
    policy = small_mot(initialize=MOT, dtype=dtype, gradient_checkpointing=again)
    path = picture(tmp_path)
    items = (
        ImageItem(path, "clean"),
        ImageItem(path, "seen", resize=Resize(8, 64, 64)),
        TextItem("red disc " * 4, learnt=True),
        ImageItem(path, "drawn"),
    )
    rows = [policy.lay(SequencePlan(str(n), items), Laying(n)) for n in range(ROWS)]
    told = mot_bytes(policy.model.network.geometry, policy.model.config, told_of(rows, ROWS * 64), on_cpu=True)
    assert measured(policy, rows) == pytest.approx(told, rel=0.12)


@pytest.mark.parametrize(("dtype", "again"), CASES)
def test_what_a_pack_of_a_native_model_takes_is_what_is_told(
    tmp_path: Path, neo_base: Path, dtype: str, again: bool
) -> None:
    section = neo_section(neo_base, dtype=dtype, gradient_checkpointing=again)
    policy: Any = build_policy(section, torch.device("cpu"), keep_reference=False)
    image = ImageItem(picture(tmp_path), "seen")
    items = (image, TextItem("the disc", role="user"), TextItem("red ring " * 4, learnt=True, role="assistant"))
    rows = [policy.lay(SequencePlan(str(n), items * 2), Laying(n)) for n in range(ROWS)]
    told = neo_bytes(policy.model.network.geometry, section, told_of(rows, 0), on_cpu=True)
    assert measured(policy, rows) == pytest.approx(told, rel=0.12)


@pytest.fixture(scope="module")
def neo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("neo") / "qwen3", **QWEN3)


def test_the_doctor_tells_it_of_a_recipe() -> None:
    config = load_config(RECIPE, Config)
    assert config.packed is not None
    told = working(config)
    assert list(told) == [f"training on a pack of {config.packed.max_tokens} tokens"]
    assert 1e6 < next(iter(told.values())) < 1e9
    rl = config.model_copy(update={"packed": None})
    assert working(rl) == {}, "nothing is said of other runs"


GIB = 1 << 30


def test_forecast_of_the_published_sizes() -> None:
    """A pack of 32,768 tokens on a GPU, of which a quarter are predicted words and two fifths seen patches."""
    bagel = Geometry(
        LanguageGeometry(3584, 28, 28, 4, 18944, 152064), VisionGeometry(1152, 26, 16, 4304, 14, 980), 64, 64
    )
    neo = NeoGeometry(2048, 6144, 40, 16, 8, 128, 151936, 1e-6, 1e6, 1e4, 1024, 16, 2, 1e4, extra_layers=12)
    pack = PackTokens(32768, 8192, 13107)
    found = []
    for again in (False, True):
        mot = MotConfig(type="mot", pretrained="BAGEL-7B-MoT", gradient_checkpointing=again)
        native = NeoConfig(type="neo", pretrained="NEO1_0-2B", gradient_checkpointing=again)
        frozen = mot.model_copy(update={"freeze": ("vision", "connector")})
        tokens = [
            mot_bytes(bagel, mot, pack, on_cpu=False),
            mot_bytes(bagel, frozen, pack, on_cpu=False),
            neo_bytes(neo, native, pack, on_cpu=False),
        ]
        found.append([size / GIB for size in tokens])
    assert found == [pytest.approx([254.3, 238.6, 233.1], abs=0.06), pytest.approx([21.5, 20.05, 23.9], abs=0.06)]
