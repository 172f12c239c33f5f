"""A policy of the user's own: any pipeline of diffusers that is a rectified flow, from a class that says what is particular to it.

The folder says which networks there are; they are loaded, trained, sampled, replayed, evaluated and exported as those of the policies
that come along. Two things no folder says: how a prompt becomes tensors, and how the transformer is called. Axes: B samples.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from machine.own import Own, raised
from trainer.config import ConfigError
from trainer.config.own import found, own_class
from trainer.config.policy import OwnPolicyConfig
from trainer.policies.flow.diffusers_export import EXPORTERS
from trainer.policies.flow.encoders import TextEncoders
from trainer.policies.flow.family import FLOW
from trainer.policies.flow.frozen import (
    Autoencoder,
    check_size,
    load_part,
    load_pipeline,
    own_noise_levels,
    stack,
    vae_dtype,
)
from trainer.policies.flow.policy import Conditioning
from trainer.policies.flow.sources import refuse_sources
from trainer.policies.flow.text_limits import any_tokenizers
from trainer.policies.flow.upload import upload_once
from trainer.policies.lora import adapters_of, autocast, compute_dtype, prepare_network, weight_dtype
from trainer.policies.lora_files import pipeline_class
from trainer.policies.placing import waiting
from trainer.policies.registry import Entry, Sizes
from trainer.policies.sizes import folder_sizes
from trainer.types import Prompt

EXAMPLE = "class {}(DiffusersFlow): with embed and predict (from trainer.policies.flow.own import DiffusersFlow)"
_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_CLOSE = {"float32": 1e-3, "bfloat16": 5e-2}  # how far a prediction may move when its sample has neighbours
_PROBED = 64  # pixels, about, of the images that a class is tried on


class DiffusersFlow(ABC):
    """To be made a class of your own from: say `embed` and `predict`, and what of the rest is not as here. A `FlowModel`.

    Attributes:
        even_levels: the pipeline gives its scheduler evenly spaced noise levels (`sigmas=np.linspace(1, 1 / n, n)`), as FLUX's does.
        pipeline: the pipeline of the folder, for its text encoding.
        config: the section `policy` of the recipe.
        device: where the networks are.
    """

    even_levels: ClassVar[bool] = False

    def __init__(self, config: OwnPolicyConfig, device: torch.device) -> None:
        """Raises ConfigError: the folder is no diffusers pipeline, or one of another kind."""
        self.config, self.device = config, device
        transformer = load_part(
            kind_of(config, "transformer"), config, "transformer", weight_dtype(config, config.lora)
        )
        kind = kind_of(config, "vae")
        vae = load_part(kind, config, "vae", vae_dtype(kind.load_config(config.pretrained, subfolder="vae"), config))
        self.pipeline = load_pipeline(pipeline_class(config), config, {"transformer": transformer, "vae": vae})
        self.about = f"{type(self.pipeline).__name__} weights of {config.pretrained}{adapters_of(config.lora)}."
        self._shape = transformer.config
        self._channels = int(getattr(vae.config, "latent_channels", 0) or transformer.config.in_channels)
        self._check_kind(kind.__name__)
        self.vae = Autoencoder(vae, device)
        self._texts = self._text_encoders()
        self.network: nn.Module = prepare_network(transformer, config, config.lora, device)

    @abstractmethod
    def embed(self, text: str) -> Mapping[str, Tensor]:
        """A prompt's tensors by name, without a batch axis, of the same shapes for every prompt."""

    @abstractmethod
    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, **embedded: Tensor) -> Tensor:
        """v = noise - data, the shape of the latents x (B, C, H, W), at noise levels sigma_B from 1 (noise) to 0.

        Args:
            network: the transformer that is trained, or a frozen copy; never one of your own.
            embedded: what `embed` gave, with a batch axis.
        """

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        refuse_sources(prompts, "own")

    @property
    def own_size(self) -> int:
        """Pixels of a side of the images that the model was made for."""
        latents = getattr(self._shape, "sample_size", None) or getattr(self.pipeline, "default_sample_size", 0)
        if not isinstance(latents, int) or not latents:
            raise ConfigError(
                "policy.type = own: the folder does not say how large the model draws; set own_size = 1024 in your class"
            )
        return latents * self.vae.factor

    @property
    def multiple(self) -> int:
        """Sides of images are multiples of it: of the autoencoder's factor times the transformer's patch."""
        is_packed = self._shape.in_channels == 4 * self._channels  # 2 x 2 latents in the channels, as FLUX has them
        patch = getattr(self._shape, "patch_size", 1)
        return self.vae.factor * max(2 if is_packed else 1, patch if isinstance(patch, int) else 1)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        height, width = height or self.own_size, width or self.own_size
        check_size(height, width, self.multiple)
        return self._channels, height // self.vae.factor, width // self.vae.factor

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        height, width = height or self.own_size, width or self.own_size
        num_tokens = height * width // self.multiple**2
        return own_noise_levels(self.pipeline.scheduler.config, num_steps, num_tokens, even=self.even_levels)

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        return upload_once([prompt.text for prompt in prompts_B], lambda texts: stack(self._texts(texts)), self.device)

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        self._texts.expect(batches)

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        with autocast(self.config, self.device):
            out = self.predict(network, x.to(compute_dtype(self.config)), sigma_B, **conditioning)
        return out.float()

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self.vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def _check_kind(self, vae: str) -> None:
        own, scheduler = type(self), type(self.pipeline.scheduler).__name__
        if scheduler != _SCHEDULER and own.noise_levels is DiffusersFlow.noise_levels:
            raise ConfigError(
                f"policy.pretrained = {self.config.pretrained} draws with a {scheduler}, and a rectified flow with a {_SCHEDULER}; if it "
                "is one, say its levels in def noise_levels(self, num_steps, height, width)"
            )
        if vae != "AutoencoderKL" and (
            own.decode is DiffusersFlow.decode or own.to_latents is DiffusersFlow.to_latents
        ):
            raise ConfigError(
                f"policy.pretrained = {self.config.pretrained} has a {vae}, and only AutoencoderKL is known here; say how latents "
                "become pictures in def decode(self, latents) and back in def to_latents(self, pixels_BHWC)"
            )

    def _text_encoders(self) -> TextEncoders:
        parts = self.pipeline.components
        modules = {name: part for name, part in parts.items() if name.startswith("text_encoder") and part is not None}
        settings = {"max_sequence_length": self.config.max_sequence_length, "code": self.config.code}
        return TextEncoders(modules, self.embed, self.config, self.device, settings)


def kind_of(config: OwnPolicyConfig, part: str) -> Any:
    """The class of a part, as the folder's index names it. Raises ConfigError."""
    import diffusers

    path = Path(config.pretrained) / "model_index.json"
    try:
        library, name = json.loads(path.read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"policy.pretrained = {config.pretrained}: its model_index.json names no {part} ({type(error).__name__}): give the folder "
            "of a diffusers pipeline that draws with a transformer, as save_pretrained writes it"
        ) from error
    if library != "diffusers" or not hasattr(diffusers, name):
        raise ConfigError(
            f"policy.pretrained = {config.pretrained}: its {part} is {library}.{name}, which diffusers does not have"
        )
    return getattr(diffusers, name)


def sizes(config: OwnPolicyConfig) -> Sizes:
    """How large it is: what of a network in full training is trained is known of its class alone, which is made without memory."""
    found = folder_sizes(config)
    if config.lora is not None:
        return found
    kind = kind_of(config, "transformer")
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(config.pretrained, subfolder="transformer"))
    trained = sum(parameter.numel() for parameter in network.parameters())
    return replace(found, trained=trained, positions=found.positions if trained == found.trained else 0)


class _Counting(nn.Module):
    """The network, and how often it was called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.calls, self._network = 0, [network]  # in a list, so that its parameters are not ours

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._network[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return (
            super().__getattr__(name)
            if name in ("_parameters", "_buffers", "_modules")
            else getattr(self._network[0], name)
        )


def build(config: OwnPolicyConfig, device: torch.device) -> DiffusersFlow:
    """The user's class on the folder, tried on two prompts and small images. Raises ConfigError."""
    kind = policy_class(config)
    own = found(config.code, "policy.code")
    with waiting(False):  # it is tried on the device before any engine has it
        model: DiffusersFlow = kind(config, device)
    _prove(model, own)
    return model


def policy_class(config: OwnPolicyConfig) -> type[DiffusersFlow]:
    """The user's class, not built yet. Raises ConfigError: it is none, or lacks what it must say."""
    own = found(config.code, "policy.code")
    kind: type[DiffusersFlow] = own_class(config.code, "policy.code", DiffusersFlow, EXAMPLE.format(own.name))
    for method, wanted in (("embed", "(self, text)"), ("predict", "(self, network, x, sigma_B, ...)")):
        if getattr(kind, method) is getattr(DiffusersFlow, method):
            raise ConfigError(str(own.error(f"the class {own.name} has no {method}; write def {method}{wanted}")))
    return kind


def _prove(model: DiffusersFlow, own: Own) -> None:
    """What every policy must keep, on as little as shows it: shapes, repeatable, no neighbour matters, the gradient comes through."""
    prompts = [Prompt("0", "a red circle", "proof"), Prompt("1", "two blue squares on white", "proof")]
    side = max(model.multiple, _PROBED // model.multiple * model.multiple)
    conditioning = _called(own, "encodes two prompts", lambda: model.encode(prompts))
    shape = model.latent_shape(side, side)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    sigma_B = torch.tensor([0.9, 0.4], device=model.device)
    network = _Counting(model.network)

    def predicted(rows: slice) -> Tensor:
        part = {name: tensor[rows] for name, tensor in conditioning.items()}
        return _called(
            own,
            f"predicts at latents {(len(x[rows]), *shape)}",
            lambda: model.velocity(network, x[rows], sigma_B[rows], part),
        )

    both = predicted(slice(0, 2))
    problem = None
    if both.shape != x.shape:
        problem = f"gives {tuple(both.shape)} for latents {tuple(x.shape)}; give v of their shape"
    elif not network.calls:
        problem = "does not call the network that it is given; call that one: it may be a frozen copy"
    elif not both.requires_grad:
        problem = "lets no gradient through; call the network without no_grad, and detach nothing"
    elif not both.isfinite().all():
        problem = "gives numbers that are not finite"
    elif not torch.equal(both, again := predicted(slice(0, 2))):
        problem = f"gives other numbers the second time (by up to {(both - again).abs().max():.3g}): nothing in it may be random"
    else:
        apart = (torch.cat([predicted(slice(n, n + 1)) for n in (0, 1)]) - both).abs().max().item()
        most = _CLOSE[model.config.dtype] * max(1.0, both.abs().max().item())
        if apart > most:
            problem = f"gives a sample other numbers alone than beside another (by up to {apart:.3g}): no sample may see its neighbours"
    if problem:
        raise ConfigError(str(own.error(f"{own.name}.predict {problem}")))
    pixels = _called(own, "decodes", lambda: model.decode(x))
    if pixels.dtype != torch.uint8 or pixels.shape != (2, side, side, 3):
        gave = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise ConfigError(
            str(own.error(f"{own.name}.decode gives {gave}; pictures are uint8, {(2, side, side, 3)} here"))
        )


def _called(own: Own, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ConfigError:
        raise
    except Exception as error:  # the user's code; whatever it raises is said with its line
        raise ConfigError(str(raised(own, error, f"when it {what}"))) from error


ENTRY = Entry(
    family=FLOW,
    build=build,
    exporters=EXPORTERS,
    sizes=sizes,
    text_limits=any_tokenizers,
)
