"""Other trainers' clients against real service processes: the scores of /v1/score, and errors they understand."""

from __future__ import annotations

import base64
import math
import os
import pickle

import httpx
import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw, ImageFont

from services.kit.app import create_app
from services.kit.scorer import Failure, Score
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import ConstantScorer, FakeScorer, PromptLengthScorer
from tests.support.legacy_clients import deepgen_rl, flow_factory, flow_grpo, jpeg, png64, verl_omni
from wire.schema import ErrorCode, ScorerInfo

TEXTS = ["READY", "OPEN", "SALE", "HELLO", "EXIT", "PARIS"]
PROMPTS = [f'a sign that says "{text}"' for text in [*TEXTS[:-1], "LONDON"]]


def sign(text):
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), text, font=ImageFont.load_default(32), fill="black", anchor="mm")
    return image


IMAGES = [sign(text) for text in TEXTS]


def v1_scores(url, encoded, media_type):
    items = [
        {
            "id": str(n),
            "prompt": prompt,
            "images": [{"data": base64.b64encode(data).decode(), "media_type": media_type}],
        }
        for n, (prompt, data) in enumerate(zip(PROMPTS, encoded, strict=True))
    ]
    answer = httpx.post(f"{url}/v1/score", json={"items": items}, timeout=300)
    return [result["score"] for result in answer.json()["results"]]


@pytest.fixture(scope="module")
def ocr(serving_factory):
    with serving_factory("--mode", "line", "--legacy", module="services.ocr") as server:
        server.wait_ready(60)
        yield server.url


@pytest.fixture(scope="module")
def by_v1(ocr):
    scores = v1_scores(ocr, [jpeg(image) for image in IMAGES], "image/jpeg")
    assert scores[0] == 1 and scores[-1] < 1
    return scores


def test_flow_grpo_gets_the_same_scores(ocr, by_v1):
    assert flow_grpo(ocr, IMAGES, PROMPTS) == by_v1


@pytest.mark.anyio
async def test_verl_omni_gets_the_same_scores(ocr, by_v1):
    assert [await verl_omni(ocr, *pair) for pair in zip(IMAGES, PROMPTS, strict=True)] == by_v1


@pytest.mark.parametrize("workers", [1, 4])
def test_deepgen_rl_gets_the_same_scores(ocr, by_v1, workers):
    assert deepgen_rl(ocr, IMAGES, PROMPTS, workers) == by_v1


def test_flow_factory_gets_the_same_scores(ocr):
    pngs = [base64.b64decode(png64(image)) for image in IMAGES]
    assert flow_factory(ocr, IMAGES, PROMPTS) == v1_scores(ocr, pngs, "image/png")


def test_flow_factory_servers_own_spelling_is_taken(ocr):
    request = {"prompts": PROMPTS, "images": [png64(image) for image in IMAGES], "extra": {"note": "x"}}
    answer = requests.post(f"{ocr}/compute", json=request, timeout=300)
    assert answer.json()["rewards"] == flow_factory(ocr, IMAGES, PROMPTS)


class Picky(FakeScorer):
    """The number of images and source images of an item; a prompt that is an error code fails with it."""

    name = "picky"

    def __init__(self):
        super().__init__()
        self.seen = []

    def score_item(self, item):
        self.seen.append(item)
        if item.prompt in list(ErrorCode):
            return Failure(ErrorCode(item.prompt), "as asked")
        return Score(10.0 * len(item.images) + len(item.source_images))


class Grouped(ConstantScorer):
    """A reward that compares, beside one that does not."""

    @property
    def rewards(self):
        info = ScorerInfo(name="pairs", revision="1", range=(0, 1), grouped=True)
        return {"pairs": info, "single": ScorerInfo(name="single", revision="1", range=(0, 1))}


DOT = Image.new("RGB", (4, 4), "red")


def body(prompts, /, **more):
    return {"images": [jpeg(DOT)] * len(prompts), "prompts": prompts, "metadata": {}} | more


async def pickled(client, tree, **headers):
    data = tree if isinstance(tree, bytes) else pickle.dumps(tree)
    answer = await client.post("/", content=data, headers=headers)
    return answer, pickle.loads(answer.content)


anyio = pytest.mark.anyio


@anyio
async def test_off_unless_asked_for(running):
    async with running(PromptLengthScorer()) as client:
        assert (await client.post("/", content=pickle.dumps(body(["x"])))).status_code in (404, 405)
        assert (await client.post("/compute", json={})).status_code == 404


@anyio
async def test_edits_send_sources_beside_the_edited_images(running):
    scorer = Picky()
    async with running(scorer, legacy=True) as client:
        tree = body(["x", "y"], images={"source": [jpeg(DOT)] * 2, "edited": [jpeg(DOT)] * 2})
        answer, value = await pickled(client, tree)
        by_json = await client.post(
            "/compute",
            json={"prompt": ["x"], "image": [png64(DOT)], "condition_images": [[png64(DOT), png64(DOT)]]},
        )
    assert (answer.status_code, value["scores"]) == (200, [11.0, 11.0])
    assert by_json.json() == {"rewards": [12.0]}


@anyio
async def test_metadata_is_shared_or_one_each(running):
    scorer = Picky()
    shared = {"tag": "colour", "deep": (1, [2.5, None])}
    async with running(scorer, legacy=True, cache_entries=0) as client:
        await pickled(client, body(["a", "b"], metadata=shared))
        await pickled(client, body(["c", "d"], metadata=[{"n": 1}] * 2))
        await client.post(
            "/compute",
            json={"prompt": ["e", "f"], "image": [png64(DOT)] * 2, "kwargs": {"n": [1, 2], "all": "x"}},
        )
    found = {item.prompt: item.metadata for item in scorer.seen}
    assert found["a"] == found["b"] == {"tag": "colour", "deep": [1, [2.5, None]]}
    assert found["c"] == found["d"] == {"n": 1}
    assert (found["e"], found["f"]) == ({"n": 1, "all": "x"}, {"n": 2, "all": "x"})


@anyio
async def test_metadata_sent_once_is_not_multiplied_without_limit(running):
    """A thousand small images that share a few hundred kilobytes would become gigabytes."""
    large = {"k": [0] * 100_000}
    tree = {"images": [b"x"] * 1000, "prompts": ["p"] * 1000, "metadata": large}
    by_json = {"prompt": ["p"] * 1000, "image": ["x"] * 1000, "kwargs": large | {"each": [1] * 1000}}
    async with running(PromptLengthScorer(), legacy=True) as client:
        answer, value = await pickled(client, tree)
        other = await client.post("/compute", json=by_json)
    assert answer.status_code == other.status_code == 413
    assert value["error"] == "metadata: 300007000 characters of JSON when dealt out to 1000 items; the limit is 4194304"
    assert other.json()["error"]["field"] == "kwargs"


PERMANENT = ["bad_input", "not_applicable", "parse_error", "truncated", "non_finite", "internal"]


@anyio
@pytest.mark.parametrize("code", [*PERMANENT, "timeout", "overloaded", "upstream"])
async def test_a_missing_score_is_an_error_not_a_number(running, code):
    status = 422 if code in PERMANENT else 503
    async with running(Picky(), legacy=True) as client:
        answer, value = await pickled(client, body(["fine", code]))
        by_json = await client.post("/compute", json={"prompt": ["fine", code], "image": [png64(DOT)] * 2})
    assert answer.status_code == by_json.status_code == status
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert list(value) == ["error"]
    assert "1 of 2 items have no score" in value["error"] and f"item 1: {code}: as asked" in value["error"]
    assert by_json.json()["error"] == {"code": "no_score", "message": value["error"]}


@anyio
async def test_what_may_pass_does_not_hide_what_will_not(running):
    async with running(Picky(), legacy=True) as client:
        answer, value = await pickled(client, body(["timeout", "bad_input", "upstream", "timeout", "x"]))
    assert answer.status_code == 422
    assert "4 of 5" in value["error"] and "and 1 more" in value["error"]


@anyio
async def test_nan_where_it_is_asked_for(running):
    async with running(Picky(), legacy=True, legacy_missing="nan") as client:
        _, value = await pickled(client, body(["fine", "upstream"]))
        by_json = await client.post("/compute", json={"prompt": ["upstream"], "image": [png64(DOT)]})
    assert value["scores"][0] == 10 and math.isnan(value["scores"][1])
    assert by_json.json() == {"rewards": [None]}, "JSON has no NaN, and simplejson reads none"


WRONG = {
    "not a pickle": (b"hello", 400, "not a pickle"),
    "json": (b'{"images": []}', 400, "not a pickle"),
    "numpy prompts": (body(np.array(["x"])), 400, "tolist"),
    "a list": ([1], 422, "a dict with `images`"),
    "no images": ({"prompts": ["x"]}, 422, "there are no `images`"),
    "no dict": ([1], 422, "a dict with `images`"),
    "nothing": (body([]), 422, "nothing to score"),
    "images kind": (pickle.dumps({"images": b"x", "prompts": ["x"]}), 422, "one entry per item is needed, not bytes"),
    "misspelt images": (
        pickle.dumps({"image": [b"x"]}),
        422,
        "there are no `images`; did you mean `images` by `image`?",
    ),
    "misspelt edited": (pickle.dumps({"images": {"edit": []}}), 422, "did you mean `edited` by `edit`?"),
    "count": (body(["x"], prompts=["x", "y"]), 422, "2 entries for 1 items"),
    "pixels": (body(["x"], images=[[1, 2]]), 422, "bytes of a JPEG, PNG or WebP file, not as list"),
    "prompt kind": (body(["x"], prompts=[5]), 422, "valid string"),
    "prompts kind": (body(["x"], prompts="x"), 422, "one entry per item is needed, not str"),
    "metadata kind": (body(["x"], metadata="x"), 422, "dictionary"),
    "bytes in metadata": (body(["x"], metadata={"k": b"x"}), 422, "JSON"),
    "too many": (body(["x"] * 9), 413, "9 items; the limit is 8"),
    "not an image": (body(["x"], images=[b"hello"]), 422, "bad_input: images.0: not a readable image/jpeg"),
}


@anyio
@pytest.mark.parametrize("name", WRONG)
async def test_wrong_requests_are_answered_in_their_own_form(running, name):
    tree, status, message = WRONG[name]
    async with running(PromptLengthScorer(), legacy=True, max_items=8) as client:
        answer, value = await pickled(client, tree)
    assert answer.status_code == status
    assert message in value["error"]


WRONG_JSON = {
    "not json": (b"x", 400, "not JSON"),
    "list": ([], 422, "an object"),
    "video": ({"prompt": ["x"], "video": [["x"]]}, 422, "videos are not scored"),
    "no image": ({"prompt": ["x"]}, 422, "one entry per item is needed, not NoneType"),
    "prompt": ({"prompt": "x", "image": ["x"]}, 422, "one entry per item is needed, not str"),
    "misspelt image": ({"imge": ["x"]}, 422, "there are no `image`; did you mean `image` by `imge`?"),
    "not base64": ({"prompt": ["x"], "image": ["ä"]}, 422, "not base64"),
    "number": ({"prompt": ["x"], "image": [5]}, 422, "valid string"),
    "conditions": ({"prompt": ["x"], "image": ["x"], "condition_images": [5]}, 422, "valid list"),
    "kwargs": ({"prompt": ["x"], "image": ["x"], "kwargs": [1]}, 422, "an object is needed"),
    "many": ({"prompt": ["x"] * 9, "image": ["x"] * 9}, 413, "9 items"),
    "many conditions": ({"prompt": ["x"], "image": ["x"], "condition_images": [["x"] * 99]}, 413, "99 images"),
}


@anyio
@pytest.mark.parametrize("name", WRONG_JSON)
async def test_wrong_compute_requests(running, name):
    tree, status, message = WRONG_JSON[name]
    sent = {"content": tree} if isinstance(tree, bytes) else {"json": tree}
    async with running(PromptLengthScorer(), legacy=True, max_items=8) as client:
        answer = await client.post("/compute", **sent)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@anyio
async def test_a_pickled_command_is_not_run(running, tmp_path):
    async with running(PromptLengthScorer(), legacy=True) as client:
        answer, value = await pickled(client, {"images": [Command(tmp_path / "made")], "prompts": ["x"]})
    assert answer.status_code == 400
    assert "posix.mkdir" in value["error"] and "runs nothing" in value["error"]
    assert not (tmp_path / "made").exists()


def test_a_reward_that_compares_is_refused_at_start():
    with pytest.raises(ValueError, match=r"'pairs' compares .* --legacy-reward: single"):
        create_app(Grouped(), "test", ServiceSettings(legacy=True))
    with pytest.raises(ValueError, match="'other' is no reward"):
        create_app(Grouped(), "test", ServiceSettings(legacy=True, legacy_reward="other"))


@anyio
async def test_another_reward_is_chosen_at_start(running):
    scorer = Grouped()
    scorer.warmup = lambda: []
    async with running(scorer, legacy=True, legacy_reward="single") as client:
        _, value = await pickled(client, body(["x", "y"]))
    assert value == {"scores": [0.5, 0.5], "outputs": [0.5, 0.5]}


@anyio
async def test_bearer_or_a_password_in_the_url(running, tmp_path):
    """These clients have no place for a header, but every HTTP library takes a password from the URL."""
    file = tmp_path / "tokens"
    file.write_text("lab:aaaaaaaaaaaaaaaaaaaa\n")
    basic = lambda text: f"Basic {base64.b64encode(text.encode()).decode()}"  # noqa: E731
    async with running(PromptLengthScorer(), legacy=True, token_file=file) as client:
        for given, status in [
            ("Bearer aaaaaaaaaaaaaaaaaaaa", 200),
            (basic("anyone:aaaaaaaaaaaaaaaaaaaa"), 200),
            (basic(":aaaaaaaaaaaaaaaaaaaa"), 200),
            (basic("aaaaaaaaaaaaaaaaaaaa:"), 401),
            (basic("lab:wrong"), 401),
            ("Basic ===", 401),
            ("Basic aaaaaaaaaaaaaaaaaaaa", 401),
        ]:
            answer = await client.post("/", content=pickle.dumps(body(["x"])), headers={"Authorization": given})
            assert answer.status_code == status, given
        other = await client.get("/v1/info", headers={"Authorization": basic(":aaaaaaaaaaaaaaaaaaaa")})
        assert other.status_code == 401, "passwords are for the legacy paths only"


@pytest.fixture
def failing(serving):
    """A service of which every second item fails."""
    with serving("--behaviour", "fail_every_nth", "--every", "2", "--legacy", "--cache-entries", "0") as server:
        server.wait_ready()
        yield server.url


@anyio
async def test_each_client_stops_at_a_missing_score(failing):
    """None of them goes on with a number, and none retries for hours."""
    dots, prompts = [DOT] * 2, ["ab", "abcd"]
    with pytest.raises(KeyError, match="outputs"):
        flow_grpo(failing, dots, prompts)
    with pytest.raises(RuntimeError, match="HTTP 422: 1 of 1 items have no score"):
        for _ in range(2):
            await verl_omni(failing, DOT, "x")
    with pytest.raises(requests.HTTPError, match="422"):
        deepgen_rl(failing, dots, prompts)
    with pytest.raises(RuntimeError, match="HTTP 422"):
        flow_factory(failing, dots, prompts)


def test_flow_grpo_waits_for_a_service_that_loads(serving, monkeypatch):
    """A 503 with Retry-After, which its HTTP library honours."""
    with serving("--behaviour", "prompt_length", "--legacy") as server:
        assert flow_grpo(server.url, [DOT], ["four"], tries=10) == [4.0]


def test_flow_grpo_sends_no_prompts_to_quality_scorers(serving):
    with serving("--behaviour", "constant", "--value", "0.25", "--legacy") as server:
        server.wait_ready()
        assert flow_grpo(server.url, [DOT] * 70) == [0.25] * 70


def test_a_password_in_the_url_works_for_the_clients(serving, tmp_path):
    file = tmp_path / "tokens"
    file.write_text("lab:aaaaaaaaaaaaaaaaaaaa\n")
    with serving("--behaviour", "prompt_length", "--legacy", "--token-file", str(file)) as server:
        server.wait_ready()
        url = server.url.replace("http://", "http://lab:aaaaaaaaaaaaaaaaaaaa@")
        assert deepgen_rl(url, [DOT], ["four"]) == flow_grpo(url, [DOT], ["four"]) == [4.0]
        assert flow_factory(url, [DOT], ["four"]) == [4.0]
        with pytest.raises(requests.HTTPError, match="401"):
            deepgen_rl(server.url, [DOT], ["four"])
