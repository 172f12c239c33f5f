"""The UnifiedReward gateway as a process in front of a real vLLM server.

A random model does not know the answer's form, so a grammar in `--extra-body` gives it the form; which image wins, and
which number is given, stays the model's own doing, and asking vLLM directly says what it must be.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from services.kit.judge.content import image_part, text_part
from services.kit.judge.templates import own_template
from services.unifiedreward import prompts
from tests.support.gateways import metric, post, ready_status, score_request, unifiedreward_gateway
from tests.support.tiny_qwen3vl import token_ids

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = "a red square"
VERDICT = {"structured_outputs": {"regex": r"<think>[a-z]{8}</think><answer>Image [12] is better</answer>"}}
LONG_VERDICT = {"structured_outputs": {"regex": r"<think>[a-z]{500}</think><answer>Image [12] is better</answer>"}}
ASPECTS = {
    "structured_outputs": {
        "regex": r"Alignment Score \(1-5\): [1-4]\.[0-9]\nCoherence Score \(1-5\): [1-4]\.[0-9]\nStyle Score \(1-5\): [1-4]\.[0-9]"
    }
}


def pictures(count):
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (64, 32 * (1 + n % 3), 3), np.uint8)) for n in range(count)]


@pytest.fixture
def gateway(vllm):
    """Starts gateways: `gateway(kinds="flex")`."""
    running = []

    def start(extra=None, **flags):
        flags = {"cache_entries": 0, "order": "lower-first", **flags}
        context = unifiedreward_gateway(vllm.url, "judge", extra_body=json.dumps(extra or {}), **flags)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def score(url, body):
    response = post(f"{url}/v1/score", body)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def chat_body(images, text, extra, **more):
    content = [*(image_part(image, "jpeg") for image in images), text_part(text)]
    return {"model": "judge", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra, **more}


def ask_bare(vllm, images, text, extra):
    response = post(f"{vllm.url}/v1/chat/completions", chat_body(images, text, extra, max_tokens=700))
    return response.raise_for_status().json()["choices"][0]["message"]["content"]


def expected_win_rates(vllm, images, extra):
    """All pairs, the earlier image first, asked of vLLM directly; a win is a point, points are shared out by games."""
    text = own_template(prompts.THINK_PAIRWISE).fill(PROMPT)
    wins = [0] * len(images)
    for first, second in itertools.combinations(range(len(images)), 2):
        answer = ask_bare(vllm, [images[first], images[second]], text, extra)
        wins[first if "Image 1 is" in answer else second] += 1
    return [won / (len(images) - 1) for won in wins]


def test_win_rates_are_what_vllm_says_of_each_pair_in_the_stated_order(vllm, gateway):
    images = pictures(5)
    url = gateway(VERDICT)
    results = score(url, score_request(images, PROMPT, group=True))
    expected = expected_win_rates(vllm, images, VERDICT)
    assert [each["score"] for each in results] == pytest.approx(expected)
    assert len(set(expected)) > 1
    first = metric(url, "reward_judge_wins_total", reward="think_pairwise", position="first")
    second = metric(url, "reward_judge_wins_total", reward="think_pairwise", position="second")
    assert first + second == 10 + 1  # and the warm-up's pair
    assert metric(url, "reward_judge_calls_total", reward="think_pairwise", outcome="ok") == 11
    assert metric(url, "reward_judge_call_seconds_count") == 11


def test_numbers_are_what_vllm_says_of_each_image(vllm, gateway):
    images = pictures(6)
    url = gateway(ASPECTS, family="v2", kinds="pointwise")
    results = score(url, score_request(images, PROMPT))
    text = own_template(prompts.POINTWISE).fill(PROMPT)
    for image, result in zip(images, results, strict=True):
        said = [float(line.split()[-1]) for line in ask_bare(vllm, [image], text, ASPECTS).splitlines()]
        assert list(result["components"].values()) == pytest.approx(said)
        assert result["score"] == pytest.approx(sum(said) / 3)
    assert len({each["score"] for each in results}) > 1


def test_json_answers_are_held_to_their_schema(gateway):
    """The gateway's own schemas make a random model's answers readable; the bias only makes it come to an end."""
    ends = {'"': 90, "]": 70, "}": 50, ",": 40}
    bias = {"logit_bias": dict(zip(token_ids("".join(ends)), ends.values(), strict=True))}
    url = gateway(bias, family="flex", kinds="flex,edit_pointwise", max_tokens=1500)
    flex = score(url, score_request(pictures(3), PROMPT, group=True, reward="flex"))
    assert [each["error"] for each in flex] == [None] * 3
    assert sum(each["components"]["win_rate"] for each in flex) == pytest.approx(1.5)
    edits = score(url, score_request(pictures(2), PROMPT, source=pictures(3)[2], reward="edit_pointwise"))
    for each in edits:
        assert each["error"] is None and 0 <= each["score"] <= 25
        assert set(each["components"]) == {"success", "minimality", "naturalness", "cleanness"}


def test_cut_answers_and_answers_in_no_form_have_no_score(gateway):
    cut = gateway(LONG_VERDICT, max_tokens=100, check_model=False)
    for each in score(cut, score_request(pictures(3), PROMPT, group=True)):
        assert each["score"] is None and each["error"]["code"] == "truncated"
    assert metric(cut, "reward_judge_calls_total", reward="think_pairwise", outcome="truncated") == 3
    words = {"structured_outputs": {"regex": "[a-z]{20}"}}
    for each in score(gateway(words, check_model=False), score_request(pictures(3), PROMPT, group=True)):
        assert each["score"] is None and each["error"]["code"] == "parse_error"


def test_refused_calls_fail_alone_with_vllms_words(gateway):
    """An edit shows three images where the server takes two; comparisons of two go on beside it."""
    url = gateway(VERDICT, kinds="think_pairwise,edit_pair", check_model=False)
    edit = score_request(pictures(2), PROMPT, group=True, source=pictures(3)[2], reward="edit_pair")
    plain = score_request(pictures(4), PROMPT, group=True, reward="think_pairwise")
    with ThreadPoolExecutor(2) as threads:
        refused, scored = threads.map(lambda body: score(url, body), [edit, plain])
    for each in refused:
        assert each["score"] is None and each["error"]["code"] == "upstream"
        assert "At most 2 image(s) may be provided" in each["error"]["message"]
    assert sum(each["score"] for each in scored) == pytest.approx(2.0)
    assert ready_status(url) == 200


def same(answer):
    """What of a chat completion does not depend on when it was asked."""
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def test_clients_of_the_bare_server_get_its_answers_through_the_gateway(vllm, gateway):
    url = gateway(VERDICT)
    body = chat_body(pictures(2), "which?", {}, max_tokens=20, logprobs=True, top_logprobs=3)
    through, bare = (post(f"{each}/v1/chat/completions", body) for each in (url, vllm.url))
    assert through.status_code == bare.status_code == 200
    assert same(through.json()) == same(bare.json())
    models = [httpx.get(f"{each}/v1/models", trust_env=False).json()["data"][0]["id"] for each in (url, vllm.url)]
    assert models == ["judge", "judge"]
    refused = post(f"{url}/v1/chat/completions", chat_body(pictures(3), "which?", {}))
    assert refused.status_code == 400 and "At most 2 image(s)" in refused.json()["error"]["message"]


def test_streams_pass_through_piece_by_piece(vllm, gateway):
    body = chat_body(pictures(2), "which?", {}, max_tokens=20, stream=True)
    through, bare = (stream(each, body) for each in (gateway(VERDICT), vllm.url))
    assert through == bare
    assert len(through) > 10 and through[-1] == "[DONE]"


def stream(url, body):
    """The pieces of a streamed answer and its last line."""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]] + events[-1:]
