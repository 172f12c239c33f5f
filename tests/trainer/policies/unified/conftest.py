"""What tests of policies that read and draw share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_janus import make_janus
from trainer.config import JanusConfig
from trainer.policies.unified.janus import build
from trainer.policies.unified.janus.model import JanusModel


@pytest.fixture(scope="session")
def janus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_janus(tmp_path_factory.mktemp("tiny_janus"))


@pytest.fixture(scope="session")
def janus(janus_folder: Path) -> JanusModel:
    """All of it in training but the decoder of image tokens. Tests must leave its weights as they are."""
    config = JanusConfig(type="janus", pretrained=str(janus_folder), dtype="float32", freeze=())
    return build(config, torch.device("cpu"))
