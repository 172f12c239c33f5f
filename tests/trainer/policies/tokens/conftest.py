"""One tiny model for all tests of policies that write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_vlm import make_vlm, save_pictures


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vlm(tmp_path_factory.mktemp("tiny_vlm"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_pictures(tmp_path_factory.mktemp("pictures"))
