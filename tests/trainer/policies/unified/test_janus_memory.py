"""What the doctor says a step of Janus takes: held to the bytes that torch allocates at small size, and what it is for real sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.allocations import peak_bytes
from tests.support.tiny_deepseek import published_fields
from tests.support.tiny_janus import GRID, SIDE, make_janus
from trainer.config import Config
from trainer.doctor.machine import check_memory
from trainer.doctor.weights import held_bytes, sizes, working
from trainer.objectives import plan_needs
from trainer.policies.registry import build_policy
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.images import ImagePolicy
from trainer.policies.unified.janus.memory import PROMPT_TOKENS
from trainer.policies.unified.plans import training_plan
from trainer.types import Prompt

ROWS = 8
# A trunk whose activations are most of what is allocated, as in a real one, and more words than the tokenizer has.
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 1024,
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_janus(tmp_path_factory.mktemp("wide"), text=WIDE)


def config_of(
    folder: Path,
    tasks: dict[str, Any],
    *,
    kl_beta: float = 0.0,
    together: int | None = None,
    evaluation: dict[str, Any] | None = None,
    **policy: Any,
) -> Config:
    return Config.model_validate(
        {
            "run_name": "forecast",
            "output_dir": "outputs",
            "max_steps": 1,
            "policy": {"type": "janus", "pretrained": str(folder), **policy},
            "sampling": {"type": "tasks", "prompts_per_step": 1, "tasks": tasks},
            "rewards": {
                "services": {"rules": {"urls": ["http://127.0.0.1:1"]}},
                "columns": {"pixels": {"service": "rules"}},
            },
            "data": {"train": [{"path": "pairs.jsonl", "format": "pairs"}]},
            "objective": {"type": "grpo", "kl_beta": kl_beta},
            "optim": {"lr": 1e-3, "micro_batch_size": together},
            "evaluation": evaluation or {},
        }
    )


LORA = {"rank": 2, "alpha": 4.0}
CASES = [("float32", None, False), ("float32", LORA, False), ("bfloat16", None, False), ("bfloat16", LORA, False)]


def count_gradients(policy: Any) -> None:
    for parameter in policy.trainable.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # counted as held


@pytest.mark.parametrize(("dtype", "lora", "again"), [*CASES, ("float32", None, True)])
def test_what_a_step_takes_is_what_is_told(wide: Path, dtype: str, lora: Any, again: bool) -> None:
    if dtype == "bfloat16" and lora is not None and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this CPU multiplies weights of bfloat16 by way of copies, which a GPU does not make")
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "guidance_scale": 5.0, "rewards": {"pixels": 1.0}}
    config = config_of(wide, {"generate": task}, dtype=dtype, lora=lora, gradient_checkpointing=again)
    told = working(config)
    policy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    images: ImagePolicy = policy.images
    prompt = Prompt(id="p", text="draw " * (PROMPT_TOKENS - 6), task="generate")
    assert len(images.model.read_drawing(prompt).cond_T) == PROMPT_TOKENS
    plan = ImagePlan(ROWS, 5.0)
    drawn: list[Any] = []
    if not again:  # drawn by transformers' own forward pass then, whose cache grows
        found = peak_bytes(lambda: drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan)))
        # A CPU's products copy a layer's keys or values, of which there are few here.
        assert found == pytest.approx(told["drawing images"], rel=0.2)
    else:
        drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan))
    decoded = peak_bytes(lambda: images.model.decode_images(drawn[0].trace.tokens_BN))
    # In bfloat16 its norms are computed in float32.
    assert decoded == pytest.approx(told["decoding images"], rel=0.05 if lora is None or dtype == "float32" else 0.3)
    count_gradients(policy)

    def train() -> None:
        images.logp(policy.trainable, drawn[0].trace).sum().backward()

    assert peak_bytes(train) == pytest.approx(told["training on images"], rel=0.15)


def test_a_plan_before_each_image_is_told(wide: Path) -> None:
    """Each image then has a prompt of its own in both branches, and the plan is trained on as well."""
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "guidance_scale": 5.0, "rewards": {"pixels": 1.0}}
    think = {"max_new_tokens": 48}
    config = config_of(wide, {"generate": {**task, "think": think}}, dtype="float32")
    told, at_once = working(config), working(config_of(wide, {"generate": task}, dtype="float32"))
    policy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    never_ends(policy)
    prompt = Prompt(id="p", text="draw " * (PROMPT_TOKENS - 6), task="generate")
    plan = training_plan(config, 1, plan_needs(config.objective.type), "generate")
    drawn: list[Any] = []
    found = peak_bytes(lambda: drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan)))
    assert found == pytest.approx(told["drawing images"], rel=0.2)
    assert told["drawing images"] > 1.4 * at_once["drawing images"]
    # Plans of different lengths: there are then as many unconditional branches.
    model, trace = policy.images.model, drawn[0].trace
    thoughts = [replace(each, tokens_S=each.tokens_S[: 48 - row]) for row, each in enumerate(trace.thoughts_B)]
    reading = model.read_thinking(prompt, None)
    drawings = [model.drawing_after(reading, each.tokens_S) for each in thoughts]
    trace = replace(trace, drawings_B=drawings, thoughts_B=thoughts)
    count_gradients(policy)
    found = peak_bytes(lambda: policy.images.logp(policy.trainable, trace).sum().backward())
    assert found == pytest.approx(told["training on images"], rel=0.15)
    assert told["training on images"] > 2 * at_once["training on images"]


def never_ends(policy: Any) -> None:
    """Let each text have the length that is told."""
    policy.texts.model.ends = [-1]


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("white") / "white.png"
    Image.new("RGB", (SIDE, SIDE), "white").save(path)
    return str(path)


# Questions and answers of which either is longer: rows of answers attend to copies of their prompt's keys and values.
LONG, SHORT = (PROMPT_TOKENS, 96), (4 * PROMPT_TOKENS, 16)


@pytest.mark.parametrize(
    ("dtype", "lora", "again", "lengths"),
    [
        (*CASES[0], LONG),
        (*CASES[-1], SHORT),
        *(pytest.param(*case, LONG, marks=pytest.mark.slow) for case in CASES[1:]),
        *(pytest.param(*case, SHORT, marks=pytest.mark.slow) for case in CASES[:-1]),
        ("float32", None, True, LONG),
    ],
)
def test_what_answers_take_is_what_is_told(
    wide: Path,
    white: str,
    dtype: str,
    lora: Any,
    again: bool,
    lengths: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, longest = lengths
    monkeypatch.setattr("trainer.policies.unified.janus.memory.PROMPT_TOKENS", text)
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "max_new_tokens": longest, "rewards": {"pixels": 1.0}}
    config = config_of(wide, {"understand": task}, dtype=dtype, lora=lora, gradient_checkpointing=again)
    told = working(config)
    policy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    never_ends(policy)
    prompt = Prompt(id="p", text="answer " * (text - 7), task="understand", source_images=(white,))
    assert len(policy.texts.model.read(prompt).ids_T) == text + GRID**2
    plan = TokenPlan(ROWS, longest)
    drawn: list[Any] = []
    found = peak_bytes(lambda: drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan)))
    assert all(len(each.tokens) == longest for each in drawn[0].samples)
    assert found == pytest.approx(told["writing answers"], rel=0.2)
    count_gradients(policy)

    def train() -> None:
        policy.replay(drawn[0], slice(0, longest)).logp_BS.sum().backward()

    assert peak_bytes(train) == pytest.approx(told["training on answers"], rel=0.15)


def test_a_forecast_counts_the_starting_weights_logits_and_the_updates_own_micro_batch(wide: Path, white: str) -> None:
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "max_new_tokens": 64, "rewards": {"pixels": 1.0}}
    tasks = {"understand": task, "generate": {**task, "guidance_scale": 5.0}}
    del tasks["generate"]["max_new_tokens"]
    tied, plain = config_of(wide, tasks, dtype="float32", kl_beta=0.1), config_of(wide, tasks, dtype="float32")
    policy = build_policy(tied.policy, torch.device("cpu"), keep_reference=True)
    never_ends(policy)
    prompt = Prompt(id="p", text="answer " * (PROMPT_TOKENS - 7), task="understand", source_images=(white,))
    (drawn,) = policy.sample([prompt], ROWS, list(range(ROWS)), TokenPlan(ROWS, 64))
    count_gradients(policy)

    def train() -> None:
        policy.replay(drawn, slice(0, 64), reference=True).logp_BS.sum().backward()

    told = working(tied)
    assert peak_bytes(train) == pytest.approx(told["training on answers"], rel=0.15)
    assert told["training on answers"] > working(plain)["training on answers"]
    fewer = working(config_of(wide, tasks, dtype="float32", together=2))
    for name in ("writing answers", "drawing images", "decoding images"):
        assert fewer[name] == told[name]
    for name in ("training on answers", "training on images"):
        assert fewer[name] < 0.45 * working(plain)[name]


def test_held_out_sets_are_drawn_in_batches_of_their_own(wide: Path, white: str) -> None:
    """Also of the task that is not trained, with the guidance that it is drawn with then."""
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "max_new_tokens": 64, "rewards": {"pixels": 1.0}}
    sets = [{"name": "images", "path": "x.jsonl", "task": "generate", "rewards": ["pixels"]}]
    alone = working(config_of(wide, {"understand": task}, dtype="float32"))
    assert set(alone) == {"writing answers", "training on answers"}
    config = config_of(wide, {"understand": task}, dtype="float32", evaluation={"sets": sets, "batch_size": 16})
    told = working(config)
    assert set(told) - set(alone) == {"drawing held-out images", "decoding held-out images"}
    policy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    words = ["red", "blue", "green", "black"]  # a prompt each
    prompts = [
        Prompt(id=str(n), text=f"{words[n % 4]} {words[n // 4]} " + "draw " * (PROMPT_TOKENS - 8), task="generate")
        for n in range(16)
    ]
    assert len(policy.images.model.read_drawing(prompts[3]).cond_T) == PROMPT_TOKENS
    found = peak_bytes(lambda: list(policy.sample(prompts, 1, list(range(16)), ImagePlan(16, 5.0))))
    assert found == pytest.approx(told["drawing held-out images"], rel=0.2)
    sets = [{"name": "answers", "path": "x.jsonl", "format": "questions"}]
    told = working(config_of(wide, {"understand": task}, dtype="float32", evaluation={"sets": sets, "batch_size": 16}))
    assert set(told) - set(alone) == {"writing held-out answers"}
    assert told["writing held-out answers"] > 1.2 * told["writing answers"]
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "rewards": {"pixels": 1.0}, "guidance_scale": 5.0}
    plain, guided = (
        working(config_of(wide, {"generate": task}, evaluation={"path": "x.jsonl", "guidance_scale": scale}))
        for scale in (1.0, None)
    )
    assert plain["drawing held-out images"] < 0.7 * guided["drawing held-out images"], "one branch"


GIB = 1 << 30


PUBLISHED = [
    (False, None, 32.4, 4.2, 33.2, 4.3, 23.0),
    (False, {"rank": 32, "alpha": 64.0}, 4.4, 4.2, 24.9, 4.3, 17.7),
    (True, None, 130.6, 16.1, 87.0, 16.3, 55.8),
    (True, {"rank": 32, "alpha": 64.0}, 15.2, 16.1, 60.7, 16.3, 36.9),
]


@pytest.mark.parametrize(("large", "lora", "held", "drawing", "images", "writing", "answers"), PUBLISHED)
def test_forecast_of_the_published_sizes(
    large: bool,
    lora: Any,
    held: float,
    drawing: float,
    images: float,
    writing: float,
    answers: float,
    tmp_path: Path,
) -> None:
    """8 + 8 rollouts of 576 tokens with guidance, from config.json alone: nothing is downloaded for it."""
    (tmp_path / "config.json").write_text(json.dumps(published_fields(large=large)))
    each = {"group_size": 8, "micro_batch_size": 8, "rewards": {"pixels": 1.0}}
    tasks = {"understand": {**each, "max_new_tokens": 512}, "generate": {**each, "guidance_scale": 5.0}}
    config = config_of(tmp_path, tasks, lora=lora)
    found = sizes(config)
    assert found is not None
    told, more = held_bytes(config, found, ranks=1), working(config)
    assert sum(told.device.values()) / GIB == pytest.approx(held, abs=0.06)
    decoding = 1.1 if lora else 2.2  # 8 x 384 x 384 pixels x 128 channels, four times
    expected = {
        "writing answers": writing,
        "training on answers": answers,
        "drawing images": drawing,
        "decoding images": decoding,
        "training on images": images,
    }
    assert {name: size / GIB for name, size in more.items()} == pytest.approx(expected, abs=0.06)
    (said,) = [each for each in check_memory(config) if "training on images" in each.message]
    assert said.status == "WARN" and f"training on images {images:.1f}" in said.message
    # Layers that are computed again keep their inputs alone.
    again = working(config_of(tmp_path, tasks, lora=lora, gradient_checkpointing=True))
    assert again["training on images"] < more["training on images"] / 2
