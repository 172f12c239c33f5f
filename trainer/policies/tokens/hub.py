"""Models by name: a folder on this machine, or an id of the Hugging Face hub, which is looked for in the cache and fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config import ConfigError
from trainer.config.paths import is_hub_id, nearest_path

TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")


def local_folder(name: str, field: str, files: Sequence[str] = MODEL_FILES, *, fetch: bool = True) -> Path:
    """The folder that `name` is, or that the hub's model of this id was fetched into (once, into huggingface_hub's cache).

    With HF_HUB_OFFLINE=1 nothing is fetched, and what the cache has is taken.

    Args:
        field: the configuration's field, for messages.
        files: patterns of the files that are fetched.
        fetch: False takes what the cache has, online too.

    Raises:
        ConfigError: there is no such folder, or the hub cannot be reached or has no such model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        remedy = "give the folder it is in" if folder.exists() else nearest_path(folder)
        raise ConfigError(f"{field} = {name} is no folder, and no id of the hub (owner/name): {remedy}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=not fetch))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        kept = f"models/{name.split('/')[1]}"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{field} = {name} is no folder here, and the hub did not give it ({first}). On a machine with access run\n"
            f"    hf download {name} --local-dir {kept}\n"
            f"(gated models: `hf auth login` first), copy the folder here and set {field} to it"
        ) from error
