"""Every committed OpenAPI file against a real service: requests made from it, right and wrong, are never a bug."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
FOLDER = Path(__file__).resolve().parents[4] / "docs" / "openapi"
FILES = sorted(FOLDER.glob("*.json"))
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
# How a service of that name starts without weights or a server of its own; for the others stands a scorer of ours, once.
STARTS = {"ocr": ("services.ocr", "--mode", "line"), "rules": ("services.rules",)}
STAND_IN = ("services.kit.testing.fakes", "--behaviour", "fail_every_nth")
# The files differ in a name alone, as a test below says: one real service in the default run.
SLOW = ("ocr", "clip")
ASKED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in FILES
    if path.stem in ("rules", *SLOW)
]


@pytest.fixture(scope="module")
def url_of(serving_factory):
    """Starts each kind of service once."""
    started = {}

    def url(name):
        module, *flags = STARTS.get(name, STAND_IN)
        if module not in started:
            context = serving_factory(*flags, "--max-wait-ms", "0", module=module)
            started[module] = (context, context.__enter__())
            started[module][1].wait_ready(60)
        return started[module][1].url

    yield url
    for context, _ in started.values():
        context.__exit__(None, None, None)


def test_every_service_has_a_file():
    assert {path.stem for path in FILES} >= {"ocr", "rules"}


def test_the_files_differ_in_name_port_and_examples_alone():
    """So what holds of one holds of all, and not each has to be asked everything."""
    named = [(path.stem, json.loads(path.read_text("utf-8"))) for path in FILES]
    assert all(name in tree["info"]["title"] for name, tree in named)
    for _, tree in named:
        tree["info"]["title"] = tree["servers"] = ""
        for media in tree["paths"]["/v1/score"]["post"]["requestBody"]["content"].values():
            assert media.pop("examples")
    assert len({json.dumps(tree) for _, tree in named}) == 1


@pytest.mark.parametrize("path", ASKED)
def test_no_request_is_a_server_error(url_of, path):
    url, asked = url_of(path.stem), []
    session = requests.Session()
    for found in schemathesis.openapi.from_path(path).get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and operation.method == "get":
                continue  # takes no input to get wrong

            @seed(1)
            @settings(
                max_examples=25 if operation.method == "post" else 3,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                answer = case.call(base_url=url, session=session)
                if answer.status_code == 504 and "deadline_ms" in str(case.body):
                    return  # the request itself allows a millisecond
                asked.append(answer.status_code)
                case.validate_response(answer, checks=CHECKED)

            check()
    assert not [status for status in asked if status >= 500]
    assert len(asked) > 40 and {200, 422} <= set(asked)
