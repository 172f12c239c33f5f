"""flow_grpo's request for GenEval (`meta_datas`): its clients get the lists and groups that their own server sends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.shapes_detector import draw
from services.geneval.detector import Found
from services.geneval.scorer import GenevalScorer
from services.kit.app import create_app
from services.kit.dispatch.workers import ProcessPool
from services.kit.legacy.plain_pickle import dump_plain, load_plain
from services.kit.models.sources import inspect_folder
from services.kit.settings import ServiceSettings
from tests.support.legacy_clients import flow_grpo_geneval, jpeg
from tests.support.redis_services import until
from tests.support.service_process import ready_service

DETECTOR = Path(__file__).with_name("shapes_detector")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class DetectorOfTheWidth:
    """Finds what `sights` says of an image of that width."""

    classes: frozenset[str] | None = frozenset({"dog", "cup"})

    def __init__(self, sights: Mapping[int, Sequence[str]]) -> None:
        self._sights = sights

    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        seen = self._sights.get(image.width, [])
        boxes = [(name, Found((20.0 * place, 0.0, 20.0 * place + 10, 10.0, 0.95))) for place, name in enumerate(seen)]
        return {name: [found for each, found in boxes if each == name] for name in names}


SIGHTS = {8: ["dog"], 16: ["dog", "cup", "cup"], 24: ["dog", "dog", "dog"]}
IMAGES = [jpeg(Image.new("RGB", (width, 8))) for width in SIGHTS]
ROWS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {
        "tag": "two_object",
        "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1}],
        "prompt": "a photo of a dog and a cup",
    },
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 1}],
        "exclude": [{"class": "dog", "count": 2}],
        "prompt": "a photo of one dog",
    },
]
COLOUR = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"}


@pytest.fixture
def geneval(monkeypatch: pytest.MonkeyPatch) -> GenevalScorer:
    monkeypatch.setattr("services.geneval.detector.load_detector", lambda *_given: DetectorOfTheWidth(SIGHTS))
    return GenevalScorer(inspect_folder(DETECTOR, "--detector", ("owlvit",)), device="cpu")


@asynccontextmanager
async def client_of(scorer: GenevalScorer, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(scorer, "geneval", ServiceSettings(legacy=True, **more))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await until(lambda: app.state.service.ready)
            yield client


async def ask(client: httpx.AsyncClient, images: Sequence[bytes] = IMAGES, **fields: Any) -> tuple[int, Any]:
    """The status and what the answer's pickle holds."""
    body = {"images": images, "meta_datas": ROWS, "only_strict": False, **fields}
    answer = await client.post("/", content=dump_plain({name: each for name, each in body.items() if each is not None}))
    return answer.status_code, load_plain(answer.content)


def in_groups(**numbers: Mapping[int, float] | Sequence[float]) -> dict[str, list[float]]:
    """-10 wherever the image is of another task."""
    tags = [row["tag"] for row in ROWS]
    [values] = numbers.values()
    return {task: [values[n] if tag == task else -10.0 for n, tag in enumerate(tags)] for task in TASKS}


async def test_the_answer_is_that_of_the_published_server(geneval: GenevalScorer) -> None:
    async with client_of(geneval) as client:
        status, tree = await ask(client)
    assert status == 200
    assert tree == {
        "scores": [1.0, 0.5, -1.0],  # one dog; a dog and two cups for one; three dogs for one
        "rewards": [1.0, 1.0, 0.0],  # the benchmark wants at least as many, and no second dog where it counts
        "strict_rewards": [1.0, 0.0, 0.0],
        "group_rewards": in_groups(rewards=[1.0, 1.0, 0.0]),
        "group_strict_rewards": in_groups(strict=[1.0, 0.0, 0.0]),
    }
    assert tree["group_rewards"]["counting"] == [-10.0, -10.0, 0.0] and tree["group_rewards"]["colors"] == [-10.0] * 3


async def test_only_strict_leaves_the_benchmarks_verdict_out_as_there(geneval: GenevalScorer) -> None:
    async with client_of(geneval) as client:
        _, whole = await ask(client)
        _, tree = await ask(client, only_strict=True)
        status, unsaid = await ask(client, only_strict=None)
    assert tree["rewards"] == [0.0] * 3 and tree["group_rewards"] == in_groups(rewards=[0.0] * 3)
    assert all(tree[name] == whole[name] for name in ("scores", "strict_rewards", "group_strict_rewards"))
    assert (status, unsaid) == (200, whole)


async def test_the_rows_choose_the_reward_whatever_is_the_one_of_prompts(geneval: GenevalScorer) -> None:
    async with client_of(geneval, legacy_reward="geneval_strict") as client:
        assert (await ask(client))[1]["scores"] == [1.0, 0.5, -1.0]


async def test_one_image_without_a_score_fails_the_request_and_may_be_nan(geneval: GenevalScorer) -> None:
    """It asks for a colour, and there is no CLIP."""
    rows = [ROWS[0], COLOUR, ROWS[2]]
    async with client_of(geneval) as client:
        status, tree = await ask(client, meta_datas=rows)
    assert status == 422 and list(tree) == ["error"] and "item 1: not_applicable: a colour is asked" in tree["error"]
    async with client_of(geneval, legacy_missing="nan") as client:
        for only_strict in (False, True):
            status, tree = await ask(client, meta_datas=rows, only_strict=only_strict)
            assert status == 200
            for values in (tree["scores"], tree["rewards"], tree["strict_rewards"]):
                assert [math.isnan(value) for value in values] == [False, True, False]
            for groups in (tree["group_rewards"], tree["group_strict_rewards"]):
                assert math.isnan(groups["colors"][1]) and groups["colors"][::2] == [-10.0] * 2
                assert groups["single_object"][1:] == [-10.0] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"meta_datas": ROWS[:2]}, "2 entries for 3 items"),
        ({"meta_datas": ROWS[0]}, "a list with one entry per item is needed, not dict"),
        ({"meta_datas": [*ROWS[:2], "a dog"]}, "a row is a dict, not str"),
        ({"only_strict": "yes"}, "meta_datas: only_strict must be true or false, not str"),
        (
            {"meta_datas": [*ROWS[:2], {"tag": "counting", "include": [{"class": "dog", "count": 0}]}]},
            "include[0].count",
        ),
        ({"meta_datas": [*ROWS[:2], {"tag": "counting"}]}, "metadata has no include"),
        ({"meta_datas": [*ROWS[:2], {**ROWS[2], "prompt": 5}]}, "items.2.prompt: "),
        ({"meta_datas": [*ROWS[:2], {**ROWS[2], "blob": b"x"}]}, "items.2.metadata"),
        ({"images": [], "meta_datas": []}, "there is nothing to score"),
    ],
)
async def test_what_is_no_such_request_is_refused_with_the_field(
    geneval: GenevalScorer, fields: dict[str, Any], words: str
) -> None:
    async with client_of(geneval) as client:
        status, tree = await ask(client, **fields)
    assert status == 422 and words in tree["error"], tree


def test_worker_processes_serve_the_rows_too() -> None:
    """A pool says of its scorer what the scorer says of itself."""
    source = inspect_folder(DETECTOR, "--detector", ("owlvit",))
    assert ProcessPool(lambda: GenevalScorer(source, device="cpu"), 2).legacy_rows is GenevalScorer.legacy_rows


@pytest.mark.slow
def test_the_documented_command_serves_flow_grpos_client() -> None:
    """The small detector finds drawn shapes; 65 images are two requests."""
    images = [draw(seed, ["circle"])[0] for seed in range(65)]
    row = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
    with ready_service("geneval", "--detector", DETECTOR, "--device", "cpu", "--legacy") as url:
        scores, rewards, strict, group_rewards, group_strict = flow_grpo_geneval(url, images, [row] * 65, False)
    assert len(scores) == len(rewards) == len(strict) == 65 and sum(rewards) > 50
    assert group_rewards["single_object"] == rewards and group_strict["single_object"] == strict
    assert group_rewards["position"] == [-10.0] * 65
