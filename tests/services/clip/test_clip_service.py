"""The service as a process: started by its command, asked over HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.service_process import ready_service
from tests.support.tiny_clip import PlainClip, spell
from wire.images import to_ref


@pytest.fixture(scope="module")
def url(clip_folder: Path, pickscore_folder: Path, head_path: Path) -> Iterator[str]:
    flags = ("--device", "cpu", "--threads", "1", "--model", clip_folder, "--pickscore", pickscore_folder)
    with ready_service("clip", *flags, "--aesthetic", head_path) as address:
        yield address


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))


def post(url: str, reward: str, *items: dict[str, Any]) -> dict[str, Any]:
    body = {"reward": reward, "items": [{"id": str(index), **each} for index, each in enumerate(items)]}
    answer = httpx.post(f"{url}/v1/score", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_all_rewards_are_named_and_score_a_png(url: str, plain: PlainClip) -> None:
    info = httpx.get(f"{url}/v1/info", timeout=30).json()
    names = [reward["name"] for reward in info["rewards"]]
    assert names[0] == info["default_reward"] == "clip_sim"
    assert {"aesthetic", "pickscore", "pickscore_26", "pickscore_cosine", "diversity"} <= set(names)
    item = {"prompt": "a cat", "images": [to_ref(picture(1), "image/png").model_dump(exclude_none=True)]}
    answer = post(url, "clip_sim", item)
    expected = float(plain.image(picture(1)) @ plain.text(spell("a cat")))
    assert answer["results"][0]["score"] == pytest.approx(expected, abs=1e-5)


def test_a_group_is_compared_and_an_edit_needs_its_source(url: str) -> None:
    refs = [to_ref(picture(seed), "image/png").model_dump(exclude_none=True) for seed in range(3)]
    group = [{"prompt": "a cat", "group_id": "g", "images": [ref]} for ref in refs]
    assert all(result["score"] > 0 for result in post(url, "diversity", *group)["results"])
    [edit] = post(url, "image_similarity", {"prompt": "a", "images": [refs[0]], "source_images": [refs[0]]})["results"]
    assert edit["score"] == pytest.approx(1, abs=1e-6)
    [none] = post(url, "image_similarity", {"prompt": "a", "images": [refs[0]]})["results"]
    assert none["score"] is None and none["error"]["code"] == "not_applicable"


def test_a_wrong_folder_is_a_sentence_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.clip", "--port", "0", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "there is no config.json" in done.stderr and "Traceback" not in done.stderr


def test_the_head_is_converted_by_the_command(head_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.clip", "convert", str(head_path), str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "parameters, from" in done.stdout and (tmp_path / "a.safetensors").is_file()
