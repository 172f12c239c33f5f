"""Which rollout servers a configuration may name, and what it says of those it may not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.config import Config
from trainer.config.sampling import TokenSamplingConfig
from trainer.config.vllm import VllmConfig, VllmLaunchConfig

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "vllm"}, "engine = vllm needs vllm: add it, with urls or launch"),
        ({"vllm": {"urls": [URL]}}, "engine = local makes no use of vllm: set engine: vllm, or leave vllm out"),
        ({"engine": "vllm", "vllm": {}}, "neither urls nor launch"),
        ({"engine": "vllm", "vllm": {"urls": [URL], "launch": {}}}, "both urls and launch"),
        ({"engine": "vllm", "vllm": {"urls": ["127.0.0.1:8000"]}}, "'127.0.0.1:8000' is no address of a server"),
        ({"engine": "vllm", "vllm": {"urls": [URL]}, "top_p": 0.9}, "top_p = 0.9 and top_k = 0 draw from a part"),
        ({"engine": "vllm", "vllm": {"urls": [URL]}, "temperature": 2.5}, "temperature = 2.5 is above 2"),
        (
            {"engine": "vllm", "vllm": {"launch": {"gpus": ["0", "1"], "servers": 3}}},
            "servers = 3, but gpus has 2 entries",
        ),
        (
            {"engine": "vllm", "vllm": {"launch": {"args": ["--host=0.0.0.0"]}}},
            "args has --host, which the trainer gives itself",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_the_remedy(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as failed:
        TokenSamplingConfig(type="tokens", **fields)
    assert words in str(failed.value)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValidationError) as failed:
        VllmConfig(urls=("http://me:secret@127.0.0.1:8000",))
    said = failed.value.errors(include_input=False)[0]["msg"]
    assert "token_file" in said and "secret" not in said


def test_servers_on_other_machines_are_known_as_such() -> None:
    config = VllmConfig(urls=(f"{URL}/", "http://localhost:1", "http://node7:8000"))
    assert config.urls[0] == URL and config.beyond_loopback() == ["http://node7:8000"]


def test_one_server_is_started_for_each_entry_of_gpus() -> None:
    assert VllmLaunchConfig().count == 1
    assert VllmLaunchConfig(servers=3).count == 3
    assert VllmLaunchConfig(gpus=("0,1", "2,3")).count == 2


def test_only_reinforcement_learning_draws_from_servers() -> None:
    tree = {
        "run_name": "run",
        "max_steps": 1,
        "program": "supervised",
        "policy": {"type": "vlm", "pretrained": "model"},
        "sampling": {"engine": "vllm", "vllm": {"urls": [URL]}},
        "conversations": {"path": "rows.jsonl"},
    }
    with pytest.raises(
        ValidationError, match=r"sampling.engine = vllm draws the answers of program: rl, but program is"
    ):
        Config(**tree)
