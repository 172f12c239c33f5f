"""What the native policy writes: its cache computes what the network computes, its folders come back whole, others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.support.tiny_neo import neo_section
from tests.support.trainer_runs import read_metrics
from trainer.__main__ import main
from trainer.config import ConfigError
from trainer.config.neo import NeoConfig
from trainer.policies.base import ReadsPacks, ReadsTokens, Replays, Samples
from trainer.policies.registry import entry_of
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.sight import Case, look
from trainer.policies.unified.neo import build
from trainer.policies.unified.neo.exporting import reload, write
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.policies.unified.neo.tokenizer import load_tokenizer
from trainer.programs.sight import texts_of
from trainer.types import Prompt

CPU = torch.device("cpu")
ENDS = tuple(range(10, 22))  # more tokens than its own end an answer, so that answers have several lengths


def prompts(pictures: list[str]) -> list[Prompt]:
    return [
        Prompt("a", "what color is the disc", source_images=(pictures[0],)),
        Prompt("b", "how many", source_images=()),
        Prompt("c", "<image> left <image> right which", source_images=(pictures[1], pictures[2])),
    ]


def test_it_has_the_capabilities_of_packs_and_of_answers(neo: NeoPolicy) -> None:
    for capability in (ReadsPacks, Samples, Replays, ReadsTokens):
        assert isinstance(neo, capability)
    assert set(neo.group_of.values()) == set(NeoConfig.groups) == {"patches", "new_layers", "rows_columns", "language"}


def test_what_is_drawn_is_what_is_read_and_depends_on_no_neighbour(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    asked = prompts(neo_pictures)
    (whole,) = neo.sample(asked, 2, list(range(6)), TokenPlan(6, 8, stop_ids=ENDS))
    lengths = {len(sample.tokens) for sample in whole.samples}
    assert len(lengths) > 1, "answers of several lengths, else the cache is not tried"
    (part,) = neo.parts(whole)
    replayed = neo.replay(whole, part).logp_BS
    assert whole.mask_BS is not None
    torch.testing.assert_close(replayed[whole.mask_BS], whole.logp_BS[whole.mask_BS], atol=2e-5, rtol=0)
    assert replayed.requires_grad
    alone = [
        rollout
        for n, p in enumerate(asked)
        for rollout in neo.sample([p], 2, [2 * n, 2 * n + 1], TokenPlan(1, 8, stop_ids=ENDS))
    ]
    texts = [sample.text for rollout in alone for sample in rollout.samples]
    assert texts == [sample.text for sample in whole.samples]
    banned = {neo.model.processor.image_id, neo.model.processor.start_id, neo.model.processor.end_id}
    assert not banned & {token for sample in whole.samples for token in sample.tokens}


def test_greedy_answers_are_the_likeliest_tokens_of_the_network(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    (rollout,) = neo.sample(prompts(neo_pictures)[:1], 1, [0], TokenPlan(1, 6, temperature=0.0))
    tokens = rollout.samples[0].tokens
    reading = neo.model.read(prompts(neo_pictures)[0])
    for place, token in enumerate(tokens):
        candidates = [
            [*tokens[:place], other] for other in range(len(neo.model.tokenizer)) if other not in neo.model.banned_N
        ]
        with torch.no_grad():
            logp = neo.logp([reading] * len(candidates), candidates)[:, place]
        assert candidates[int(logp.argmax())][-1] == token


def test_equal_answers_are_read_once_and_weigh_as_many(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    reading, other = (neo.model.read(prompt) for prompt in prompts(neo_pictures)[:2])
    answers = [(5, 6, 7), (5, 6, 7), (8,), (5, 6, 7)]
    with torch.no_grad():
        together = neo.logp([reading, reading, reading, other], answers)
        alone = [neo.logp([r], [a])[0] for r, a in zip([reading, reading, reading, other], answers, strict=True)]
    for row, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=0)
    assert torch.equal(together[0], together[1])


def test_a_folder_read_and_written_has_every_key(neo: NeoPolicy, neo_folder: Path, tmp_path: Path) -> None:
    write(neo.model, tmp_path, torch.float32)
    before, after = load_file(neo_folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((neo_folder / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())
    assert reload(neo.model.config, tmp_path, CPU).tokenizer.get_vocab() == neo.model.tokenizer.get_vocab()


def test_fields_of_others_come_back_and_extra_layers_are_told(neo_folder: Path, tmp_path: Path) -> None:
    """A published config.json has more fields than this network needs, and does not say which layers are new."""
    folder = shutil.copytree(neo_folder, tmp_path / "theirs")
    fields = json.loads((folder / "config.json").read_text())
    del fields["extra_num_layers"], fields["img_start_token_id"]
    fields |= {"template": "neo1_0", "auto_map": {"AutoModel": "modeling_neo_chat.NEOChatModel"}}
    fields["llm_config"]["max_window_layers"] = 3
    (folder / "config.json").write_text(json.dumps(fields))
    config = NeoConfig(type="neo", pretrained=str(folder), dtype="float32", train="stage_1")
    with pytest.raises(ConfigError, match=r"has no extra_num_layers: say how many they are in policy\.extra_layers"):
        build(config, CPU)
    told = build(config.model_copy(update={"extra_layers": 1}), CPU)
    assert not told.network.language_model.lm_head.weight.requires_grad
    (tmp_path / "ours").mkdir()
    write(told, tmp_path / "ours", torch.bfloat16)
    expected = {**fields, "extra_num_layers": 1, "torch_dtype": "bfloat16"}
    for section in ("llm_config", "vision_config"):
        expected[section] = {**fields[section], "torch_dtype": "bfloat16"}
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == expected
    with pytest.raises(ConfigError, match=r"policy\.extra_layers = 9, but the model has 3 layers in all"):
        build(config.model_copy(update={"extra_layers": 9}), CPU)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_embedding_may_be_missing(neo_folder: Path, tmp_path: Path, tied: bool) -> None:
    folder = shutil.copytree(neo_folder, tmp_path / "tied")
    state = load_file(folder / "model.safetensors")
    del state["language_model.lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": tied}))
    config = NeoConfig(type="neo", pretrained=str(folder), dtype="float32")
    if not tied:
        with pytest.raises(ConfigError, match=r"lacks 1 weights, first language_model\.lm_head\.weight"):
            build(config, CPU)
        return
    model = build(config, CPU)
    inner = model.network.language_model
    assert torch.equal(inner.lm_head.weight, inner.model.embed_tokens.weight)
    assert "its head from its embedding" in model.about


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("type", "model_type = qwen3, but policy.pretrained of policy.type neo is a folder with neo_chat"),
        ("section", "has no vision_config"),
        ("width", "vision_config.llm_hidden_size = 32, but llm_config.hidden_size = 64"),
        ("ratio", "downsample_ratio = 0.3 is not 1 / a whole number"),
        ("channels", "vision_config.num_channels = 4; images here have 3"),
        ("ids", "config.json has img_context_token_id = 3, but the tokenizer's <IMG_CONTEXT> is"),
        ("vocabulary", "but llm_config.vocab_size = 60; copy the model's own tokenizer into the folder"),
        ("lacks", "lacks 1 weights, first language_model.model.layers.0.self_attn.q_norm_w.weight"),
        (
            "draws",
            "weights that this network has no place for, first fm_modules.fm_head.weight; a model that also draws",
        ),
        (
            "shape",
            "vision_model.embeddings.patch_embedding.weight is (32, 3, 4, 4), but its config.json makes it (32, 3, 8, 8)",
        ),
    ],
)
def test_a_folder_that_is_not_neos_is_refused(neo_folder: Path, tmp_path: Path, change: str, said: str) -> None:
    folder = shutil.copytree(neo_folder, tmp_path / "theirs")
    fields, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    match change:
        case "type":
            fields["model_type"] = "qwen3"
        case "section":
            del fields["vision_config"]
        case "width":
            fields["vision_config"]["llm_hidden_size"] = 32
        case "ratio":
            fields["vision_config"]["downsample_ratio"] = 0.3
        case "channels":
            fields["vision_config"]["num_channels"] = 4
        case "ids":
            fields["img_context_token_id"] = 3
        case "vocabulary":
            fields["llm_config"]["vocab_size"] = 60
        case "lacks":
            del state["language_model.model.layers.0.self_attn.q_norm_w.weight"]
        case "draws":
            state["fm_modules.fm_head.weight"] = torch.zeros(2)
        case _:
            state["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(32, 3, 4, 4)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ConfigError) as raised:
        build(NeoConfig(type="neo", pretrained=str(folder)), CPU)
    assert said in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("train", ["all", "stage_1"])
def test_its_size_is_known_from_its_files(qwen3_folder: Path, train: str) -> None:
    section = neo_section(qwen3_folder, train=train)
    model = build(section, CPU)
    trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.network.parameters() if not p.requires_grad)
    found = entry_of(section).sizes(section)
    assert (found.trained, found.network) == (trained, 4 * frozen) and bool(frozen) == (train == "stage_1")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Prompt("a", "what <IMG_CONTEXT>"), "has <IMG_CONTEXT> in its text, which stands for an image in this model"),
        (Prompt("a", "<image> <image>", source_images=("x.png",)), "has 2 <image> marks and 1 images"),
        (Prompt("a", "what", source_images=("x.png",)), "its image x.png cannot be read"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_named(neo: NeoPolicy, prompt: Prompt, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        neo.check_prompts([prompt])
    assert said in str(raised.value)


def test_it_is_proven_to_see_before_a_run(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    """Images move its answers, rows are alone what they are in a batch, what is drawn is replayed, and frames of images are banned."""
    rollouts = list(neo.sample(prompts(neo_pictures), 1, [0, 1, 2], TokenPlan(3, 6)))
    cases = [
        Case(sample.prompt.id, reading, sample.tokens)
        for rollout in rollouts
        for sample, reading in zip(rollout.samples, rollout.trace.readings_B, strict=True)
    ]
    assert texts_of(neo) is neo.texts
    assert [(each.check, each.status) for each in look(neo.texts, cases, rollouts)] == [
        ("image", "OK"),
        ("rows", "OK"),
        ("replay", "OK"),
        ("placeholders", "OK"),
    ]


def test_rewards_of_texts_move_it(neo_folder: Path, neo_pictures: list[str], rules_url: str, tmp_path: Path) -> None:
    """Two steps of RL with a rule over HTTP of a model in NEO's layout: proven to see, drawn, scored, replayed, updated, saved."""
    shutil.copy(neo_pictures[0], tmp_path / "red.png")
    rows = [
        {"question": f"<image> what color {word}", "answer": "red", "image": "red.png", "target_length": 1}
        for word in ("a", "b")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "run_name": "rl",
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "policy": {
            "type": "neo",
            "pretrained": str(neo_folder),
            "dtype": "float32",
            "min_pixels": 256,
            "max_pixels": 4096,
        },
        "sampling": {
            "prompts_per_step": 2,
            "group_size": 4,
            "micro_batch_size": 8,
            "max_new_tokens": 4,
            "stop_ids": list(ENDS),
        },
        "objective": {"type": "bnpo"},
        "rewards": {
            "launch": "none",
            "services": {"rules": {"urls": [rules_url]}},
            "columns": {"length": {"service": "rules", "reward": "length"}},
        },
        "data": {"train": [{"path": str(tmp_path / "rows.jsonl"), "rewards": {"length": 1.0}}]},
        "optim": {"lr": 1e-3},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_to": [], "progress": False},
    }
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(tree))
    assert main(["train", str(tmp_path / "rl.yaml")]) == 0
    sight = json.loads((tmp_path / "rl" / "sight.json").read_text())
    assert {each["status"] for each in sight} == {"OK"}
    rows_of_run = read_metrics(tmp_path / "rl")
    assert len(rows_of_run) == 3 and rows_of_run[-1]["grad_norm"] > 0


def test_a_tokenizer_of_its_own_kind_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are encoded by the tokenizer below transformers', by several threads at once."""
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: object())
    with pytest.raises(
        ConfigError, match=r"policy.tokenizer = .* has no tokenizer.json; write it with transformers' fast"
    ):
        load_tokenizer(tmp_path, "policy.tokenizer")
