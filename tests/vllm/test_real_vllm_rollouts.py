"""Rollouts of a real vLLM server: what it draws is what the policy says, before and after weights are pushed.

One server for the module. Bounds are of float32 on both sides; measured differences are 2e-6 to 8e-6.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.vllm_server import ROOT, RUN_VARIABLES, VllmServer, missing
from tests.trainer.policies.tokens.test_token_policy import make_policy
from trainer.engine.whole import whole_weights
from trainer.policies.tokens.draw import Reading, TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.server.client import Server, ServerError
from trainer.policies.tokens.server.drawer import ServerDrawer, Surroundings
from trainer.policies.tokens.server.launch import Serving
from trainer.policies.tokens.server.pool import Pool
from trainer.policies.tokens.server.publisher import Publisher
from trainer.policies.tokens.server.versions import Adapters, Transfer, WholeWeights
from trainer.types import Prompt, Rollout

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("alone_in_this_module")]

BOUND = 2e-5
ON_A_CPU = ("--enforce-eager", "--max-num-seqs", "64")


class Rollouts:
    """A policy that draws from the server, with all that stands between them."""

    def __init__(
        self, policy: TokenPolicy, server: VllmServer, folder: Path, stack: ExitStack, transfer: Transfer | None = None
    ) -> None:
        self.policy, self.server, self.notes = policy, server, list[str]()
        transfer = transfer or WholeWeights("policy")
        self.only_adapters = isinstance(transfer, Adapters)
        self.left_out: str | None = None
        self.client = Server(server.url, max_in_flight=16, timeout_s=120, push_timeout_s=120)
        stack.callback(self.client.close)
        self.publisher = Publisher([self.client], transfer, None, self.notes.append)
        stack.callback(self.publisher.stop)
        self.publisher.start()
        pool = Pool([self.client], max_in_flight=16, patience_s=240, notify=self.notes.append, stop_asked=lambda: False)

        @torch.no_grad()
        def logp(reading: Reading, tokens: Sequence[int]) -> Tensor:
            return policy.logp([reading], [tokens])[0]

        around = Surroundings(
            collect=self.collect,
            logp=logp,
            meet=lambda: None,
            start=os.urandom(4).hex(),
            folder=folder,
            dtype=torch.float32,
            tolerance=1e-3,
        )
        self.pictures = save_pictures(folder.parent / "pictures")
        self.prompts = [
            Prompt(f"p{n}", text, source_images=tuple(self.pictures[:n]))
            for n, text in enumerate(["what color ?", "which ?", "how many red ?", "is the ring blue ?", "say nothing"])
        ]
        self.drawer = ServerDrawer(
            policy.model, pool, transfer, self.publisher, around, policy.model.read(self.prompts[1])
        )
        policy.draw_by(self.drawer)

    def collect(self) -> dict[str, Tensor]:
        found = whole_weights(self.policy.trainable, trained_only=self.only_adapters, keep=True)
        return {name: tensor for name, tensor in found.items() if name != self.left_out}

    def draw(self, temperature: float = 1.0) -> Rollout:
        plan = TokenPlan(64, 12, temperature=temperature)
        [rollout] = self.policy.sample(self.prompts, 4, range(700, 720), plan)
        return rollout

    def error(self, rollout: Rollout) -> float:
        """The largest difference between what the server said and what the policy says now."""
        assert rollout.mask_BS is not None
        with torch.no_grad():
            logp_BS = self.policy.replay(rollout, slice(0, rollout.logp_BS.shape[1])).logp_BS
        return float((logp_BS - rollout.logp_BS)[rollout.mask_BS].abs().max())

    def worst_share(self, count: int) -> float:
        """Of `count` first tokens of one answer: by how many standard deviations the most unlikely count of a token is off."""
        [rollout] = self.policy.sample(self.prompts[1:2], count, range(5000, 5000 + count), TokenPlan(count, 1))
        drawn = torch.tensor([sample.tokens[0] for sample in rollout.samples]).bincount(
            minlength=len(self.policy.model.tokenizer)
        )
        reading, vocabulary = self.policy.model.read(self.prompts[1]), range(len(drawn))
        with torch.no_grad():
            share_V = self.policy.logp([reading] * len(drawn), [[token] for token in vocabulary])[:, 0].exp()
        share_V[self.policy.model.banned_N] = 0
        expected_V = count * share_V / share_V.sum()
        often = expected_V > 5
        return float(((drawn - expected_V) / expected_V.sqrt())[often].abs().max())

    def change(self, part: str | None = None) -> None:
        """Other weights: all of them, or those of one part."""
        with torch.no_grad():
            for name, parameter in self.policy.trainable.named_parameters():
                if parameter.requires_grad and part in (None, self.policy.group_of[name]):
                    scale = 0.3 * float(parameter.std()) or 0.1  # new adapters begin as zeros
                    parameter.add_(scale * torch.randn(parameter.shape, generator=GENERATOR))


GENERATOR = torch.Generator().manual_seed(5)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("rollouts")
    model = make_vlm(folder / "model")
    with ExitStack() as stack:
        server = served(Serving(str(model), "policy", "float32", 4, 160, folder), folder, stack)
        yield Rollouts(make_policy(model), server, folder / "weights", stack)


def served(serving: Serving, folder: Path, stack: ExitStack) -> VllmServer:
    """A real server with the flags and variables that the trainer gives its own."""
    variables = serving.variables() | {"PYTHONPATH": f"{RUN_VARIABLES['PYTHONPATH']}:{ROOT}"}
    flags = [*serving.flags()[3:], *ON_A_CPU]  # model and name are given by the class
    server = VllmServer(Path(serving.model), serving.name, folder / "server.log", flags=flags, variables=variables)
    stack.callback(server.kill)
    server.start()
    return server


@pytest.fixture(autouse=True)
def pushed(rollouts: Rollouts) -> None:
    """The server gets the weights of now, whatever the test before did."""
    rollouts.drawer.weights_changed(0)


def test_what_is_drawn_is_what_the_policy_says(rollouts: Rollouts) -> None:
    """Prompts without image and with up to four; at another temperature; the same seeds give the same tokens."""
    first, again, warm = rollouts.draw(), rollouts.draw(), rollouts.draw(0.7)
    assert rollouts.error(first) < BOUND and rollouts.error(warm) < BOUND
    assert [s.tokens for s in first.samples] == [s.tokens for s in again.samples] != [s.tokens for s in warm.samples]
    assert first.version == 0 and first.behind == 0
    banned = set(rollouts.policy.model.banned_N.tolist())
    assert not any(banned & set(sample.tokens) for sample in first.samples)


def test_tokens_come_as_often_as_they_should(rollouts: Rollouts) -> None:
    """That the server knows a token's share does not show that it draws by it. Seeds are fixed, and so is what comes of it."""
    assert rollouts.worst_share(800) < 4


def test_a_push_makes_the_server_the_new_model(rollouts: Rollouts) -> None:
    """All weights, the tied head among them: the prompts and pictures are in every cache of the server when they change."""
    before = rollouts.draw()
    rollouts.change()
    assert rollouts.error(before) > 0.1, "the weights have changed"
    rollouts.drawer.weights_changed(1)
    after = rollouts.draw()
    assert rollouts.error(after) < BOUND and after.version == 1
    assert rollouts.drawer.metrics["rollout/probe_error"] < BOUND


def test_pictures_are_looked_at_with_the_new_vision_tower(rollouts: Rollouts) -> None:
    """The text of every prompt and the pixels are the old ones; embeddings of them must not be."""
    before = rollouts.draw()
    rollouts.change("vision")
    assert rollouts.error(before) > 1e-2
    rollouts.drawer.weights_changed(2)
    assert rollouts.error(rollouts.draw()) < BOUND


def test_weights_that_lack_a_tensor_are_refused_and_the_next_push_repairs(rollouts: Rollouts) -> None:
    """vLLM's own routes answer 200 to such a push and serve a mixture."""
    rollouts.draw()
    rollouts.left_out = "model.text_model.layers.1.mlp.down_proj.weight"
    rollouts.drawer.weights_changed(3)
    version = rollouts.drawer._publish()
    assert rollouts.drawer.metrics["rollout/servers"] == 0 and rollouts.client.version() != version.label
    assert any("has nothing for 1 of the model's" in note and "down_proj" in note for note in rollouts.notes)
    rollouts.left_out = None
    rollouts.drawer.weights_changed(3)
    assert rollouts.error(rollouts.draw()) < BOUND


@pytest.mark.slow
def test_killed_while_it_draws_nothing_is_lost_and_nothing_is_stale(rollouts: Rollouts) -> None:
    """It is started again by hand with the weights of its folder; what it draws then is of the weights of now."""
    rollouts.change()
    rollouts.drawer.weights_changed(4)
    right = rollouts.draw()
    stop = threading.Event()

    def kill_and_start() -> None:
        rollouts.server.kill()
        rollouts.server.start()
        stop.set()

    thread = threading.Thread(target=kill_and_start)
    thread.start()
    seen = []
    while not stop.is_set():
        seen.append(rollouts.draw())
    thread.join()
    seen.append(rollouts.draw())
    for rollout in seen:
        assert [s.tokens for s in rollout.samples] == [s.tokens for s in right.samples]
        assert rollout.version == 4 and rollouts.error(rollout) < BOUND
    assert any("is left out, others draw its share" in note for note in rollouts.notes)
    assert any("has the current weights and draws again" in note for note in rollouts.notes)


def test_a_path_outside_its_folder_is_refused(rollouts: Rollouts, tmp_path: Path) -> None:
    make_vlm(tmp_path / "other", seed=9)
    rollouts.client.pause()
    with pytest.raises(ServerError, match="is not below ROLLOUT_WEIGHTS"):
        rollouts.client.take_weights(str(tmp_path / "other"), "other")
    rollouts.drawer.weights_changed(5)
    assert rollouts.error(rollouts.draw()) < BOUND
