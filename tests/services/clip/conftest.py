"""Small random folders in the published layouts, and the scorer that serves all three."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from services.clip.scorer import ClipScorer
from services.kit.models.sources import inspect_file, inspect_folder
from tests.support.tiny_clip import PlainClip, write_aesthetic, write_clip, write_siglip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", seed=0)


@pytest.fixture(scope="session")
def pickscore_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("pickscore") / "tiny-pickscore", seed=1)


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("siglip") / "tiny-siglip", seed=2)


@pytest.fixture(scope="session")
def head_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aesthetic") / "sac+logos+ava1-l14-linearMSE.pth"
    write_aesthetic(path, seed=3)
    return path


@pytest.fixture(scope="session")
def head_state(head_path: Path) -> dict[str, Tensor]:
    import torch

    state: dict[str, Tensor] = torch.load(head_path, weights_only=True)
    return state


@pytest.fixture(scope="session")
def plain(clip_folder: Path) -> PlainClip:
    return PlainClip.read(clip_folder)


@pytest.fixture(scope="session")
def plain_pickscore(pickscore_folder: Path) -> PlainClip:
    return PlainClip.read(pickscore_folder)


@pytest.fixture(scope="session")
def clip_scorer(clip_folder: Path, pickscore_folder: Path, head_path: Path) -> ClipScorer:
    made = ClipScorer(
        inspect_folder(clip_folder, "--model"),
        inspect_folder(pickscore_folder, "--pickscore"),
        inspect_file(head_path, "--aesthetic"),
        device="cpu",
        dtype="fp32",
    )
    made.load()
    return made
