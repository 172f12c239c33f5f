"""The tiny policy: a 2.4 M-parameter SD3 transformer that writes words, for two CPU cores and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from machine.called import command
from trainer.config import ConfigError, TinyConfig
from trainer.policies.flow.family import FLOW
from trainer.policies.flow.policy import Conditioning
from trainer.policies.flow.sources import refuse_sources
from trainer.policies.flow.tiny_model import LATENT_SHAPE, NUM_TOKENS, PAD, TinyModel, to_pixels, token_tensor, tokenize
from trainer.policies.registry import Entry, Exporter, Sizes
from trainer.quickstart.words import HEIGHT, WIDTH
from trainer.samplers.schedules import sigmas
from trainer.types import Prompt


class TinyFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`. The transformer is trained; text encoder and codec stay frozen."""

    def __init__(self, model: TinyModel, device: torch.device, *, about: str) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.model.transformer.requires_grad_(True)
        self.device = device
        self.about = about
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}  # prompt text -> (states, pooled); the encoder is frozen

    @classmethod
    def build(cls, config: TinyConfig, device: torch.device) -> TinyFlow:
        """From `config.checkpoint`, or random weights. Raises ConfigError with the remedy."""
        model = TinyModel(config)
        about = "Random weights: no base was given."
        if config.checkpoint is not None:
            about = model.load(Path(config.checkpoint))
        return cls(model, device, about=about)

    @property
    def network(self) -> nn.Module:
        return self.model.transformer

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        refuse_sources(prompts, "tiny")
        for prompt in prompts:
            try:
                tokenize(prompt.text)
                tokenize(prompt.negative_prompt or prompt.text)
            except ValueError as error:
                raise ConfigError(f"prompt {prompt.id!r} of data set {prompt.dataset!r}: {error}") from error

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        if (height or HEIGHT, width or WIDTH) != (HEIGHT, WIDTH):
            raise ConfigError(
                f"the tiny policy draws {HEIGHT}x{WIDTH} pixels, not {height}x{width}: leave sampling.height and "
                "sampling.width out"
            )
        return LATENT_SHAPE

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        even: list[float] = sigmas(num_steps).tolist()
        return even

    @torch.no_grad()
    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        for text in dict.fromkeys(prompt.text for prompt in prompts_B):
            if text not in self._encoded:
                tokens = (
                    token_tensor([text], self.device) if text else torch.full((1, NUM_TOKENS), PAD, device=self.device)
                )
                self._encoded[text] = self.model.text(tokens)
        encoded = [self._encoded[prompt.text] for prompt in prompts_B]
        return {
            "states": torch.cat([states for states, _ in encoded]),
            "pooled": torch.cat([pooled for _, pooled in encoded]),
        }

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        out: Tensor = network(x, sigma_B * 1000.0, conditioning["states"], conditioning["pooled"])
        return out

    @torch.no_grad()
    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        if tuple(pixels_BHWC.shape[1:3]) != (HEIGHT, WIDTH):
            raise ValueError(f"the tiny policy knows images of {HEIGHT}x{WIDTH}, not {tuple(pixels_BHWC.shape[1:3])}")
        latents: Tensor = self.model.codec.encode(pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return to_pixels(self.model.codec.decode(latents))


EXPORT_FILE = "model.safetensors"


def write(model: TinyFlow, folder: Path, dtype: torch.dtype) -> None:
    """Write transformer, text encoder and codec as one safetensors file, which `policy.checkpoint` takes again."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.model.state_dict().items()}
    about = f"Post-trained by RL. Before that: {model.about}"
    save_file(tensors, str(folder / EXPORT_FILE), metadata={"about": about})


def reload(config: TinyConfig, folder: Path, device: torch.device) -> TinyFlow:
    """The policy that starts from the file."""
    return TinyFlow.build(config.model_copy(update={"checkpoint": str(folder / EXPORT_FILE)}), device)


def tiny_sizes(config: TinyConfig) -> Sizes:
    """The sizes of the networks that the section describes, with or without a file."""
    with torch.device("meta"):  # shapes without memory
        model = TinyModel(config)
    frozen = [*model.text.parameters(), *model.codec.buffers()]
    trained = sum(parameter.numel() for parameter in model.transformer.parameters())
    positions = sum(buffer.nbytes for buffer in model.transformer.buffers())
    return Sizes(trained, network=0, others=sum(tensor.nbytes for tensor in frozen), positions=positions)


# No text limit: prompts it cannot draw are refused.
ENTRY = Entry(
    family=FLOW,
    build=TinyFlow.build,
    exporters={"safetensors": Exporter(write, reload)},
    sizes=tiny_sizes,
    may_be_random=True,
    how_made=f"the quickstart's is made by `{command('sft')} configs/quickstart_base.yaml`",
)
