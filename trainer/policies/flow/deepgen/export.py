"""What a DeepGen checkpoint holds, in the layout of its supervised trainer, which reads it back."""

from __future__ import annotations

from torch import Tensor

from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.lora import merged_state


def deepgen_state_dict(model: DeepGenFlow) -> dict[str, Tensor]:
    """Queries, projectors, connector and transformer by their published names, adapters of the transformer merged.

    The language model and the autoencoder are left out, as they are by DeepGen: whoever loads this needs the adapters of
    the language model from the checkpoint that the run started from.
    """
    state = {
        name: tensor
        for name, tensor in model.networks.state_dict().items()
        if not name.startswith(("lmm.", "vae.", "transformer."))
    }
    return state | {f"transformer.{name}": tensor for name, tensor in merged_state(model.network).items()}
