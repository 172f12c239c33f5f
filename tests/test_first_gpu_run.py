"""docs/first_gpu_run.md: what can run here is run, and its forecasts are the doctor's and the count's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.scaling_plan import FORWARD_TFLOP
from rewards.command import main
from rewards.shipped import recipes
from rewards.sources import read_table
from tests.support.documents import ROOT, blocks_of, program_of
from trainer.config import Config
from trainer.doctor.prompts import check_base, check_data
from trainer.doctor.weights import held_bytes, sizes, working
from trainer.migration import load_recipe
from trainer.policies.flow.plans import image_sizes

PAGE = ROOT / "docs/first_gpu_run.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAME = "sd35_medium_first"
GIB = 2**30
UTILISATION = 0.4
# Elements of the encoders of the published folder, which are its files' sizes by two bytes: CLIP-L, CLIP-G, T5.
ENCODERS = {"text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656}


@pytest.fixture
def recipe() -> Config:
    return load_recipe(recipes()[NAME], Config)


def test_what_needs_no_network_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (block,) = [each for each in blocks_of(PAGE) if "--dry-run" in each.text]
    for line in block.commands:
        program, words = program_of(line)
        assert program == "python -m rewards" and main(words) == 0
    printed = capsys.readouterr().out
    for words in (
        "models/stable-diffusion-3.5-medium: Stable Diffusion 3.5 Medium, as diffusers reads it; size: 16.3 GB",
        "its page: https://huggingface.co/stabilityai/stable-diffusion-3.5-medium",
        "data/signs: this program's own prompts for pictures with words in them; size: ",
    ):
        assert words in printed
    (command,) = [line for line in printed.splitlines() if "hf download" in line]
    assert command.endswith("--exclude '*.fp16*'"), "a second copy of the encoders lies beside the plain one"
    assert (tmp_path / "data/signs/test.txt").is_file() and not (tmp_path / "models").exists()


def test_the_doctor_says_what_is_not_there_yet_with_the_command_that_gets_it(
    recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (base,) = check_base(recipe)
    assert base.status == "FAIL" and "`rewards fetch models/stable-diffusion-3.5-medium` gets it" in base.remedy
    data = next(iter(check_data(recipe)))
    assert data.status == "FAIL" and "`rewards fetch data/signs` gets it" in data.message


def test_the_page_speaks_of_the_recipe_as_it_is(recipe: Config) -> None:
    sampling, evaluation = recipe.sampling, recipe.evaluation
    assert sampling.type == "flow" and sampling.sde_window_size == 2
    images = sampling.prompts_per_step * sampling.group_size
    assert f"{images} images of {sampling.height} x {sampling.width} a step, {recipe.max_steps} steps" in TEXT
    assert f"draws {images} images in {sampling.num_inference_steps} steps and trains on 2 of them" in TEXT
    assert image_sizes(recipe) == [(512, 512)]
    (signs,) = evaluation.sets
    assert (
        f"an evaluation of {signs.max_prompts} images" in TEXT
        and signs.path == recipe.data.train[0].path == "data/signs"
    )
    assert recipe.checkpoint.keep_best is not None and recipe.checkpoint.keep_best.metric == "eval/signs/ocr"
    assert f"{read_table().paths['models/stable-diffusion-3.5-medium'].size.split(' (')[0]} model" in TEXT
    assert recipe.max_steps // evaluation.every + 1 == 6 and "6 evaluations" in TEXT


def test_the_times_are_the_count_by_the_rate_that_is_named(recipe: Config) -> None:
    assert f"{FORWARD_TFLOP:.3f} TFLOP for a guided velocity" in TEXT and recipe.sampling.type == "flow"
    images = recipe.sampling.prompts_per_step * recipe.sampling.group_size
    rollout = images * recipe.sampling.num_inference_steps * FORWARD_TFLOP
    update = 3 * images * 2 * FORWARD_TFLOP
    evaluation = 96 * recipe.evaluation.num_inference_steps * FORWARD_TFLOP
    rows = re.findall(r"^\| (\d+) \([^)]*\) \| ([\d.]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", TEXT, re.M)
    assert len(rows) == 3
    for rate, *shown in rows:
        a, b, c = (each / (float(rate) * UTILISATION) for each in (rollout, update, evaluation))
        whole = (100 * (a + b) + 6 * c) / 60
        assert shown == [f"{a:.1f}", f"{b:.1f}", f"{c:.0f}", f"{whole:.0f}"]


@pytest.mark.slow
def test_the_memory_is_what_the_doctor_says_of_the_published_geometry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.first_gpu.forecast import write_header, write_sd3
    from benchmarks.gpu_sd35 import MEDIUM, VAE

    monkeypatch.chdir(tmp_path)
    folder = write_sd3(tmp_path / "models/stable-diffusion-3.5-medium", MEDIUM, VAE)
    for name, elements in ENCODERS.items():
        write_header(folder / name / "model.safetensors", {"weight": (elements,)})
    bytes_of_all = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert f"{bytes_of_all / 1e9:.1f} GB model" in TEXT
    columns = []
    for offload in ("false", "true"):
        config = load_recipe(recipes()[NAME], Config, [f"policy.offload_encoders={offload}"])
        found = sizes(config)
        assert found is not None
        held = held_bytes(config, found, 1).device
        frozen, whole = held["frozen weights"], sum(held.values())
        columns.append([f"{each / GIB:.2f}" for each in (frozen, whole - frozen, whole)])
    on_top = working(config)
    assert f"{on_top['training on 8 images'] / GIB:.1f} GiB for training" in TEXT
    assert f"{on_top['decoding 8 images'] / GIB:.1f} GiB while 8 images are decoded" in TEXT
    for row, values in zip(
        ("weights that are not", "adapters, their", "**held"), zip(*columns, strict=True), strict=True
    ):
        (line,) = [each for each in TEXT.splitlines() if each.startswith(f"| {row}")]
        assert re.findall(r"\d+\.\d\d", line) == list(values)
