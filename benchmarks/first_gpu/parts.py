"""The parts of a first run: what each measures, how long it may take, and which packages it needs. Imports no package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Names of packages by those of their modules, where the two differ.
_PACKAGES = {
    "PIL": "pillow",
    "yaml": "PyYAML",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
_TORCH = ("torch", "numpy")
_TRAINER = (*_TORCH, "pydantic", "yaml", "safetensors", "PIL", "jinja2", "tqdm")
_NETWORKS = (*_TRAINER, "diffusers", "transformers", "accelerate", "peft")
_RUN = (*_NETWORKS, "httpx")
_SERVICE = ("fastapi", "starlette", "uvicorn", "python_multipart", "prometheus_client", "pydantic_settings")


@dataclass(frozen=True)
class Part:
    """One process of its own.

    Attributes:
        module: of benchmarks/first_gpu; its `measure` gives the rows.
        seconds: after which it is stopped.
        modules: that it imports of other people's packages.
        given: what `measure` is given beside the setting.
    """

    name: str
    module: str
    about: str
    seconds: int
    modules: Sequence[str] = _NETWORKS
    given: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Packages that it needs and that are not here."""
        return [_PACKAGES.get(name, name) for name in self.modules if importlib.util.find_spec(name) is None]

    def packages(self) -> list[str]:
        return [_PACKAGES.get(name, name) for name in self.modules]


def _sd3(name: str, seconds: int, **given: Any) -> Part:
    trained = f"adapters of rank {given['lora']}" if given["lora"] else "all weights"
    how = "compiled" if given["compiled"] else "eager"
    return Part(name, "sd3", f"SD3.5-medium at 512 x 512, bfloat16, {trained}, {how}", seconds, given=given)


# What is asked of the card first comes first: the time may not suffice for all.
PARTS: tuple[Part, ...] = (
    Part(
        "environment",
        "environment",
        "GPU, driver, packages, compiler, memory, rates of matrices and copies",
        60,
        _TORCH,
    ),
    Part("tiny_run", "tiny_run", "the quickstart's steps with its services", 120, (*_RUN, *_SERVICE)),
    _sd3("sd3_full_compiled", 240, lora=0, compiled=True),
    _sd3("sd3_full", 120, lora=0, compiled=False),
    _sd3("sd3_lora_compiled", 240, lora=32, compiled=True),
    _sd3("sd3_lora", 120, lora=32, compiled=False),
    Part("checkpoint", "resumed", "a run that is stopped and taken up again, beside one that is not", 120, _RUN),
    Part("zero", "zero", "ZeRO's stages on one card beside none", 150, (*_RUN, "deepspeed")),
    Part(
        "hps",
        "hps",
        "HPSv2.1 in bfloat16 against float32",
        120,
        (*_TORCH, "PIL", "pydantic", "safetensors", "transformers", "tqdm"),
    ),
    Part("vlm", "vlm", "a VLM of SmolVLM's geometry: answers and their update", 120),
    Part(
        "janus", "existing", "Janus-Pro-1B's geometry: images, answers and their updates", 120, given={"model": "janus"}
    ),
    Part("mot", "existing", "BAGEL's geometry, two layers: a step on a long pack", 90, given={"model": "mot"}),
    Part("neo", "existing", "NEO-2B's geometry, two layers: a step on a long pack", 90, given={"model": "neo"}),
)
BY_NAME: Mapping[str, Part] = {part.name: part for part in PARTS}
