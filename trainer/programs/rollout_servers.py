"""vLLM servers beside a run: started or found, given the weights after every update, and compared with the trainer each step."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config, ConfigError, TokenSamplingConfig, VlmConfig
from trainer.config.vllm import VllmConfig
from trainer.engine.whole import whole_weights
from trainer.policies.tokens.draw import Reading
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor
from trainer.policies.tokens.parts import part_of
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.server.client import Server
from trainer.policies.tokens.server.drawer import ServerDrawer, Surroundings
from trainer.policies.tokens.server.launch import LaunchedServers, Serving
from trainer.policies.tokens.server.pool import Pool
from trainer.policies.tokens.server.publisher import Publisher
from trainer.policies.tokens.server.versions import Adapters, Transfer, WholeWeights
from trainer.processes.distributed import World
from trainer.types import Prompt

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
_PROBE_PLACES = 8  # tokens behind a prompt that the probe of a push may need


class RolloutServers:
    """What a run does about its servers, beside drawing from them.

    Args:
        notify: takes a line for the log.
    """

    def __init__(self, drawer: ServerDrawer, config: VllmConfig, notify: Callable[[str], None]) -> None:
        self.drawer, self._config, self._notify = drawer, config, notify
        self._drifting = False
        self.stop_reason: str | None = None

    def after_update(self, step: int, row: Mapping[str, float | None]) -> dict[str, float]:
        """The weights have had the update of step `step`: no answer is drawn before the servers have them.

        Args:
            row: of that step, with how far the servers were from the trainer.

        Returns:
            What is shown of the last push, and whether the two are further apart than `drift_alarm`; with `drift_action: stop`
            that is then the `stop_reason`.
        """
        self.drawer.weights_changed(step)
        drift, limit = row.get("drift/mean"), self._config.drift_alarm
        if drift is not None:
            beyond = not drift <= limit  # NaN is beyond, too
            if beyond and not self._drifting:
                self._notify(_drift_sentence(step, drift, limit))
            self._drifting = beyond
            if beyond and self._config.drift_action == "stop":
                self.stop_reason = _drift_sentence(step, drift, limit)
        return {**self.drawer.metrics, "alarm/drift": float(self._drifting)}

    def averaged(
        self, applied: Callable[[], AbstractContextManager[None]]
    ) -> Callable[[], AbstractContextManager[None]]:
        """`applied`, and the servers draw with the average, too, inside its block, and with the weights themselves after it."""

        @contextmanager
        def both() -> Iterator[None]:
            with applied():
                self.drawer.weights_changed(self.drawer.updates)
                yield
            self.drawer.weights_changed(self.drawer.updates)

        return both


def _drift_sentence(step: int, drift: float, limit: float) -> str:
    return (
        f"step {step}: rollout servers and trainer disagree by {drift:.3g} a token on average, more than "
        f"sampling.vllm.drift_alarm = {limit:g}: other arithmetic (dtype, kernels), other weights, or another tokenizer. The "
        "importance weights correct for it up to objective.importance_cap"
    )


@contextmanager
def rollout_servers(
    config: Config,
    policy: object,
    prompts: Sequence[Prompt],
    world: World,
    notify: Callable[[str], None],
    stop_asked: Callable[[], bool],
) -> Iterator[RolloutServers | None]:
    """Let the policy draw from servers where `sampling.engine` says so; they end with the block. None where it does not.

    Raises:
        ConfigError: vLLM is not there, a server did not start, or a run of several nodes would need its files elsewhere.
    """
    sampling = config.sampling
    if not isinstance(sampling, TokenSamplingConfig) or sampling.vllm is None:
        yield None
        return
    assert isinstance(policy, TokenPolicy) and isinstance(config.policy, VlmConfig), "the configuration has checked it"
    vllm = sampling.vllm
    with ExitStack() as stack:
        start = str(world.gather(uuid.uuid4().hex[:8])[0])
        folder = Path(vllm.weights_dir or config.run_dir / "rollout_weights").absolute() / config.run_name
        serving = _serving(policy, config.policy, sampling, vllm, folder.parent)
        launched = None
        if vllm.launch is not None and world.is_main:
            _check_gpus(vllm, world)
            launched = LaunchedServers(vllm.launch, serving, config.run_dir / "rollout_servers", notify)
            stack.callback(launched.stop)
            launched.start()
            launched.wait_ready(stop_asked)
        urls = world.gather(list(launched.urls if launched is not None else vllm.urls))[0]
        if world.is_main and (far := vllm.beyond_loopback()):
            notify(
                f"rollout servers on other machines ({', '.join(far)}): whoever reaches their ports can change the weights, with "
                "or without a key; keep them on a private network (docs/vllm.md)"
            )
        servers = [_server(url, vllm, stack) for url in urls]
        transfer: Transfer = Adapters(vllm.served_model) if serving.adapter_rank else WholeWeights(vllm.served_model)
        publisher = None
        if world.is_main:
            publisher = Publisher(servers, transfer, launched, notify)
            stack.callback(publisher.stop)
            publisher.start()
        pool = Pool(
            servers,
            max_in_flight=vllm.max_in_flight,
            patience_s=vllm.patience_s,
            notify=notify,
            stop_asked=stop_asked,
        )
        around = _surroundings(
            config.policy, policy, vllm, world, start, folder, trained_only=bool(serving.adapter_rank)
        )
        shown = next((prompt for prompt in prompts if prompt.source_images), prompts[0])
        drawer = ServerDrawer(policy.model, pool, transfer, publisher, around, policy.model.read(shown))
        stack.callback(drawer.close)
        policy.draw_by(drawer)
        yield RolloutServers(drawer, vllm, notify)


def _surroundings(
    section: VlmConfig,
    policy: TokenPolicy,
    vllm: VllmConfig,
    world: World,
    start: str,
    folder: Path,
    *,
    trained_only: bool,
) -> Surroundings:
    dtype = vllm.dtype or section.dtype
    exact = dtype == section.dtype == "float32"

    def collect() -> Mapping[str, Tensor]:
        return whole_weights(policy.model.network, trained_only=trained_only, keep=world.is_main)

    @torch.no_grad()
    def logp(reading: Reading, tokens: Sequence[int]) -> Tensor:
        return policy.logp([reading], [tokens])[0].float().cpu()

    return Surroundings(
        collect=collect,
        logp=logp,
        meet=world.barrier,
        start=start,
        folder=folder,
        dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        tolerance=vllm.probe_tolerance or _TOLERANCE["float32" if exact else "bfloat16"],
    )


def _serving(
    policy: TokenPolicy, section: VlmConfig, sampling: TokenSamplingConfig, vllm: VllmConfig, weights_dir: Path
) -> Serving:
    if section.pretrained is None or isinstance(policy.model.processor, NanoVlmProcessor):
        raise ConfigError(
            "sampling.engine = vllm needs a model in transformers' layout: vLLM reads the images of nanoVLM's models in another "
            "way than they were trained with; set sampling.engine: local"
        )
    lora = section.lora
    trained = {part_of(name) for name, each in policy.trainable.named_parameters() if each.requires_grad}
    return Serving(
        model=str(local_folder(section.pretrained, "policy.pretrained", fetch=False)),
        name=vllm.served_model,
        dtype=vllm.dtype or section.dtype,
        max_images=section.max_images,
        longest=longest_text(policy.trainable, section.max_prompt_tokens + max(sampling.max_new_tokens, _PROBE_PLACES)),
        weights_dir=None if lora is not None else weights_dir,
        adapter_rank=None if lora is None else lora.rank,
        tower_adapters=bool(trained - {"language"}),
        model_type=plain_network(policy.trainable).config.model_type,
    )


def plain_network(network: Any) -> Any:
    """The network without what adapters put around it."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def longest_text(network: Any, asked: int) -> int:
    """Tokens of prompt and answer that a server is told: `asked`, or as many as the model has positions for, beyond which vLLM
    does not start. Where positions are stretched, vLLM reckons itself how far."""
    text = plain_network(network).config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    is_stretched = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    return asked if positions is None or is_stretched else min(asked, int(positions))


def _server(url: str, vllm: VllmConfig, stack: ExitStack) -> Server:
    server = Server(
        url,
        max_in_flight=vllm.max_in_flight,
        timeout_s=vllm.timeout_s,
        push_timeout_s=vllm.push_timeout_s,
        token=None if vllm.token_file is None else _token(vllm.token_file),
    )
    stack.callback(server.close)
    return server


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"sampling.vllm.token_file = {path} cannot be read: {error.strerror}") from error


def _check_gpus(vllm: VllmConfig, world: World) -> None:
    assert vllm.launch is not None
    if world.device.type == "cuda" and not vllm.launch.gpus:
        raise ConfigError(
            "sampling.vllm.launch names no gpus, and vLLM would take nearly all memory of the first one, where training runs; "
            "name others, such as gpus: ['1'], and start training with the rest in CUDA_VISIBLE_DEVICES"
        )
