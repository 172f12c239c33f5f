"""Reading the vocabulary in each of its forms, and refusing another one."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from services.hps import vocabulary as module
from services.hps.tokenizer import Tokenizer
from services.hps.vocabulary import VocabularyError, download_wheel, read_merges, write_merges

REMEDY = "python -m services.hps vocabulary"


def test_the_published_file_has_48894_merges_and_makes_49408_tokens(vocabulary: Path) -> None:
    merges = read_merges(vocabulary)
    assert len(merges) == 48_894
    assert merges[0] == ("i", "n")
    assert Tokenizer(merges).vocab_size == 49_408


@pytest.mark.parametrize("form", ["folder", "merges.txt", "unpacked"])
def test_other_forms_hold_the_same_merges(vocabulary: Path, tmp_path: Path, form: str) -> None:
    merges = read_merges(vocabulary)
    path = tmp_path
    if form == "unpacked":
        path = tmp_path / "bpe_simple_vocab_16e6.txt"
        path.write_bytes(gzip.decompress(vocabulary.read_bytes()))
    else:
        write_merges(merges, tmp_path)
        path = tmp_path / "merges.txt" if form == "merges.txt" else tmp_path
    assert read_merges(path) == merges


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=REMEDY):
        read_merges(tmp_path / "no.txt.gz")


@pytest.mark.parametrize("damage", ["cut", "garbage", "other"])
def test_a_damaged_or_other_vocabulary_is_refused(vocabulary: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "vocabulary"
    if damage == "cut":
        path.write_bytes(vocabulary.read_bytes()[:100_000])
    elif damage == "garbage":
        path.write_bytes(b"\x1f\x8bnot gzip")
    else:
        text = gzip.decompress(vocabulary.read_bytes()).decode().replace("\ni n\n", "\nn i\n", 1)
        path.write_text(text, "utf-8")
    with pytest.raises(VocabularyError, match=REMEDY):
        read_merges(path)


def test_a_wheel_with_another_sha256_is_refused(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(
        VocabularyError, match=r"(?s)pip could not download open_clip_torch==3\.3\.0.*Expected sha256 0{64}"
    ):
        download_wheel(tmp_path)


def test_the_folder_that_the_command_filled_is_read(vocabulary: Path) -> None:
    assert read_merges(vocabulary.parent) == read_merges(vocabulary)


def test_the_command_writes_the_file_and_says_how_much_is_in_it(vocabulary: Path, tmp_path: Path) -> None:
    out = tmp_path / "named.gz"
    done = subprocess.run(
        [sys.executable, "-m", "services.hps", "vocabulary", str(out)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{out}: 48,894 merges\n"), done.stderr
    assert out.read_bytes() == vocabulary.read_bytes()
    assert list(tmp_path.iterdir()) == [out]
