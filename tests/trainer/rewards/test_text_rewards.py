"""Texts and their rewards, from the client to a real rules service and back: the same contract as for images."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.kit.scorer import Item, Score
from services.rules.lengths import Lengths
from services.rules.scorer import RulesScorer
from tests.support.reward_servers import SCORER, Reply, good, misbehaving
from tests.support.service_process import ready_service
from trainer.config import RewardsConfig
from trainer.config.service_names import REWARDS
from trainer.doctor.load import _measure, _unseen
from trainer.rewards import LocalServices, RewardClient, RewardServiceError, TapeRecorder, resolve_urls
from trainer.rewards.answers import Answer
from trainer.rewards.asked import Asked, Requests
from trainer.rewards.canary import canary_call, judge, probes
from trainer.rewards.transport import ServiceCaller
from trainer.types import Prompt, Sample, Scores
from wire.schema import ScoreRequest

# A reward file as users of TRL and NanoVLM-Lab have it.
FILE = """
def accuracy_reward(prompts, completions, completion_ids, answer, **columns):
    return [None if level == "open" else float(a in c) for c, a, level in zip(completions, answer, columns["level"])]


def short_reward(completions, completion_ids, **kwargs):
    if "crash" in completions:
        raise RuntimeError("asked to")
    return [float("nan") if c == "nan" else -float(len(ids)) for c, ids in zip(completions, completion_ids)]


def forgotten_reward(completions, **kwargs):
    return [0.0] * len(completions)
"""
UNLIKE = """
from services.rules import reward

@reward(range=(0, 1), grouped=True)
def unlike(completions, **columns):
    return [1 - completions.count(text) / len(completions) for text in completions]
"""
COLUMNS = {
    "accuracy": {"reward": "answer"},
    "format": {"reward": "answer_format"},
    "length": {"reward": "overlong"},
    "theirs": {"reward": "accuracy_reward"},
    "short": {"reward": "short_reward", "canary": "score"},
    "unlike": {"reward": "unlike", "canary": "score"},
}
TEXTS = [
    "<answer>red disc</answer>",
    "<answer>Red disc.",
    "blue bar",
    "",
    "crash",
    "nan",
    "x" * 5000,
    "\u0664 red disc",
]
OF_TEXTS = Requests(dict.fromkeys(COLUMNS, (Asked(4, 4),)), frozenset(COLUMNS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("reward files")
    paths = [folder / "reward_functions.py", folder / "unlike.py"]
    for path, text in zip(paths, (FILE, UNLIKE), strict=True):
        path.write_text(text)
    return paths


@pytest.fixture(scope="module")
def url(files: list[Path]) -> Iterator[str]:
    listed = f"{files[0]}:accuracy_reward,short_reward"
    flags = ["--functions", listed, "--functions", files[1], "--max-length", "12", "--overlong-buffer", "4"]
    with ready_service("rules", *flags) as address:
        yield address


def config(**rewards: Any) -> RewardsConfig:
    columns = {name: {"service": "rules", "max_failure_rate": 1.0, **column} for name, column in COLUMNS.items()}
    service = {"urls": ["http://127.0.0.1:9"], "timeout_s": 30.0, **rewards.pop("service", {})}
    return RewardsConfig.model_validate({"services": {"rules": service}, "columns": columns, **rewards})


def samples(texts: list[str], *, first: int = 0, level: str = "easy") -> list[Sample]:
    """Groups of four, each text with as many tokens as words and its end."""
    weights = dict.fromkeys(COLUMNS, 1.0)
    prompt = Prompt("p", "what is left of the bar ?", weights=weights, targets=("red disc",), metadata={"level": level})
    return [
        Sample(
            f"s{n}", f"g{n // 4}", replace(prompt, id=f"p{n // 4}"), text=text, tokens=(7,) * (len(text.split()) + 1)
        )
        for n, text in enumerate(texts, first)
    ]


def scored(client: RewardClient, drawn: list[Sample], step: int = 1) -> Scores:
    batch = client.batch(group_size=4, step=step)
    for start in range(0, len(drawn), 2):  # less than a group
        batch.submit(drawn[start : start + 2])
    return batch.collect()


def column(scores: Scores, name: str) -> list[float | None]:
    place = list(scores.names).index(name)
    pairs = zip(scores.scores_BR[:, place].tolist(), scores.valid_BR[:, place].tolist(), strict=True)
    return [score if valid else None for score, valid in pairs]


def check(scores: Scores) -> None:
    """What the rewards say of TEXTS."""
    assert column(scores, "accuracy") == [1, 1, 0, 0, 0, 0, 0, 0]
    assert column(scores, "format") == [1, 0, 0, 0, 0, 0, 0, 0]
    assert column(scores, "theirs") == [1, 0, 0, 0, 0, 0, 0, 1]
    assert column(scores, "short") == [-3, -3, -3, -1, None, None, -2, -4], "the crash and the NaN are no numbers"
    assert column(scores, "length") == [0] * 8
    assert column(scores, "unlike") == [0.75] * 8, "a whole group in one call, though it came in pieces"
    assert scores.failures["short"] == {"internal": 1, "non_finite": 1}
    assert scores.details[4]["short"]["error"]["message"] == "short_reward raised RuntimeError: asked to"


def test_texts_are_scored_over_http_and_a_failed_reward_is_masked(url: str) -> None:
    events = []
    with RewardClient(config(), urls={"rules": [url]}, on_event=events.append, requests=OF_TEXTS) as client:
        [warning] = [event for event in events if event.kind == "warning"]
        assert warning.subject == "theirs" and "takes the column 'level'" in warning.message, "which the probes lack"
        scores = scored(client, samples(TEXTS))
        check(scores)
        assert scores.stop_reason is None
        open_ended = scored(client, samples(TEXTS[:4], first=8, level="open"), step=2)
        assert column(open_ended, "theirs") == [None] * 4
        assert open_ended.not_applicable["theirs"] == 4 and not open_ended.failures["theirs"], "None is no failure"
        again = scored(client, samples(TEXTS[:4], first=12), step=3)
        assert again.cached == dict.fromkeys(COLUMNS, 4), "the same texts and ids, under other names"
        other = [replace(sample, tokens=(*sample.tokens, 8)) for sample in samples(TEXTS[:4], first=16)]
        assert column(scored(client, other, step=4), "short") == [-4, -4, -4, -2], "other ids are another input"
    hints = [event.message for event in events if event.kind == "hint"]
    assert len(hints) == 1 and "forgotten_reward. List those that are" in hints[0]


def test_a_run_starts_the_service_itself(files: list[Path], tmp_path: Path) -> None:
    functions = f"{files[0]}:accuracy_reward,short_reward,{files[1]}"
    args = {"functions": functions, "max_length": 12, "overlong_buffer": 4}
    local = config(launch="local", service={"urls": [], "module": "rules", "args": args}, ready_timeout_s=300)
    with LocalServices(local, tmp_path / "logs", notify=lambda line: None) as services:
        urls = resolve_urls(local, services.urls)
        with RewardClient(local, urls=urls, requests=OF_TEXTS) as client:
            check(scored(client, samples(TEXTS)))


def test_a_tape_replays_the_scores_of_texts_and_knows_other_texts(url: str, tmp_path: Path) -> None:
    tape = TapeRecorder(tmp_path / "tape", rank=0, world_size=1, last_train=-1, last_evaluation=-1)
    with RewardClient(config(), urls={"rules": [url]}, tape=tape, requests=OF_TEXTS) as client:
        before = scored(client, samples(TEXTS))
    replaying = config(tape={"mode": "replay", "path": str(tmp_path / "tape")})
    with RewardClient(replaying, urls={}) as client:
        after = scored(client, samples(TEXTS))
        other = scored(client, samples(["said otherwise", *TEXTS[1:4]]))
    assert after.scores_BR.equal(before.scores_BR) and after.valid_BR.equal(before.valid_BR)
    assert after.details == before.details
    assert column(other, "accuracy") == [None, 1, 0, 0] and other.failures["accuracy"] == {"not_on_tape": 1}


@pytest.mark.parametrize(
    ("fault", "code"), [("never", "timeout"), ("status_503", "unavailable"), ("garbage", "invalid_response")]
)
def test_a_service_of_texts_that_fails_gives_no_numbers(fault: str, code: str) -> None:
    """Deadline and attempts are those of every reward."""
    with misbehaving(fault=fault) as server:
        tree = config(service={"timeout_s": 0.5, "connect_timeout_s": 0.2, "max_attempts": 2}, canary=False)
        tree = tree.model_copy(
            update={"columns": {"accuracy": tree.columns["accuracy"].model_copy(update={"reward": None})}}
        )
        with RewardClient(tree, urls={"rules": [server.url]}, requests=OF_TEXTS) as client:
            drawn = [replace(s, prompt=replace(s.prompt, weights={"accuracy": 1.0})) for s in samples(TEXTS)]
            scores = scored(client, drawn)
            assert not scores.valid_BR.any() and scores.failures["accuracy"] == {code: 8}


@pytest.mark.parametrize(("reward", "measured"), [("accuracy", True), ("theirs", False)])
def test_the_doctor_measures_a_reward_of_texts_by_probes_of_texts(url: str, reward: str, measured: bool) -> None:
    """`theirs` needs a column that the probes lack: how long it takes is not known."""
    tree = config()

    async def measure() -> float | None:
        caller = ServiceCaller("rules", tree.services["rules"], [url], lambda event: None)
        try:
            return await _measure(caller, tree.columns[reward], texts=True)
        finally:
            await caller.aclose()

    seconds = asyncio.run(measure())
    assert (seconds is not None and seconds > 0) is measured
    one, other = (_unseen(probes(texts=True)[0]) for _ in range(2))
    assert one.prompt.metadata != other.prompt.metadata and one.text == other.text, "no cache knows it"


OF_IMAGES = ("color_match", "side_by_side", "jpeg_compressibility", "jpeg_incompressibility")
TEXT_REWARDS = [name for name in REWARDS["rules"] if name not in OF_IMAGES]


@pytest.mark.parametrize("lengths", [Lengths(), Lengths("words"), Lengths("characters", 500, 600, 10)])
@pytest.mark.parametrize("reward", TEXT_REWARDS)
def test_every_reward_of_texts_tells_the_probes_apart(reward: str, lengths: Lengths) -> None:
    call = canary_call("rgb8", reward, texts=True)
    sent = ScoreRequest.model_validate_json(call.body(1000, "r")).items
    items = [
        Item(
            each.id, each.prompt, completion=each.completion, targets=tuple(each.targets or ()), metadata=each.metadata
        )
        for each in sent
    ]
    results = RulesScorer(lengths=lengths).score(reward, items)
    answers = {
        item.id: Answer(result.value) if isinstance(result, Score) else Answer(None, result.code.value, result.message)
        for item, result in zip(items, results, strict=True)
    }
    assert judge(answers, must_differ=True) == (None, None)


def test_the_probes_of_texts_are_pairs_of_three_questions() -> None:
    drawn = probes(texts=True)
    assert [sample.id for sample in drawn] == [
        f"canary-{name}-{side}" for name in ("letter", "number", "json") for side in ("right", "wrong")
    ]
    assert all(sample.text and sample.tokens and not sample.images for sample in drawn)
    assert len({sample.group_id for sample in drawn}) == 3


def started(connect: Any, server: Any, canary: str = "differ") -> Any:
    client = connect(server, columns={"r": {"canary": canary}}, start=False)
    client._requests = Requests({"r": (Asked(4, 4),)}, frozenset({"r"}))
    client.start()
    return client


def answering(**scores: float | str) -> Any:
    """A server of one score, or failure, for each question; `differ` tells its two texts apart."""

    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request, lambda item: 0.0)
        for result in reply.body["results"]:
            outcome = scores[re.findall(r"letter|number|json", result["id"])[0]]
            if outcome == "differ":
                result["score"] = float("right" in result["id"])
            elif isinstance(outcome, str):
                result |= {"score": None, "error": {"code": outcome, "message": "because"}}
            else:
                result["score"] = outcome
        reply.body["scorer"] = {**SCORER, "range": [0, 1]}
        return reply

    return behave


def test_one_pair_that_is_told_apart_is_enough(scripted: Any, connect: Any) -> None:
    server = scripted(answering(letter="bad_input", number="differ", json="internal"))
    server.info.body["rewards"] = [{**SCORER, "range": [0, 1]}]
    client = started(connect, server)
    assert client.said("warning") == []
    (request,) = server.requests
    assert {item["completion"][:7] for item in request["items"]} == {"<think>", '{"color', "That is"}
    assert [len(item["metadata"]["completion_ids"]) for item in request["items"]] == [12, 48] * 3


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            dict(letter=0.5, number="bad_input", json=0.5),
            "both probes score 0.5, a right answer and one that says nothing",
        ),
        (dict(letter="internal", number="bad_input", json="bad_input"), "a probe has no score: internal: because"),
        (dict(letter="differ", number=7.0, json="differ"), "a probe scores 7.0, outside the range [0.0, 1.0]"),
    ],
)
def test_a_wrong_reward_of_texts_is_found(scripted: Any, connect: Any, scores: dict[str, Any], words: str) -> None:
    server = scripted(answering(**scores))
    server.info.body["rewards"] = [{**SCORER, "range": [0, 1]}]
    with pytest.raises(RewardServiceError, match=re.escape(words)):
        started(connect, server)


def test_probes_that_no_question_suits_are_a_warning(scripted: Any, connect: Any) -> None:
    server = scripted(answering(letter="bad_input", number="not_applicable", json="bad_input"))
    server.info.body["rewards"] = [{**SCORER, "range": [0, 1]}]
    assert "the probes could not be judged (bad_input: because)" in started(connect, server).said("warning")[0]
