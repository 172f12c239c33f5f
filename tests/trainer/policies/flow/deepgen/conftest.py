"""One tiny DeepGen on disk for all tests of this folder; each builds its own model from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.tiny_deepgen import TinyDeepGen, make_deepgen
from trainer.config import DeepGenConfig
from trainer.policies.flow.deepgen.model import DeepGenFlow


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDeepGen:
    return make_deepgen(tmp_path_factory.mktemp("deepgen"))


@pytest.fixture
def build(tiny: TinyDeepGen) -> Callable[..., DeepGenFlow]:
    """Builds the tiny model, with changes to its section of the configuration."""

    def make(**changes: Any) -> DeepGenFlow:
        return DeepGenFlow(DeepGenConfig.model_validate(tiny.section(**changes), strict=True), torch.device("cpu"))

    return make
