"""The VQA gateway before a judge that names its first tokens: what becomes a score, and what has none."""

from __future__ import annotations

import hashlib
import math
import pickle
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from services.kit.app import create_app
from services.kit.judge.passthrough import PassThrough
from services.kit.testing.scripted_judge import Reply
from services.vqa.questions import QUALITY, YES_NO
from services.vqa.scorer import VqaScorer
from services.vqa.settings import VqaSettings
from tests.support.gateways import score_request
from tests.support.judges import judging
from tests.support.legacy_clients import flow_grpo, jpeg
from tests.support.redis_services import until
from tests.support.service_process import ready_service

ROOT = Path(__file__).resolve().parents[3]
DOT = Image.new("RGB", (8, 8), "red")
REWARDS = ["vqa_yes", "vqa_yes_ratio", "deqa", "deqa_over_5"]
YES = {"Yes": 0.5, " yes": 0.125, "YES": 0.025, "No": 0.2, "no": 0.05, "Yesterday": 0.06, "I": 0.04}
LEVELS = {"Good": 0.4, " good": 0.1, "Excellent": 0.25, "FAIR": 0.125, "\u0120Bad": 0.025, "The": 0.1}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def begins_with(chances):
    """An answer that begins with one of these tokens; cut after the first, as vLLM cuts at one token."""
    likeliest = sorted(chances.items(), key=lambda each: -each[1])
    tokens = tuple((token, math.log(p)) for token, p in likeliest)
    return Reply(likeliest[0][0], finish_reason="length", first_token=tokens)


def sure(question):
    """Answers either question."""
    return begins_with(LEVELS if "quality" in question.text else YES)


@asynccontextmanager
async def client_of(behave, **more):
    with judging(behave) as judge:
        settings = VqaSettings(judge_url=judge.url, cache_entries=0, **{"check_model": False, **more})
        scorer = VqaScorer(settings)
        app = create_app(scorer, "vqa", settings, add_routes=PassThrough(scorer.client, 2).add_routes)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                await until(lambda: app.state.service.ready or app.state.service.failure)
                client.judge, client.service = judge, app.state.service
                yield client


async def scored(client, reward, prompt="a red dot", images=(DOT,)):
    answer = await client.post("/v1/score", json=score_request(list(images), prompt, reward=reward))
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.parametrize(
    ("reward", "right", "words"),
    [
        ("vqa_yes", 0.65, {"yes": 0.65, "no": 0.25}),
        ("vqa_yes_ratio", 0.65 / 0.9, {"yes": 0.65, "no": 0.25}),
        (
            "deqa",
            (5 * 0.25 + 4 * 0.5 + 3 * 0.125 + 1 * 0.025) / 0.9,
            {"excellent": 0.25, "good": 0.5, "fair": 0.125, "poor": 0, "bad": 0.025},
        ),
        (
            "deqa_over_5",
            (5 * 0.25 + 4 * 0.5 + 3 * 0.125 + 1 * 0.025) / 0.9 / 5,
            {"excellent": 0.25, "good": 0.5, "fair": 0.125, "poor": 0, "bad": 0.025},
        ),
    ],
)
async def test_scores_are_the_published_formulas_of_the_first_tokens_probabilities(reward, right, words):
    """A token counts as the word in any case and with a space; "Yesterday" and "The" do not."""
    async with client_of(sure) as client:
        [result] = await scored(client, reward)
    assert result["error"] is None and result["score"] == pytest.approx(right)
    assert result["components"] == pytest.approx(words)
    assert result["details"]["likeliest"].startswith(("'Yes' 0.5, 'No' 0.2", "'Good' 0.4, 'Excellent' 0.25"))


async def test_the_judge_is_asked_for_one_token_of_one_image_and_its_twenty_likeliest():
    async with client_of(sure) as client:
        await scored(client, "vqa_yes", "a {red} <<PROMPT>> dot")
        await scored(client, "deqa", "a {red} dot")
    about_prompt, about_quality = client.judge.questions
    for question in (about_prompt, about_quality):
        body = question.body
        assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0, True, 20)
        assert [image.size for image in question.images] == [(8, 8)]
    assert about_prompt.text == YES_NO.replace("{prompt}", "a {red} <<PROMPT>> dot")
    assert about_quality.text == QUALITY and "red" not in QUALITY


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (begins_with({"I": 0.9, "Yes": 0.004, "no": 0.003, "good": 0.004}), "an answer needs 0.01"),
        (begins_with({"<think>": 1.0}), "if it reasons first, switch that off with --extra-body"),
        (Reply("Yes, it does."), "the judge sent no log-probabilities"),
        (Reply("", first_token=()), "the judge sent no log-probabilities"),
    ],
)
async def test_an_answer_in_other_words_has_no_score(reward, reply, words):
    async with client_of(lambda _question: reply) as client:
        [result] = await scored(client, reward)
        metrics = (await client.get("/metrics")).text
    assert result["score"] is None and result["error"]["code"] == "parse_error"
    assert words in result["error"]["message"]
    assert f'reward_judge_calls_total{{outcome="parse_error",reward="{reward}"}} 1.0' in metrics


@pytest.mark.parametrize("logprob", [math.nan, 0.5, "high", None])
async def test_what_is_no_log_probability_is_no_answer(logprob):
    """JSON as Python writes it has NaN."""
    async with client_of(lambda _question: Reply("Yes", first_token=(("Yes", logprob),))) as client:
        [result] = await scored(client, "vqa_yes")
        assert client.judge.calls == 1, "it was answered, and asking again would not help"
    assert result["score"] is None and result["error"]["code"] == "upstream"


async def test_rounding_does_not_bring_a_score_above_its_range():
    tokens = (("Yes", 4e-4), ("yes", math.log(1e-3)))
    async with client_of(lambda _question: Reply("Yes", first_token=tokens)) as client:
        [result] = await scored(client, "vqa_yes")
    assert result["score"] == pytest.approx(1.0) and result["score"] <= 1.0


async def test_what_cannot_be_asked_has_no_score_and_no_call():
    async with client_of(sure) as client:
        [empty] = await scored(client, "vqa_yes", prompt=" ")
        two = score_request([DOT], "a dot", reward="vqa_yes")
        two["items"][0]["images"] *= 2
        [both] = (await client.post("/v1/score", json=two)).json()["results"]
        [quality] = await scored(client, "deqa", prompt="")
        assert client.judge.calls == 1, "for the one that needs no prompt"
    assert (empty["error"]["code"], both["error"]["code"]) == ("not_applicable", "bad_input")
    assert quality["score"] == pytest.approx(3.65 / 0.9)


async def test_rewards_say_their_range_template_and_revision(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text('Is this "{prompt}"?')
    async with client_of(sure, template=file, model="judge") as client:
        info = (await client.get("/v1/info")).json()
        await scored(client, "vqa_yes", "a dot")
    assert client.judge.questions[-1].text == 'Is this "a dot"?'
    ranges = {each["name"]: each["range"] for each in info["rewards"]}
    assert ranges == {"vqa_yes": [0, 1], "vqa_yes_ratio": [0, 1], "deqa": [1, 5], "deqa_over_5": [0.2, 1]}
    hashes = {each["name"]: each["template_sha256"] for each in info["rewards"]}
    assert hashes["vqa_yes"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert hashes["deqa"] == hashlib.sha256(QUALITY.encode()).hexdigest()
    assert all('"model":"judge"' in each["revision"] for each in info["rewards"])


@pytest.mark.parametrize(
    ("flag", "text", "words"),
    [
        ("template", "Is it right?", "--template .* has no {prompt}: put it where the prompt goes"),
        ("template", " ", "needs at least a word"),
        ("deqa_template", "Is {prompt} good?", "--deqa-template .* take it out"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path, flag, text, words):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        VqaScorer(VqaSettings(**{flag: tmp_path / "mine.txt"}))


async def test_a_model_that_answers_in_other_words_does_not_start():
    async with client_of(lambda _question: begins_with({"I": 0.99}), check_model=True) as client:
        assert client.service.failure is not None and "an answer needs 0.01" in client.service.failure
    async with client_of(sure, check_model=True) as client:
        assert client.service.ready and client.judge.calls == 2, "one call for each question"


async def test_clients_without_prompts_get_the_quality_and_no_other_reward():
    for reward, status in [("deqa_over_5", 200), ("vqa_yes", 422)]:
        async with client_of(sure, legacy=True, legacy_reward=reward) as client:
            answer = await client.post("/", content=pickle.dumps({"images": [jpeg(DOT)]}))
        assert answer.status_code == status
        if status == 200:
            assert pickle.loads(answer.content)["outputs"] == [pytest.approx(3.65 / 0.9 / 5)]


def test_the_documented_command_serves_flow_grpos_deqa_client():
    with (
        judging(sure) as judge,
        ready_service("vqa", "--judge-url", judge.url, "--legacy", "--legacy-reward", "deqa_over_5") as url,
    ):
        assert flow_grpo(url, [DOT] * 2) == [pytest.approx(3.65 / 0.9 / 5)] * 2


def test_a_key_file_that_is_not_there_ends_the_start_with_a_sentence():
    command = [sys.executable, "-m", "services.vqa", "--port", "0", "--judge-key-file", "missing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "judge_key_file missing cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
