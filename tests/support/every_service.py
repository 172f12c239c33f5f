"""Every service in this process, one at a time: its own scorer, on small random weights or before a judge that is scripted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.kit.judge.passthrough import PassThrough
from services.kit.settings import ServiceSettings, load_settings
from services.kit.testing.scripted_judge import Question, Reply, answer_about
from tests.support.deployment import settings_of
from tests.support.judges import judging
from tests.support.serving_here import serving_here
from tests.support.tiny_services import NAMES, flags_of

OWN_MODEL = ("ocr", "rules")  # need nothing that is not here
JUDGED = ("unifiedreward", "eval", "vqa", "textjudge")
WEIGHTS = ("hps", *NAMES)  # random ones: a score says that all of it ran, not how good the picture is


@contextmanager
def every_service(name: str, folder: Path, **settings: Any) -> Iterator[str]:
    """The URL of the service `name` once it is ready. `folder` is for its weights; `settings` are those of every service."""
    if name in JUDGED:
        with judging(_judge, "judge") as judge:
            given = {"judge_url": judge.url, "model": "judge", **settings}  # type: ignore[attr-defined]
            with _serving(name, [], given) as url:
                yield url
    else:
        with _serving(name, _flags(name, folder), settings) as url:
            yield url


@contextmanager
def _serving(name: str, flags: list[str], given: dict[str, Any]) -> Iterator[str]:
    kind = settings_of(name)
    flags = [*flags, *(f"--{field.replace('_', '-')}={value}" for field, value in given.items())]
    made = load_settings(kind, flags)
    scorer = _scorer(name, made)
    passing = PassThrough(scorer.client, 2) if name in JUDGED else None
    shared = {field: getattr(made, field) for field in ServiceSettings.model_fields if field in given}
    with serving_here(scorer, name, add_routes=passing and passing.add_routes, **shared) as url:
        yield url


def _scorer(name: str, settings: Any) -> Any:
    if name == "unifiedreward":
        from services.unifiedreward.scorer import UnifiedRewardScorer

        return UnifiedRewardScorer(settings)
    if name == "vqa":
        from services.vqa.scorer import VqaScorer

        return VqaScorer(settings)
    if name == "textjudge":
        from services.textjudge.scorer import TextJudgeScorer

        return TextJudgeScorer(settings)
    if name == "rules":
        from services.rules.scorer import RulesScorer

        return RulesScorer()
    if name == "ocr":
        from services.ocr.scorer import OcrScorer

        return OcrScorer()
    module = __import__(f"services.{name}.settings", fromlist=["make_scorer"])
    return module.make_scorer(settings)


def _flags(name: str, folder: Path) -> list[str]:
    if name in NAMES:
        return flags_of(name, folder)
    if name != "hps":
        return []
    import torch

    from benchmarks.hps_reference import SMALL, random_checkpoint
    from services.hps.checkpoint import inspect
    from services.hps.convert import write_folder
    from services.hps.vocabulary import VocabularyError, fetch, read_merges

    try:
        vocabulary = fetch(folder)
    except VocabularyError as error:
        pytest.skip(f"the vocabulary cannot be downloaded: {error}")
    torch.save({"state_dict": random_checkpoint(SMALL, seed=0)}, folder / "HPS_v2.1_compressed.pt")
    write_folder(inspect(folder / "HPS_v2.1_compressed.pt"), read_merges(vocabulary), folder / "hps")
    return [f"--checkpoint={folder / 'hps'}", "--device=cpu", "--threads=1"]


def _judge(question: Question) -> Reply:
    """Answers each of the judges' questions in its form: well of what is red or right, and the brighter image wins."""
    if question.body.get("logprobs"):
        words = ("excellent", "Good") if "quality" in question.text else ("Yes", "No")
        return Reply(words[0], finish_reason="length", first_token=[(words[0], -0.05), (words[1], -3.5)])
    if "<score>" in question.text:
        count = 2 if "the circle is red" in question.text else 1  # the points of the sample, that of the warm-up
        return Reply(f"<analysis>{['seen'] * count}</analysis><score>{[1] * count}</score>")
    if not question.images:
        return Reply("It is right.\n\nScore: 9")
    return Reply(answer_about("<answer>Image {brighter} is better</answer>", question))
