"""The recipes in configs/ train as they are: only sizes are smaller, models are random, and one rules service is all services."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from rewards import signs
from tests.support.tiny_deepgen import make_deepgen
from tests.support.tiny_pipelines import make_sd3
from tests.support.trainer_runs import read_metrics
from trainer.__main__ import main
from trainer.config import Config
from trainer.loop import train
from trainer.migration import load_recipe
from trainer.migration.deepgen.variables import VARIABLES
from trainer.programs.stages import export_trained

ROOT = Path(__file__).resolve().parents[2]
SD35 = [f"sd35_medium_{name}{gpus}" for name in ("geneval", "multi", "ocr", "pickscore") for gpus in ("", "_1gpu")]
SD35 += ["sd35_medium_first"]
DEEPGEN = ["deepgen_mr_grpo", "deepgen_mr_grpo_1gpu"]
NATIVE = ["neo_quickstart_1", "neo_quickstart_2", "neo_quickstart"]
BASES = ["quickstart_base", "vlm_base", "pair_base", "unified_base"]
SMALL = ("sampling.height=16", "sampling.width=16")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: configs/ as they are, prompts where the recipes look for them, none of the variables they read."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    evaluation = tmp_path / "configs/datasets/deepgen_eval.yaml"
    judged = evaluation.read_text(encoding="utf-8")
    unjudged = judged.replace("    scoring: unigenbench/en\n", "").replace(
        "num_inference_steps: 50", "num_inference_steps: 2"
    )
    evaluation.write_text(unjudged, encoding="utf-8")
    for folder in ("ocr", "pickscore"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "train.txt").write_text(prompts(folder))
        (tmp_path / "data" / folder / "test.txt").write_text('a gray door with "EXIT"\na purple hat with "ME"\n')
    signs.write(tmp_path / "data/signs")
    (tmp_path / "data/geneval").mkdir()
    for split, things in (("train", ("bench", "cat", "dog", "cup")), ("test", ("boat", "kite"))):
        rows = [
            {"tag": "single_object", "include": [{"class": thing, "count": 1}], "prompt": f"a photo of a {thing}"}
            for thing in things
        ]
        metadata = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"data/geneval/{split}_metadata.jsonl").write_text(metadata)
    for name in ("unigenbench_train_data_ocr", "unigenbench_train_data_general", "corebench"):
        (tmp_path / "data/deepgen").mkdir(exist_ok=True)
        (tmp_path / f"data/deepgen/{name}.txt").write_text(prompts(name))
    (tmp_path / "data/unigenbench").mkdir()
    (tmp_path / "data/unigenbench/test_prompts_en.csv").write_text("index,prompt_en\n0,an orange cat\n1,a pink dog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prompts(name: str) -> str:
    return "".join(f'a {colour} {name} with "{colour[:2]}"\n' for colour in COLOURS)


def smaller(recipe: Path, url: str, *more: str, size: Sequence[str] = SMALL) -> Config:
    """The recipe at a size for a test, its services at `url`, where a reward that needs no text stands for each."""
    config = load_recipe(recipe, Config)
    changes = [
        *size,
        "rewards.launch=none",
        *("max_steps=1", "optim.warmup_steps=0", "logging.report_to=[]", "distributed={num_threads: 1}"),
        *("sampling.prompts_per_step=2", "sampling.group_size=2", "sampling.micro_batch_size=2"),
        "optim.micro_batch_size=2",
        *("evaluation.num_inference_steps=2", "evaluation.batch_size=2"),
        *(f"rewards.services.{name}.urls=['{url}']" for name in config.rewards.services),
        *(f"rewards.columns.{name}.reward=jpeg_compressibility" for name in config.rewards.columns),
    ]
    return load_recipe(recipe, Config, [*changes, *more])


def check(config: Config) -> None:
    rows = read_metrics(Path(config.run_dir))
    assert [row["step"] for row in rows][-1] == 1
    assert rows[-1]["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert rows[-1]["grad_norm"] > 0


def test_every_recipe_is_run_here() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {
        "quickstart",
        "vlm_quickstart",
        "pair_quickstart",
        "unified_sft_quickstart",
        "unified_rl_quickstart",
        *NATIVE,
        *BASES,
        *SD35,
        *DEEPGEN,
    }


@pytest.mark.slow
def test_the_quickstart_trains(workplace: Path, rules_url: str) -> None:
    (workplace / "assets").symlink_to(ROOT / "assets")
    config = smaller(Path("configs/quickstart.yaml"), rules_url, size=())
    assert train(config) == 0
    check(config)


def test_the_small_vlms_quickstart_trains(workplace: Path, rules_url: str) -> None:
    """Its own rewards, its own pictures; only steps and groups are fewer."""
    (workplace / "assets").symlink_to(ROOT / "assets")
    few = "{name: few, path: assets/vlm_quickstart/blank.jsonl, max_prompts: 4}"
    changes = [
        *("rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "max_steps=1"),
        *("optim.warmup_steps=0", "logging.report_to=[]", "distributed={num_threads: 1}"),
        *("sampling.prompts_per_step=4", "sampling.group_size=4", "sampling.micro_batch_size=16"),
        *("evaluation.path=null", f"evaluation.sets=[{few}]"),
        f"data.train.0.image_cache={workplace / 'images'}",
    ]
    config = load_recipe(Path("configs/vlm_quickstart.yaml"), Config, changes)
    assert train(config) == 0
    check(config)
    assert read_metrics(Path(config.run_dir))[-1]["ratio/replay_error"] < 1e-4


@pytest.mark.slow
def test_the_quickstart_of_pairs_trains(workplace: Path, rules_url: str) -> None:
    """Both tasks, their own rewards, their own pictures; only steps and pairs are fewer."""
    (workplace / "assets").symlink_to(ROOT / "assets")
    heldout = "path: assets/pair_quickstart/heldout.jsonl, format: pairs, max_prompts: 4"
    drawn = f"{{name: drawn, {heldout}, task: generate, rewards: [scene]}}"
    answered = f"{{name: answered, {heldout}, task: understand, rewards: [accuracy]}}"
    changes = [
        *("rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "max_steps=1"),
        *("optim.warmup_steps=0", "logging.report_to=[]", "distributed={num_threads: 1}"),
        *("sampling.prompts_per_step=2", f"evaluation.sets=[{drawn}, {answered}]"),
        *("sampling.tasks.understand.micro_batch_size=16", "sampling.tasks.generate.micro_batch_size=16"),
        f"data.train.0.image_cache={workplace / 'images'}",
    ]
    config = load_recipe(Path("configs/pair_quickstart.yaml"), Config, changes)
    assert train(config) == 0
    rows = read_metrics(Path(config.run_dir))
    for task in ("understand", "generate"):
        assert rows[-1][f"{task}/ratio/mean"] == pytest.approx(1, abs=1e-6)
        assert rows[-1][f"{task}/ratio/replay_error"] < 1e-4
    assert rows[-1]["grad_norm"] > 0
    assert {"eval/drawn/scene", "eval/answered/accuracy"} <= rows[-1].keys()


def test_the_native_models_three_stages_train(workplace: Path, rules_url: str) -> None:
    """Its own rows and pictures, a step each; each stage starts from the folder that the one before has left."""
    (workplace / "assets").symlink_to(ROOT / "assets")
    few = "{name: few, path: assets/neo_quickstart/unseen.jsonl, max_prompts: 4}"
    for name in NATIVE:
        answers = [
            f"rewards.services.rules.urls=['{rules_url}']",
            "rewards.launch=none",
            "evaluation.path=null",
            f"evaluation.sets=[{few}]",
        ]
        changes = [
            *("after=null", "max_steps=1", "optim.warmup_steps=0", "logging.report_to=[]"),
            *("distributed={num_threads: 1}", "packed.rows_per_pack=4"),
            *(answers if name == "neo_quickstart" else ()),
        ]
        config = load_recipe(Path(f"configs/{name}.yaml"), Config, changes)
        assert train(config) == 0 and export_trained(config) == 0
        last = read_metrics(Path(config.run_dir))[-1]
        assert last["step"] == 1 and last["loss/ce"] > 0 and last["grad_norm"] > 0 and last["packed/left_out"] == 0
    assert "eval/few/accuracy" in last
    page = (Path(config.run_dir) / "report.html").read_text(encoding="utf-8")
    assert "was trained on packs of texts and images." in page


@pytest.mark.slow
def test_the_quickstart_of_packed_training_trains(workplace: Path, rules_url: str) -> None:
    """Its own rows and pictures; steps, held-out rows and denoising steps are fewer, and built-in rules stand for its own."""
    (workplace / "assets").symlink_to(ROOT / "assets")
    few = {"max_prompts": 2, "path": "assets/unified_quickstart/drawn_edit_reason.jsonl", "alarms": False}
    sets = [
        {**few, "name": "edit_riddles", "rewards": ["exact", "thought"], "think": 3},
        {**few, "name": "at_once", "rewards": ["exact"]},
    ]
    changes = [
        *("rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "rewards.services.rules.args={}"),
        *("max_steps=1", "optim.warmup_steps=0", "logging.report_to=[]", "distributed={num_threads: 1}"),
        *("rewards.columns.exact.reward=side_by_side", "rewards.columns.thought.reward=exact_answer"),
        *(f"rewards.columns.{name}.reward=side_by_side" for name in ("changed", "kept")),
        *(f"evaluation.sets={json.dumps(sets)}", "evaluation.num_inference_steps=2"),
        "packed.expected_tokens=300",
    ]
    config = load_recipe(Path("configs/unified_sft_quickstart.yaml"), Config, changes)
    assert train(config) == 0
    first, last = read_metrics(Path(config.run_dir))
    # What leads to velocities begins at 0: the error is the mean of (noise - data)^2, at every level.
    levels = [first[f"heldout/mse/{level}"] for level in (0.25, 0.5, 0.75, 0.95)]
    assert min(levels) > 1.9 and max(levels) - min(levels) < 0.02
    assert last["loss/mse"] > 1.5 and last["loss/ce"] > 1 and last["packed/left_out"] == 0
    assert {"eval/edit_riddles/exact", "eval/edit_riddles/thought", "eval/at_once/exact"} <= last.keys()
    shown = json.loads((Path(config.run_dir) / "samples" / "step_000001.json").read_text(encoding="utf-8"))
    thoughtful = [each for each in shown if each.get("text") is not None]
    assert len(thoughtful) == 2 and all(each["image"] and each["sources"] for each in thoughtful)


def test_rewards_teach_the_small_mixture_of_transformers(workplace: Path, rules_url: str) -> None:
    """Drawings and edits in one step, from the model that is shipped; only steps, groups and held-out prompts are fewer."""
    (workplace / "assets").symlink_to(ROOT / "assets")
    few = {
        "name": "edited",
        "path": "assets/unified_quickstart/drawn_edit.jsonl",
        "rewards": ["scene"],
        "max_prompts": 2,
    }
    changes = [
        *("rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "rewards.services.rules.args={}"),
        *("max_steps=1", "optim.warmup_steps=0", "logging.report_to=[]", "distributed={num_threads: 1}"),
        *("sampling.prompts_per_step=4", "sampling.group_size=4", "sampling.micro_batch_size=8"),
        *("rewards.columns.exact.reward=side_by_side", f"evaluation.sets={json.dumps([few])}"),
    ]
    config = load_recipe(Path("configs/unified_rl_quickstart.yaml"), Config, changes)
    assert train(config) == 0
    check(config)
    assert "eval/edited/scene" in read_metrics(Path(config.run_dir))[-1]


@pytest.mark.slow
def test_careless_words_make_the_base_that_rewards_start_from(workplace: Path, rules_url: str) -> None:
    """Two stages: the model that careless people teach is first taught the right words, by the recipe that is named."""
    (workplace / "assets").mkdir()
    (workplace / "assets/unified_quickstart").symlink_to(ROOT / "assets/unified_quickstart")
    (workplace / "outputs/unified_sft_quickstart").mkdir(parents=True)
    (workplace / "outputs/unified_sft_quickstart/model").symlink_to(ROOT / "assets/unified_base")
    small = ["max_steps=1", "optim.warmup_steps=0", "packed.expected_tokens=200", "evaluation.sets=[]"]
    small += ["rewards.columns.exact.reward=side_by_side"]
    place = ["distributed={num_threads: 1, device: cpu}", "logging.report_to=[]"]
    url = ["rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "rewards.services.rules.args={}"]
    assert main(["train", "configs/unified_base.yaml", *small, *place, *url]) == 0
    assert (workplace / "assets/unified_base/ema.safetensors").is_file()


@pytest.mark.slow
def test_the_base_of_the_quickstart_of_pairs_is_made(workplace: Path, rules_url: str) -> None:
    small = ["max_steps=2", "optim.warmup_steps=0", "scenes={drawings: 4, talks: 2, decoded: 2, careless: 1}"]
    place = ["policy.pretrained=base", "distributed={num_threads: 1, device: cpu}", "logging.report_to=[]"]
    url = ["rewards.launch=none", f"rewards.services.rules.urls=['{rules_url}']", "evaluation.sets=[]"]
    assert main(["train", "configs/pair_base.yaml", *small, *place, *url]) == 0
    assert (workplace / "base/model.safetensors").is_file()


@pytest.mark.slow
def test_the_small_vlms_base_is_made(workplace: Path) -> None:
    small = ["max_steps=2", "optim.warmup_steps=0", "cards={batch_size: 4, captions: 1, careless: 1}"]
    place = ["policy.pretrained=base", "distributed={num_threads: 1, device: cpu}", "logging.report_to=[]"]
    assert main(["train", "configs/vlm_base.yaml", *small, *place]) == 0
    assert (workplace / "base/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "train"])
def test_the_quickstarts_base_is_made(workplace: Path, verb: str) -> None:
    small = ["max_steps=1", "optim.warmup_steps=0", "quickstart.batch_size=4", "quickstart.output=base.safetensors"]
    recipe = "configs/quickstart_base.yaml"
    assert main([verb, recipe, *small, "distributed={num_threads: 1, device: cpu}", "logging.report_to=[]"]) == 0
    assert (workplace / "base.safetensors").is_file()
    assert [row["step"] for row in read_metrics(workplace / "outputs/quickstart_base")][-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SD35)
def test_the_sd35_recipes_train(workplace: Path, rules_url: str, name: str) -> None:
    make_sd3(workplace / "models/stable-diffusion-3.5-medium")
    few = ["evaluation.sets.0.max_prompts=2"] if name == "sd35_medium_first" else []
    few += ["policy.compile=false"]  # what compiled blocks do is tested elsewhere; here it would take minutes
    config = smaller(Path(f"configs/{name}.yaml"), rules_url, *few)
    assert train(config) == 0
    check(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEPGEN)
def test_the_deepgen_recipes_train_with_models_from_the_environment(
    workplace: Path, rules_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tiny = make_deepgen(workplace / "models")
    monkeypatch.setenv("SD3_5_MODEL_NAME_OR_PATH", str(tiny.sd3_path))
    monkeypatch.setenv("QWEN2_5_VL_MODEL_NAME_OR_PATH", str(tiny.qwen_path))
    monkeypatch.setenv("CHECKPOINT", str(tiny.checkpoint))
    steps = "sampling.num_inference_steps=12"  # the recipe's window fits into 12
    config = smaller(Path(f"configs/{name}.yaml"), rules_url, steps, "sampling.height=32", "sampling.width=32")
    assert train(config) == 0
    check(config)
