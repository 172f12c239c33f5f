"""Adapters on a real vLLM server: a new name each time, no development mode, and nothing that could be stale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.support.tiny_vlm import make_vlm
from tests.support.vllm_server import missing
from tests.trainer.policies.tokens.test_token_policy import make_policy
from tests.vllm.test_real_vllm_rollouts import BOUND, Rollouts, served
from trainer.config import LoraConfig
from trainer.policies.tokens.server.launch import Serving
from trainer.policies.tokens.server.versions import Adapters

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("alone_in_this_module")]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("adapters")
    model = make_vlm(folder / "model")
    with ExitStack() as stack:
        serving = Serving(str(model), "policy", "float32", 4, 160, None, adapter_rank=8)
        policy = make_policy(model, lora=LoraConfig(rank=8, alpha=16.0))
        yield Rollouts(policy, served(serving, folder, stack), folder / "weights", stack, Adapters("policy"))


def test_each_version_is_a_name_of_its_own_and_the_old_one_goes(rollouts: Rollouts) -> None:
    rollouts.drawer.weights_changed(0)
    before = rollouts.draw()
    assert rollouts.error(before) < BOUND, "adapters that have not been trained are the base model"
    assert rollouts.worst_share(800) < 4
    rollouts.change()
    assert rollouts.error(before) > 1e-2
    rollouts.drawer.weights_changed(1)
    after = rollouts.draw()
    assert rollouts.error(after) < BOUND and after.version == 1
    names = rollouts.client.models()
    assert len(names) == 2 and names[0] == "policy" and names[1].endswith(".2")
    assert httpx.post(f"{rollouts.server.url}/pause", trust_env=False).status_code == 404, "no development mode"


def test_a_server_that_was_started_again_has_no_adapters_and_gets_them(rollouts: Rollouts) -> None:
    right = rollouts.draw()
    rollouts.server.kill()
    rollouts.server.start()
    assert rollouts.client.models()[:1] == ["policy"]
    again = rollouts.draw()
    assert [s.tokens for s in again.samples] == [s.tokens for s in right.samples]
    assert again.version == right.version and rollouts.error(again) < BOUND
