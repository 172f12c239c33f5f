"""A trained policy that writes, as other programs read it: a folder of transformers, adapters of PEFT, a folder of nanoVLM."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.config import ConfigError, VlmConfig
from trainer.config.network import LanguageSettings
from trainer.policies.registry import Exporter, build_model
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.nanovlm import files as nanovlm
from trainer.policies.tokens.nanovlm.adapters import to_nanovlm_name
from trainer.policies.tokens.nanovlm.network import is_placed_alike
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor

_ADAPTERS, _ADAPTER_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_WRITTEN_ANEW = ("config.json", "generation_config.json", "README.md")
_COPIED = (".json", ".jinja", ".txt", ".model")


def write_hf(model: TokenModel, folder: Path, dtype: torch.dtype, base: Path | None = None) -> None:
    """The model, its processor and its tokenizer, as transformers loads them.

    Args:
        base: the folder whose processor and tokenizer are copied; None is the one that `pretrained` names.
    """
    network: Any = model.network
    # Not network.to(dtype): it would round buffers, such as rotary frequencies, that no file holds.
    state = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    network.save_pretrained(folder, state_dict=state)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for section in (settings, *(each for each in settings.values() if isinstance(each, dict) and "dtype" in each)):
        section["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if isinstance(model.processor, NanoVlmProcessor):
        model.processor.save_pretrained(folder)
        if not is_placed_alike(network, dtype):
            print(
                f"export: transformers places the {model.processor.settings.patches_a_side} patches a side of an image otherwise "
                f"than nanoVLM when weights are in {str(dtype).removeprefix('torch.')}, so there logits differ a little; this "
                "trainer and --to nanovlm do not",
                file=sys.stderr,
            )
        return
    for path in sorted((base or _base(model.config)).iterdir()):
        # The base's own files: a processor that was put together here lacks what it is not asked for, as of videos.
        if path.suffix in _COPIED and path.name not in _WRITTEN_ANEW and "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)


def write_adapters(model: TokenModel, folder: Path, dtype: torch.dtype, base: Path | None = None) -> None:
    """Adapters as PEFT loads them. Those of a nanoVLM model have nanoVLM's own names, as NanoVLM-Lab's have.

    Args:
        base: the folder that adapters name as their base; None is the one that `pretrained` names.
    """
    from peft import get_peft_model_state_dict

    network: Any = model.network
    tensors: dict[str, Tensor] = get_peft_model_state_dict(network)
    settings = network.peft_config["default"]
    settings.base_model_name_or_path = model.config.pretrained if base is None else str(base)
    settings.inference_mode = True
    settings.save_pretrained(folder)
    if isinstance(model.processor, NanoVlmProcessor):
        tensors = {_renamed(name, model.processor): tensor for name, tensor in tensors.items()}
        fields = json.loads((folder / _ADAPTER_SETTINGS).read_text(encoding="utf-8"))
        layers = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
        fields["target_modules"] = sorted(layers)
        (folder / _ADAPTER_SETTINGS).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    written = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in tensors.items()}
    save_file(written, folder / _ADAPTERS, metadata={"format": "pt"})


def write_nanovlm(model: TokenModel, folder: Path, dtype: torch.dtype) -> None:
    """nanoVLM's config.json and model.safetensors, with the tokenizer beside.

    Raises:
        ConfigError: the model is none of nanoVLM's.
    """
    nanovlm.write_folder(model.network, _of_nanovlm(model), folder, dtype)


def reload_folder(config: VlmConfig, folder: Path, device: torch.device) -> Any:
    """The policy that starts from the folder."""
    return build_model(config.model_copy(update={"pretrained": str(folder), "initialize": None, "lora": None}), device)


def reload_adapters(config: VlmConfig, folder: Path, device: torch.device) -> Any:
    """The base model with the adapters: by PEFT's own loader, those in nanoVLM's names by ours."""
    from peft import PeftModel

    plain = config.model_copy(update={"lora": None})
    model = build_model(plain, device)
    if isinstance(model.processor, NanoVlmProcessor):
        assert config.lora is not None, "the run trained adapters"
        layers = config.lora.model_copy(update={"path": str(folder)})
        return build_model(config.model_copy(update={"lora": layers}), device)
    model.network = PeftModel.from_pretrained(model.network, folder).eval()
    return model


def _renamed(name: str, processor: NanoVlmProcessor) -> str:
    layer, factor = name.removeprefix(_PREFIX).rsplit(".lora_", 1)
    return f"{_PREFIX}{to_nanovlm_name(layer, processor.settings)}.lora_{factor}"


def _of_nanovlm(model: TokenModel) -> NanoVlmProcessor:
    if not isinstance(model.processor, NanoVlmProcessor):
        raise ConfigError(
            f"this policy, started from {model.config.pretrained}, is no nanoVLM model: its images are read and its prompts "
            "written in another way, so nanoVLM could not use the weights; export with --to hf"
        )
    return model.processor


def _base(config: LanguageSettings) -> Path:
    assert config.pretrained is not None, "a fresh model is one of nanoVLM's"
    return local_folder(config.pretrained, "policy.pretrained", fetch=False)


EXPORTERS = {
    "hf": Exporter(write_hf, reload_folder),
    "lora": Exporter(write_adapters, reload_adapters, adapters=True),
    "nanovlm": Exporter(write_nanovlm, reload_folder),
}
