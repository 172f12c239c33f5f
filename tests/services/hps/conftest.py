"""A small random checkpoint in the published layout, and the published vocabulary."""

from __future__ import annotations

import importlib.util
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.hps_reference import SMALL, State, random_checkpoint
from services.hps.checkpoint import inspect
from services.hps.convert import write_folder
from services.hps.scorer import HpsScorer
from services.hps.tokenizer import Tokenizer
from services.hps.vocabulary import VocabularyError, download_wheel, fetch, read_merges


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bpe_simple_vocab_16e6.txt.gz, downloaded as users do."""
    try:
        return fetch(tmp_path_factory.mktemp("vocabulary"))
    except VocabularyError as error:
        pytest.skip(f"the vocabulary cannot be downloaded: {error}")


@pytest.fixture(scope="session")
def open_clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """open_clip's own SimpleTokenizer, out of its wheel. It needs nothing of the package around it."""
    folder = tmp_path_factory.mktemp("open_clip")
    try:
        wheel = download_wheel(folder)
    except VocabularyError as error:
        pytest.skip(f"open_clip cannot be downloaded: {error}")
    with zipfile.ZipFile(wheel) as archive:
        for name in ("open_clip/tokenizer.py", "open_clip/bpe_simple_vocab_16e6.txt.gz"):
            archive.extract(name, folder)
    spec = importlib.util.spec_from_file_location("published_tokenizer", folder / "open_clip" / "tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # It leaves its file open and sets a variable.
    with warnings.catch_warnings(), mock.patch.dict(os.environ):
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        return module.SimpleTokenizer()


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer(read_merges(vocabulary))


@pytest.fixture(scope="session")
def state() -> State:
    return random_checkpoint(SMALL, seed=0)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    path = tmp_path_factory.mktemp("published") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, published: Path, vocabulary: Path) -> Path:
    out = tmp_path_factory.mktemp("converted") / "hps"
    write_folder(inspect(published), read_merges(vocabulary), out)
    return out


@pytest.fixture(scope="session")
def scorer(folder: Path) -> HpsScorer:
    made = HpsScorer(inspect(folder), device="cpu", dtype="fp32")
    made.load()
    return made
