"""Answers of rollout servers, against a stand-in that fails in all the ways that real ones were seen to."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.scripted_vllm import LOGP, ScriptedVllm
from tests.support.waiting import wait_until
from tests.trainer.policies.tokens.test_token_policy import make_policy
from trainer.policies.tokens.draw import Reading, TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.server.client import Server
from trainer.policies.tokens.server.drawer import ServerDrawer, Surroundings
from trainer.policies.tokens.server.pool import ATTEMPTS, Pool
from trainer.policies.tokens.server.publisher import Publisher
from trainer.policies.tokens.server.versions import Adapters, Transfer, WholeWeights
from trainer.programs.rollout import Drawn
from trainer.types import Prompt, StopTrainingError

PLAN = TokenPlan(micro_batch_size=64, max_new_tokens=6)
SEEDS = list(range(100, 116))


@pytest.fixture(scope="module")
def policy(vlm_folder: Path) -> TokenPolicy:
    return make_policy(vlm_folder)


@pytest.fixture(scope="module")
def readings(policy: TokenPolicy, pictures: list[str]) -> list[Reading]:
    texts = ["what color ?", "which ?", "how many red ?", "say nothing"]
    return [policy.model.read(Prompt(text, text, source_images=tuple(pictures[:n]))) for n, text in enumerate(texts)]


class Rig:
    """A drawer with its scripted servers."""

    def __init__(
        self,
        policy: TokenPolicy,
        readings: Sequence[Reading],
        folder: Path,
        count: int,
        transfer: Transfer,
        **fields: Any,
    ) -> None:
        self.readings, self.notes = readings, list[str]()
        self.servers = [ScriptedVllm() for _ in range(count)]
        expansions = {tuple(policy.model.tokenizer(each.text)["input_ids"]): each.ids_T.tolist() for each in readings}
        for server in self.servers:
            server.expand = lambda ids: next(
                (full + ids[len(short) :] for short, full in expansions.items() if tuple(ids[: len(short)]) == short),
                ids,
            )
        self.stop = False
        clients = [Server(each.url, max_in_flight=4, timeout_s=20, push_timeout_s=20) for each in self.servers]
        patience_s = fields.pop("patience_s", 30.0)
        pool = Pool(
            clients, max_in_flight=4, patience_s=patience_s, notify=self.notes.append, stop_asked=lambda: self.stop
        )
        self.publisher = Publisher(clients, transfer, None, self.notes.append)
        self.publisher.start()
        around = Surroundings(
            collect=lambda: dict(policy.model.network.named_parameters()),
            logp=lambda reading, tokens: torch.full((len(tokens),), LOGP),
            meet=lambda: None,
            start="run",
            folder=folder / "weights",
            dtype=torch.float32,
            tolerance=1e-3,
            **fields,
        )
        self.drawer = ServerDrawer(policy.model, pool, transfer, self.publisher, around, readings[1])

    def draw(self) -> list[Any]:
        return self.drawer.draw(self.readings, 4, SEEDS, PLAN)

    def close(self) -> None:
        self.publisher.stop()
        for server in self.servers:
            server.kill()


@pytest.fixture
def rig(policy: TokenPolicy, readings: list[Reading], tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    number = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(count: int = 1, transfer: Transfer | None = None, **fields: Any) -> Rig:
            made = Rig(
                policy, readings, tmp_path / str(next(number)), count, transfer or WholeWeights("policy"), **fields
            )
            stack.callback(made.close)
            return made

        yield make


def words(answers: Sequence[Any]) -> list[list[int]]:
    return [answer.tokens_S.tolist() for answer in answers]


def test_every_request_says_all_that_decides_an_answer(rig: Callable[..., Rig], policy: TokenPolicy) -> None:
    made = rig()
    answers = made.draw()
    bodies = [
        body for path, body in made.servers[0].asked if path.endswith("generate") and "seed" in body["sampling_params"]
    ]
    assert sorted(body["sampling_params"]["seed"] for body in bodies) == SEEDS
    one = next(
        body for body in bodies if body["sampling_params"]["seed"] == SEEDS[9]
    )  # of the third prompt, two images
    params, banned = one["sampling_params"], policy.model.banned_N.tolist()
    assert set(params["logit_bias"]) == {str(each) for each in banned} and set(params["logit_bias"].values()) == {
        -100.0
    }
    assert params["ignore_eos"] and params["stop_token_ids"] == policy.model.ends and params["logprobs"] == 0
    assert (params["temperature"], params["top_p"], params["top_k"], params["max_tokens"]) == (1.0, 1.0, 0, 6)
    image = policy.model.tokenizer.convert_tokens_to_ids("<image>")
    assert one["token_ids"].count(image) == 2 == len(one["content_parts"]) and one["return_token_ids"]
    assert [answer.version for answer in answers] == [0] * 16 and all(answer.finished for answer in answers)
    assert all(torch.equal(answer.logp_S, torch.full_like(answer.logp_S, LOGP)) for answer in answers)


def test_weights_are_pushed_proved_and_named_before_anything_is_drawn(
    rig: Callable[..., Rig], policy: TokenPolicy
) -> None:
    made = rig()
    made.draw()
    made.drawer.weights_changed(7)
    answers = made.draw()
    server = made.servers[0]
    routes = [path for path, body in server.asked if path not in ("/weight_info",) and "seed" not in str(body)]
    push = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
    assert routes == 2 * [*push, *["/inference/v1/generate"] * 3, "/update_weight_version"]
    assert {answer.version for answer in answers} == {7} and server.label == "run.2"
    proof = [body["weight_version"] for path, body in server.asked if path == "/finish_weight_update"]
    assert proof == ["run.1?", "run.2?"], "no process may take weights for proved before they are"
    kept = sorted(each.name for each in Path(server.folder).parent.iterdir())
    assert kept == ["run.1", "run.2"]
    made.drawer.weights_changed(8)
    made.draw()
    assert sorted(each.name for each in Path(server.folder).parent.iterdir()) == ["run.2", "run.3"]


def test_a_push_whose_probe_differs_is_no_push(rig: Callable[..., Rig]) -> None:
    """Every route answers 200, and the server computes something else: it is not drawn from until a push is proved."""
    made = rig(2)
    made.servers[0].probe = lambda request: LOGP - 0.01
    answers = made.draw()
    assert len(answers) == 16
    asked = [body for path, body in made.servers[0].asked if "seed" in body.get("sampling_params", {})]
    assert not asked
    wait_until(lambda: any("differ by 0.01" in note and made.servers[0].url in note for note in made.notes))
    made.servers[0].probe = lambda request: LOGP
    wait_until(lambda: made.servers[0].label == "run.1")
    made.draw()
    assert any("seed" in body.get("sampling_params", {}) for _, body in made.servers[0].asked)


def test_a_dead_server_is_named_and_its_share_drawn_by_the_others(rig: Callable[..., Rig]) -> None:
    alone, made = rig(), rig(2)
    right = words(alone.draw())
    made.draw()
    made.servers[1].kill()
    assert words(made.draw()) == right
    assert sum(made.servers[1].url in note and "others draw its share" in note for note in made.notes) == 1


def test_one_step_off_two_servers_draw_a_step_ahead_and_the_lag_is_known(
    rig: Callable[..., Rig], policy: TokenPolicy, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pipeline goes: step 2 is drawn before the update of step 1, step 3 before that of step 2, with a server that was killed
    in between and comes back with its first weights."""
    made = rig(2)
    monkeypatch.setattr(policy, "_given_drawer", made.drawer)
    texts = ["what color ?", "which ?", "how many red ?", "say nothing"]
    prompts = [Prompt(text, text, source_images=tuple(pictures[:n])) for n, text in enumerate(texts)]

    def ahead() -> Drawn:
        return Drawn(
            cast(Any, None), list(policy.sample(prompts, 4, SEEDS, PLAN)), cast(Any, None), {}, SEEDS, PLAN, 0.0, 0.0
        )  # type: ignore[arg-type]

    first, second = ahead(), ahead()
    made.drawer.weights_changed(1)
    made.servers[0].kill()
    made.servers[0].start()
    third = ahead()
    made.drawer.weights_changed(2)
    assert [each.version_lag(step) for step, each in enumerate((first, second.stale(), third.stale()))] == [
        {"rollout/weight_version_lag": lag} for lag in (0.0, 1.0, 1.0)
    ]
    with pytest.raises(StopTrainingError, match="1 updates old, and 0"):
        second.version_lag(1)  # had nobody said that it is a step behind
    drawn = [sum("seed" in body.get("sampling_params", {}) for _, body in server.asked) for server in made.servers]
    assert sum(drawn) >= 3 * len(SEEDS) and min(drawn) > 0, "both take their share"


def test_a_server_that_was_started_again_gets_the_weights_before_it_draws(rig: Callable[..., Rig]) -> None:
    """It comes back with the weights it was started with; the first one to notice is whoever looks first."""
    made = rig()
    right = words(made.draw())
    made.drawer.weights_changed(3)
    made.draw()
    server = made.servers[0]
    server.kill()
    server.start()
    before = len(server.asked)
    answers = made.draw()
    assert words(answers) == right and {answer.version for answer in answers} == {3}
    drawn_by = [body for path, body in server.asked[before:] if "seed" in body.get("sampling_params", {})]
    assert server.label == "run.2" and len(drawn_by) >= 16
    assert server.asked[before:].index(("/update_weights", {"update_info": {"folder": server.folder}})) >= 0


def test_killed_in_the_middle_of_a_draw_nothing_is_lost_and_nothing_stale(rig: Callable[..., Rig]) -> None:
    made, right = rig(), words(rig().draw())
    server, started = made.servers[0], threading.Event()

    def dies(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any] | None:
        if "seed" in request["sampling_params"] and server.count("/inference/v1/generate") > 8:
            started.set()
            return None
        return answer

    server.script = dies

    def restart() -> None:
        started.wait(20)
        server.kill()
        server.script = lambda request, answer: answer
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    answers = made.draw()
    thread.join()
    assert words(answers) == right and server.label == "run.1" and {answer.version for answer in answers} == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choice: choice.update(finish_reason="abort"), "finish_reason is abort"),
        (lambda choice: choice["logprobs"]["content"][0].update(logprob=-9999.0), "its weights have become NaN"),
        (lambda choice: choice["token_ids"].__setitem__(0, 3), "log-probabilities of"),
        (lambda choice: choice.update(logprobs=None), "lacks what was asked for"),
        (lambda choice: choice.update(finish_reason="length"), "finish_reason is length, but the last token"),
        (
            lambda choice: choice.update(
                weight_versions=[{"version": "run.1", "start": 0, "end": 1}, {"version": "run.2", "start": 1, "end": 2}]
            ),
            "weights changed while it was drawn: run.1, run.2",
        ),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_never_trained_on(
    rig: Callable[..., Rig], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    made = rig()
    spoiled: list[int] = []

    def spoil(times: int) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
        def script(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
            seed = request["sampling_params"].get("seed")
            if seed == SEEDS[5] and len(spoiled) < times:
                spoiled.append(seed)
                change(answer["choices"][0])
            return answer

        return script

    made.servers[0].script = spoil(ATTEMPTS - 1)
    assert len(made.draw()) == 16 and len(spoiled) == ATTEMPTS - 1
    spoiled.clear()
    made.servers[0].script = spoil(ATTEMPTS)
    with pytest.raises(StopTrainingError, match="no answer of 4 was fit to train on") as failed:
        made.draw()
    assert message in str(failed.value) and made.servers[0].url in str(failed.value)


def test_a_banned_token_is_no_answer(rig: Callable[..., Rig], policy: TokenPolicy) -> None:
    made, image = rig(), policy.model.tokenizer.convert_tokens_to_ids("<image>")

    def draws_placeholders(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        choice = answer["choices"][0]
        choice["token_ids"][0] = choice["logprobs"]["content"][0]["token_id"] = image
        return answer if "seed" in request["sampling_params"] else made.servers[0]._generate(request)

    made.servers[0].script = draws_placeholders
    with pytest.raises(StopTrainingError, match=f"it drew token {image}, which logit_bias forbids"):
        made.draw()


def test_another_processor_is_found_at_the_first_answer(rig: Callable[..., Rig]) -> None:
    made = rig()
    right = made.servers[0].expand
    made.servers[0].expand = lambda ids: [*right(ids), 5]
    with pytest.raises(StopTrainingError, match=r"must be those of policy\.pretrained"):
        made.draw()


def test_a_refused_prompt_ends_the_draw_and_is_named(rig: Callable[..., Rig]) -> None:
    made = rig()
    made.servers[0].script = lambda request, answer: 400 if "seed" in request["sampling_params"] else answer
    with pytest.raises(
        StopTrainingError, match=r"answer \d+ of 16, prompt '<turn> user.* cannot be drawn: .*400: scripted 400"
    ):
        made.draw()


def test_a_push_that_fails_leaves_the_server_paused_and_out(rig: Callable[..., Rig]) -> None:
    made = rig(2)
    made.draw()
    made.servers[0].failing = {"/update_weights"}
    made.drawer.weights_changed(1)
    before = len(made.servers[0].asked)
    answers = made.draw()
    assert {answer.version for answer in answers} == {1} and made.servers[0].paused
    assert not any("seed" in str(body) for _, body in made.servers[0].asked[before:])
    made.servers[0].failing = set()
    wait_until(lambda: any("has the weights run.2 now" in note for note in made.notes))
    assert made.servers[0].label == "run.2" and not made.servers[0].paused


def test_where_no_server_can_draw_the_run_waits_and_then_stops(rig: Callable[..., Rig]) -> None:
    made = rig(2, patience_s=1.0)
    made.draw()
    for server in made.servers:
        server.kill()
    with pytest.raises(
        StopTrainingError, match=r"no rollout server could draw for sampling.vllm.patience_s = 1 s"
    ) as failed:
        made.draw()
    assert all(server.url in str(failed.value) for server in made.servers)
    made.stop = True
    with pytest.raises(StopTrainingError, match="asked to stop while no rollout server could draw"):
        made.draw()


def test_adapters_have_a_new_name_each_time(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: Any, tensors: dict[str, Tensor], folder: Path) -> None:
        folder.mkdir(parents=True)

    monkeypatch.setattr("trainer.policies.tokens.server.drawer.write_adapter", write)
    made = rig(transfer=Adapters("policy"))
    made.draw()
    made.drawer.weights_changed(1)
    answers = made.draw()
    server = made.servers[0]
    assert server.adapters == ["run.2"] and {answer.version for answer in answers} == {1}
    assert not {"/pause", "/update_weights"} & {path for path, _ in server.asked}, "no dev mode is needed"
    assert {body["model"] for path, body in server.asked if "seed" in str(body)} == {"run.1", "run.2"}
    server.kill()
    server.start()
    assert {answer.version for answer in made.draw()} == {1} and server.adapters == ["run.2"]
