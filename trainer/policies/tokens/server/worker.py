"""Runs inside vLLM: takes new weights from a folder of safetensors, over vLLM's own routes for weight transfer.

vLLM's transfer engines all need CUDA and a process group with the trainer. This one reads files, so it works on a CPU, and on
GPUs wherever trainer and server share a disk or memory (`/dev/shm`). A server gets it by

    ROLLOUT_WEIGHTS=/where/versions/are vllm serve ... --weight-transfer-config '{"backend": "file"}' \\
        --worker-extension-cls trainer.policies.tokens.server.worker.FileTransfer

with this repository on PYTHONPATH; importing the module registers the engine. Of ours it imports one name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from trainer.policies.tokens.server import ROOT_VARIABLE

if TYPE_CHECKING:
    # vLLM is installed in an environment of its own, so the checks of this repository see its classes as anything.
    Engine = Any
    Info = object
else:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine as Engine,
    )
    from vllm.distributed.weight_transfer.base import (
        WeightTransferUpdateInfo as Info,
    )


class FileTransfer:
    """What `--worker-extension-cls` names. It adds nothing to the worker: its module registers the engine."""


@dataclass
class Nothing(Info):
    """What a start needs to be told."""


@dataclass
class Folder(Info):
    """Where a version of the weights is."""

    folder: str


class FileEngine(Engine):
    """Reads every `*.safetensors` of a folder into the model, layer by layer, as a fresh start would."""

    init_info_cls = Nothing
    update_info_cls = Folder

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A tied head is the embedding itself and counts once. During an update, and after one that failed, each has a parameter
        # of its own, so both are noted when the model has just been loaded.
        self.expected = {name for name, _ in self.model.named_parameters()}
        self.tied = tied_modules(self.model)

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """There is no connection to make."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import (  # type: ignore[import-not-found]
            initialize_layerwise_reload,
        )

        # A plain load_weights fails where weights were repacked when they were first loaded, as on CPUs.
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Folder) -> None:
        loaded = self.model.load_weights(tensors_of(files_of(Path(update_info.folder))))
        if loaded is not None and (missing := self.expected - set(loaded)):
            raise ValueError(
                f"{update_info.folder} has nothing for {len(missing)} of the model's {len(self.expected)} parameters: "
                f"{', '.join(sorted(missing)[:3])}"
            )

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        # The update copied into the memory that tied modules share, but what a CPU repacked of the one that the files do not
        # name is still the old: without this a tied head says what neither model says.
        for module in self.tied:
            module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """There is no connection to end."""


def tied_modules(model: Any) -> list[Any]:
    """Modules that share a parameter with another one, and are repacked when weights are loaded."""
    holders: dict[int, list[Any]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    shared = {id(module): module for group in holders.values() if len(group) > 1 for module in group}
    return [each for each in shared.values() if getattr(each, "quant_method", None) is not None]


def files_of(folder: Path) -> list[Path]:
    """The weight files of a version. Whoever reaches the port may name a path, so one folder alone is read.

    Raises:
        ValueError: there are none, or the folder is not below ROLLOUT_WEIGHTS.
    """
    root, resolved = os.environ.get(ROOT_VARIABLE), folder.resolve()
    if not root or not resolved.is_relative_to(Path(root).resolve()):
        raise ValueError(f"{folder} is not below {ROOT_VARIABLE} = {root}, from where alone weights are taken")
    files = sorted(resolved.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors; the trainer and this server must see the same folder")
    return files


def tensors_of(files: list[Path]) -> Iterator[tuple[str, Any]]:
    """Names and tensors of all files, one at a time."""
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


def register() -> None:
    """Make the engine known by the name `file`; twice is as good as once."""
    from vllm.distributed.weight_transfer.factory import (  # type: ignore[import-not-found]
        WeightTransferEngineFactory,
    )

    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("file", FileEngine)


if not TYPE_CHECKING:
    register()
