"""How large a Janus is, from its config.json alone where it is in DeepSeek's layout, else from the headers of its files."""

from __future__ import annotations

from trainer.config import JanusConfig
from trainer.policies.registry import Sizes
from trainer.policies.sizes import Shapes, shapes_of
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.sizes import sizes_of
from trainer.policies.unified.janus.geometry import TokenIds, is_deepseek, read_fields, to_janus
from trainer.policies.unified.janus.layout import table_of
from trainer.policies.unified.janus.model import part_of

_ANY_IDS = TokenIds(0, 0, 0, 0)  # no size depends on them


def sizes(config: JanusConfig) -> Sizes:
    """The sizes of the model that the section names. Nothing is fetched from the hub, and nothing converted.

    Raises:
        OSError, ValueError, SafetensorError: a file is not there or cannot be read.
    """
    return sizes_of(config, shapes_by_name(config), part_of)


def shapes_by_name(config: JanusConfig) -> Shapes:
    """Shapes of the network's parameters by transformers' names. Raises as `sizes`."""
    folder = local_folder(config.pretrained, "policy.pretrained", fetch=False)
    if not is_deepseek(folder):
        return shapes_of(folder)
    where = str(folder / "config.json")
    table = table_of(to_janus(read_fields(folder), _ANY_IDS, where))
    found = {}
    for source in table.values():
        for name in source.names:
            rows = source.shape[0] // len(source.names)
            found[name] = (
                source.shape[1:] if source.shape[0] == 1 and len(source.shape) == 3 else (rows, *source.shape[1:])
            )
    return found
