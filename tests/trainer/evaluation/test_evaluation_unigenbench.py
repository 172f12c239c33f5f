"""The trainer's table against the judge service's own, whose numbers are tested against the benchmark's aggregation."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from services.eval.dimensions import DIMENSIONS
from services.eval.prompts import Point as ServicePoint
from services.eval.prompts import Prompt as ServicePrompt
from services.eval.prompts import read_points
from services.eval.report import official_layout
from services.eval.table import Judged
from services.eval.table import tabulate as service_tabulate
from trainer.evaluation.outcomes import Outcome, Point
from trainer.evaluation.scoring import verdicts
from trainer.evaluation.unigenbench import MACRO, MICRO, Table, tabulate
from trainer.types import Prompt


def judged_images(language: str, prompts: int = 150, failing: float = 0.05) -> list[Judged]:
    """Random prompts of 1 to 5 points, four pictures each, some without verdicts."""
    rng = random.Random(0)
    images = []
    for index in range(prompts):
        names = [rng.choice(DIMENSIONS).named(language) for _ in range(rng.randint(1, 5))]  # type: ignore[arg-type]
        points, found = read_points(names, ["d"] * len(names))
        prompt = ServicePrompt(index, f"prompt {index}", points, found)
        for image in range(4):
            missing = rng.random() < failing
            given = None if missing else tuple(int(rng.random() < 0.6) for _ in points)
            # A tenth is lost to the benchmark's own tool, and a tenth reads there as failed.
            kind = rng.random()
            official = None if given is None or kind < 0.1 else tuple(0 for _ in given) if kind < 0.2 else given
            images.append(Judged(prompt, image, given, official))
    return images


def as_outcome(each: Judged) -> Outcome:
    """The picture as the trainer sees it: through the answer of the service."""
    prompt = Prompt(str(each.prompt.index), "p", metadata={"testpoints": [point.name for point in each.prompt.points]})
    failed = each.verdicts is None
    return Outcome(
        set="bench",
        index=each.prompt.index,
        duplicate=each.image,
        prompt_id=prompt.id,
        scores={"judge": None if each.verdicts is None else sum(each.verdicts) / len(each.verdicts)},
        errors={"judge": "parse_error"} if failed else {},
        points=verdicts(prompt, answer(each.prompt.points, each.verdicts, each.official)),
    )


def answer(
    points: tuple[ServicePoint, ...], given: tuple[int, ...] | None, official: tuple[int, ...] | None
) -> dict[str, object]:
    """What `Scores.details` has of the judge service's answer."""
    if given is None:
        return {"error": {"code": "parse_error", "message": "no <score>"}}
    return {
        "components": {f"point_{n}": float(verdict) for n, verdict in enumerate(given)},
        "points": [{"testpoint": point.name, "dimension": point.dimension.name} for point in points],
        "official": None if official is None else list(official),
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_is_the_services_own(language: str) -> None:
    """UniGenBench's aggregation (eval/src/eval_common.py of CodeGoat24/UniGenBench): failed pictures are dropped, a
    point counts once per picture, the leaderboard's overall is the mean of the primary dimensions."""
    images = judged_images(language)
    table = tabulate([as_outcome(each) for each in images], "judge")
    theirs = {(row.kind, row.name): row for row in service_tabulate(images, resamples=2000)}
    ours = {(row.kind, row.name): row for row in table.rows}
    assert ours.keys() == theirs.keys() and len(ours) == 2 + 10 + 27
    for key, row in theirs.items():
        mine = ours[key]
        assert (mine.correct, mine.judged, mine.asked) == (row.correct, row.judged, row.asked)
        assert mine.accuracy == pytest.approx(row.accuracy, abs=1e-12)
        assert (mine.official_correct, mine.official_judged) == (row.official_correct, row.official_judged)
        assert mine.official_accuracy == pytest.approx(row.official_accuracy, abs=1e-12)
        assert mine.official_judged < mine.judged
    for name in (MACRO, MICRO):
        mine, row = ours["overall", name], theirs["overall", name]
        assert mine.low == pytest.approx(row.low, abs=0.005) and mine.high == pytest.approx(row.high, abs=0.005)
        assert mine.official_low == pytest.approx(row.official_low, abs=0.005)
        assert mine.official_high == pytest.approx(row.official_high, abs=0.005)
    assert table.metrics("eval/bench")["eval/bench/overall_official"] == ours["overall", MACRO].official_accuracy
    official = official_layout(images)
    if language == "en":
        assert table.as_dict()["sub_dimensions"] == official["sub_dimensions"]
        names = {name.strip(): value for name, value in official["primary_dimensions"].items()}
        assert table.as_dict()["primary_dimensions"] == names
    failed = sum(each.verdicts is None for each in images)
    assert failed > 10 and table.failures == {"parse_error": failed}
    assert (table.pictures, table.answered) == (len(images), len(images) - failed)


def small(*rows: tuple[list[str], tuple[int, ...] | None]) -> Table:
    """One picture for each prompt."""
    prompts = [ServicePrompt(n, "p", *read_points(names, [""] * len(names))) for n, (names, _) in enumerate(rows)]
    images = [Judged(prompt, 0, given) for prompt, (_, given) in zip(prompts, rows, strict=True)]
    return tabulate([as_outcome(each) for each in images], "judge")


def test_a_small_table_by_hand() -> None:
    table = small(
        (["Style", "Attribute - Color"], (1, 0)),
        (["Attribute - Color", "Attribute - Size"], (1, 1)),
        (["Style", "Attribute - Color", "Attribute - Color"], None),
    )
    assert {(row.kind, row.name, row.correct, row.judged, row.asked, row.accuracy) for row in table.rows} == {
        ("overall", MACRO, 3, 4, 7, (1 + 2 / 3) / 2),
        ("overall", MICRO, 3, 4, 7, 3 / 4),
        ("primary", "Style", 1, 1, 2, 1.0),
        ("primary", "Attribute", 2, 3, 5, 2 / 3),
        ("sub", "Style", 1, 1, 2, 1.0),
        ("sub", "Attribute - Color", 1, 2, 4, 1 / 2),
        ("sub", "Attribute - Size", 1, 1, 1, 1.0),
    }
    row = table.metrics("eval/bench")
    assert row["eval/bench/overall"] == pytest.approx(5 / 6) and row["eval/bench/overall_micro"] == 0.75
    assert row["eval/bench/answered_share"] == pytest.approx(2 / 3)
    assert row["eval/bench/primary/Attribute"] == pytest.approx(2 / 3)


def test_a_chinese_point_that_was_never_judged_stays_in_its_primary_dimension() -> None:
    table = small((["属性-颜色", "风格"], (1, 0)), (["属性-形状"], None))
    rows = {(row.kind, row.name): (row.correct, row.judged, row.asked) for row in table.rows}
    assert rows["primary", "Attribute"] == (1, 1, 2) and rows["sub", "Attribute - 形状"] == (0, 0, 1)
    assert table.accuracy(MACRO) == 0.5, "the mean of Attribute and Style"


def test_a_name_nobody_judged_keeps_its_hyphens() -> None:
    table = small((["Style"], (1,)), (["Action -Non-contact  Interaction"], None))
    assert [row.name for row in table.rows if row.kind == "sub"] == ["Style", "Action - Non-contact Interaction"]


def test_a_dimension_of_which_nothing_was_judged_has_no_number_and_neither_has_the_mean() -> None:
    table = small((["Style"], (1,)), (["Grammar - Negation"], None))
    assert table.accuracy("Grammar - Negation") is None and table.accuracy(MACRO) is None
    assert table.accuracy(MICRO) == 1.0
    row = table.metrics("eval/b")
    assert "eval/b/overall" not in row and row["eval/b/overall_micro"] == 1.0 and "eval/b/primary/Grammar" not in row


def test_a_table_without_an_answer_is_written_all_the_same() -> None:
    table = small((["属性-颜色"], None), (["风格"], None))
    assert (table.answered, table.accuracy(MICRO)) == (0, None)
    assert [row.name for row in table.rows if row.kind == "primary"] == ["属性", "风格"]
    json.dumps(table.as_dict(), allow_nan=False)
    lines = list(csv.DictReader(io.StringIO(table.as_csv())))
    assert len(lines) == 6 and lines[2] == {
        "kind": "primary",
        "name": "属性",
        "correct": "0",
        "judged": "0",
        "asked": "1",
        "accuracy": "",
        "low": "",
        "high": "",
        "official_correct": "0",
        "official_judged": "0",
        "official_accuracy": "",
        "official_low": "",
        "official_high": "",
    }


def test_pictures_without_points_make_no_table() -> None:
    with pytest.raises(ValueError, match="no picture of this set has test points"):
        tabulate([Outcome("b", 0, 0, "p", {"judge": 0.5})], "judge")


def test_an_outcome_survives_its_file() -> None:
    outcome = as_outcome(judged_images("en", prompts=1)[0])
    assert Outcome.from_dict(json.loads(json.dumps(outcome.as_dict()))) == outcome
    assert isinstance(outcome.points[0], Point)
