"""The doctor on texts that an OCR model cannot write, with what the real engine says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.ocr.engines import EngineOptions
from services.ocr.scorer import OcrScorer
from trainer.config import Config
from trainer.config.file import load_config
from trainer.doctor.findings import Finding
from trainer.doctor.texts import check_texts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def about() -> Mapping[str, Any]:
    return OcrScorer("rapidocr", EngineOptions(mode="line")).about


Check = Callable[..., list[Finding]]


@pytest.fixture
def check(tmp_path: Path, about: Mapping[str, Any]) -> Check:
    def run(*rows: dict[str, Any], reward: str = "multi", said: Mapping[str, Any] = about) -> list[Finding]:
        path = tmp_path / "signs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        overrides = [f"data.train.0.path={path}", f"rewards.columns.ocr.reward={reward}", "evaluation={path: null}"]
        config = load_config(ROOT / "configs/quickstart.yaml", Config, overrides)
        columns = {name: column for name, column in config.rewards.columns.items() if name == "ocr"}
        return list(check_texts(config, "ocr", columns, said))

    return run


def test_scripts_the_model_cannot_write_are_counted(check: Check) -> None:
    [finding] = check(
        {"prompt": 'a sign "OPEN"'},
        {"prompt": "a sign 'привет'"},
        {"prompt": "a shop", "targets": ["SALE", "안녕"]},
    )
    assert finding.status == "WARN"
    assert "signs, reward ocr: 2 of 3 prompts" in finding.message and "'привет' (п р и в е т)" in finding.message
    assert "not_applicable" in finding.message and "docs/services.md" in finding.remedy


def test_prompts_without_a_text_are_counted(check: Check) -> None:
    [finding] = check({"prompt": 'a sign "OPEN"'}, {"prompt": "it's a dog's life"})
    assert finding.status == "WARN" and "1 of 2 prompts ask for no text" in finding.message


def test_flow_grpo_looks_for_the_first_text_alone(check: Check) -> None:
    row = {"prompt": "a shop", "targets": ["SALE", "안녕"]}
    assert [finding.status for finding in check(row, reward="flow_grpo")] == ["OK"]
    assert [finding.status for finding in check(row, reward="strict")] == ["WARN"]


def test_good_texts_are_said_to_be_good(check: Check) -> None:
    [finding] = check({"prompt": 'a sign "Café 24"'}, {"prompt": "写着「你好」的牌子"})
    assert finding.status == "OK" and "all 2 prompts" in finding.message


def test_a_list_that_is_not_known_is_not_called_good(check: Check) -> None:
    [finding] = check({"prompt": "x"}, said={"scripts": None, "characters": None})
    assert finding.status == "WARN" and "were not checked" in finding.message
    assert check({"prompt": "x"}, said={}) == [], "a service that reads no text"
