"""What every service offers to be tried: its samples score well, and so do the examples of its OpenAPI document."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.kit.catalogue import DEPLOYED
from services.kit.openapi import FOLDER
from services.kit.testing.fakes import ConstantScorer
from tests.support.every_service import JUDGED, OWN_MODEL, WEIGHTS, every_service
from tests.support.serving_here import serving_here
from wire.schema import ScoreRequest

# In every run those that docker compose starts on a CPU; the others import a network's library each.
DEFAULT = (*OWN_MODEL, *JUDGED)
SERVICES = [
    name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted((*OWN_MODEL, *JUDGED, *WEIGHTS))
]


@pytest.fixture(scope="module", params=SERVICES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service's name and URL."""
    with every_service(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield request.param, url


def test_every_deployed_service_is_here() -> None:
    assert sorted((*OWN_MODEL, *JUDGED, *WEIGHTS)) == sorted(entry.name for entry in DEPLOYED)


def test_every_sample_and_every_example_scores_well(service: tuple[str, str]) -> None:
    """Of each reward that is served: the request of /v1/sample, and the two bodies of the document, JSON and multipart."""
    name, url = service
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        info = client.get("/v1/info").json()
        rewards = [each["name"] for each in info["rewards"]]
        content = client.get("/openapi.json").json()["paths"]["/v1/score"]["post"]["requestBody"]["content"]
        in_json, in_parts = (content[kind]["examples"] for kind in ("application/json", "multipart/form-data"))
        assert list(in_json) == list(in_parts) == rewards, "one of each reward, in their order"
        for reward in rewards:
            given = client.get("/v1/sample", params={"reward": reward})
            assert given.status_code == 200, given.text
            scores = _scores(client.post("/v1/score", content=given.content, headers=JSON))
            assert _scores(client.post("/v1/score", json=in_json[reward]["value"])) == scores
            named = in_parts[reward]["value"]["request"]
            parts = _parts(named, in_json[reward]["value"])
            answer = client.post("/v1/score", files={"request": (None, json.dumps(named)), **parts})
            assert _scores(answer) == scores
            _assert_good(name, reward, scores)
        assert client.get("/v1/sample").json()["reward"] == info["default_reward"]
        lost = client.get("/v1/sample", params={"reward": "nothing"})
        assert (lost.status_code, lost.json()["error"]["field"]) == (404, "reward")


def test_the_document_is_the_committed_one_with_the_examples_of_what_is_served(service: tuple[str, str]) -> None:
    name, url = service
    committed = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    served = httpx.get(f"{url}/openapi.json", timeout=60, trust_env=False).json()
    assert without_examples(served) == without_examples(committed)
    if name not in ("geneval", "regression"):  # whose examples are as the detector and the recipe are
        found, known = (tree["paths"]["/v1/score"]["post"]["requestBody"]["content"] for tree in (served, committed))
        for kind in found:
            assert found[kind]["examples"].items() <= known[kind]["examples"].items()


JSON = {"content-type": "application/json"}


def _parts(named: dict[str, Any], whole: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    """The multipart parts that a request names, with the images of the same request in JSON."""
    found = {}
    for of_parts, of_json in zip(named["items"], whole["items"], strict=True):
        for field in ("images", "source_images"):
            for part, ref in zip(of_parts.get(field, []), of_json.get(field, []), strict=True):
                found[part["part"]] = ("image.png", base64.b64decode(ref["data"]))
    return found


def _scores(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [result["error"] for result in results] == [None] * len(results), results
    return [result["score"] for result in results]


def _assert_good(name: str, reward: str, scores: list[float]) -> None:
    samples = import_module(f"services.{name}.samples").samples()
    good = next(iter(samples.values())).good if reward not in samples else samples[reward].good
    if good is not None:
        assert scores[0] >= good and scores[0] == max(scores), (reward, scores)
        if name in JUDGED and len(scores) > 1:
            assert scores[0] > scores[1], "the one that was asked for wins"


def without_examples(tree: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for media in tree["paths"]["/v1/score"]["post"]["requestBody"]["content"].values():
        media.pop("examples", None)
    return tree


def test_a_reward_whose_author_gave_no_sample_says_so() -> None:
    with serving_here(ConstantScorer()) as url:
        answer = httpx.get(f"{url}/v1/sample", trust_env=False)
        content = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]["/v1/score"]["post"]["requestBody"]
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "the reward 'constant' has no sample: its author gave none",
    )
    assert all("examples" not in media for media in content["content"].values())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_document_says_all_of_every_route(path: Path) -> None:
    """Schemas of requests and answers, a refusal's body and code for each status, who may ask, and where."""
    tree = json.loads(path.read_text("utf-8"))
    assert tree["openapi"].startswith("3.1") and tree["info"]["license"]["identifier"] == "Apache-2.0"
    port = next(entry.port for entry in DEPLOYED if entry.name == path.stem)
    assert [server["url"] for server in tree["servers"]] == ["./", f"http://127.0.0.1:{port}"]
    assert tree["components"]["securitySchemes"]["bearer"] | {"description": ""} == {
        "type": "http",
        "scheme": "bearer",
        "description": "",
    }
    routes = {
        (method, route): operation for route, methods in tree["paths"].items() for method, operation in methods.items()
    }
    open_routes = {("get", "/health"), ("get", "/ready")}
    assert set(routes) == open_routes | {
        ("post", "/v1/score"),
        ("get", "/v1/sample"),
        ("get", "/v1/info"),
        ("get", "/metrics"),
    }
    for place, operation in routes.items():
        assert operation["security"] == ([] if place in open_routes else [{"bearer": []}, {}])
        assert operation["summary"] and operation["operationId"] and operation["tags"]
        for status, answer in operation["responses"].items():
            [(kind, media)] = answer["content"].items()
            assert media["schema"], (place, status)
            if status != "200":
                assert media["schema"] == {"$ref": "#/components/schemas/ErrorBody"} and kind == "application/json"
                error = media["example"]["error"]
                assert error["code"] in tree["components"]["schemas"]["RequestError"]["properties"]["code"]["examples"]
    for example in routes["post", "/v1/score"]["requestBody"]["content"]["application/json"]["examples"].values():
        ScoreRequest.model_validate(example["value"])
