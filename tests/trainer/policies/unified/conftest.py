"""What tests of policies that read and draw share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_janus import make_janus
from tests.support.tiny_neo import make_neo, make_qwen3
from tests.support.tiny_vlm import save_pictures
from trainer.config import JanusConfig
from trainer.config.neo import NeoConfig
from trainer.policies.unified.janus import build
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.neo import build as build_neo
from trainer.policies.unified.neo.policy import NeoPolicy


@pytest.fixture(scope="session")
def janus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_janus(tmp_path_factory.mktemp("tiny_janus"))


@pytest.fixture(scope="session")
def janus(janus_folder: Path) -> JanusModel:
    """All of it in training but the decoder of image tokens. Tests must leave its weights as they are."""
    config = JanusConfig(type="janus", pretrained=str(janus_folder), dtype="float32", freeze=())
    return build(config, torch.device("cpu"))


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("tiny_qwen3"))


@pytest.fixture(scope="session")
def neo_folder(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_neo(tmp_path_factory.mktemp("tiny_neo"), qwen3_folder)


@pytest.fixture(scope="session")
def neo(neo_folder: Path) -> NeoPolicy:
    """All of it in training. Tests must leave its weights as they are."""
    config = NeoConfig(type="neo", pretrained=str(neo_folder), dtype="float32", min_pixels=16 * 16, max_pixels=64 * 64)
    return NeoPolicy(build_neo(config, torch.device("cpu")), keep_reference=False)


@pytest.fixture(scope="session")
def neo_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_pictures(tmp_path_factory.mktemp("neo_pictures"))
