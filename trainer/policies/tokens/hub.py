"""Models by name: a folder on this machine, or an id of the Hugging Face hub, which is looked for in the cache and fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from machine.hub import is_hub_id
from trainer.config import ConfigError
from trainer.config.network import MODEL_FILES
from trainer.config.paths import folder_of, nearest_path


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
    return folder_of(name, field, files, fetch=fetch)
