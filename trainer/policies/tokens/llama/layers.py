"""One layer in two forms: fused weights for drawing, and the model's own modules for gradients.

Both give a layer's queries, keys and values, and what follows its attention; attention itself is the caller's. Axes: N tokens,
d hidden, F inner size of the MLP, H heads, K heads of keys and values, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from trainer.policies.tokens.llama.layout import TextModel


class Layer(Protocol):
    def heads(self, x_Nd: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (N, H + K, D), not rotated yet, and values (N, K, D)."""
        ...

    def close(self, x_Nd: Tensor, attended_Nh: Tensor) -> Tensor:
        """The layer's output (N, d), of its input and of what its attention gave (N, H * D)."""
        ...


def normed(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square, which is computed in float32, as the model does, without the gain."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class FusedLayer:
    """A layer's weights as few matrices: fewer and larger products.

    The gain of a norm scales the columns of the matrices that follow: W (g * n) = (W * g) n.

    Attributes:
        qkv, qkv_bias: (H * D + 2 * K * D, d) and its bias.
        gains_D: of the norms of queries and keys (H + K, D); None without.
        out, out_bias: (d, H * D).
        gate_up, gate_up_bias: (2 * F, d).
        down, down_bias: (d, F).
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    gains: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    queries_keys: int
    width: int
    eps: float

    def heads(self, x_Nd: Tensor) -> tuple[Tensor, Tensor]:
        heads = functional.linear(normed(x_Nd, self.eps), self.qkv, self.qkv_bias).unflatten(-1, (-1, self.width))
        turned, values = heads[:, : self.queries_keys], heads[:, self.queries_keys :]
        if self.gains is not None:
            turned = normed(turned, self.eps) * self.gains
        return turned, values

    def close(self, x_Nd: Tensor, attended_Nh: Tensor) -> Tensor:
        x_Nd = x_Nd + functional.linear(attended_Nh, self.out, self.out_bias)
        gate, up = functional.linear(normed(x_Nd, self.eps), self.gate_up, self.gate_up_bias).chunk(2, -1)
        return x_Nd + functional.linear(self.activation(gate) * up, self.down, self.down_bias)


@torch.no_grad()
def fused_layers(model: TextModel) -> list[FusedLayer]:
    """The layers under the present weights, adapters merged, in the type that is computed in.

    They are copies: what is trained later does not reach them.
    """
    return [_fused(model, layer) for layer in model.layers]


def computed_type(tensor: Tensor) -> torch.dtype:
    """The type that products of this tensor are computed in: its own, or that of an autocast around the call."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _fused(model: TextModel, layer: Any) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections, gates = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
    gains = None
    if hasattr(attention, "q_norm"):
        norms = [attention.q_norm] * model.heads + [attention.k_norm] * model.key_heads
        gains = torch.stack([norm.weight for norm in norms])
    return FusedLayer(
        _stacked(projections, layer.input_layernorm.weight),
        _biases(projections),
        gains,
        _stacked([attention.o_proj]),
        _biases([attention.o_proj]),
        _stacked(gates, layer.post_attention_layernorm.weight),
        _biases(gates),
        _stacked([mlp.down_proj]),
        _biases([mlp.down_proj]),
        mlp.act_fn,
        model.heads + model.key_heads,
        model.width,
        model.eps,
    )


def _stacked(linears: Sequence[Any], gain: Tensor | None = None) -> Tensor:
    """The weights below one another, their columns scaled by the gain of the norm before them."""
    weight = torch.cat([merged(linear) for linear in linears]) if len(linears) > 1 else merged(linears[0])
    return (weight if gain is None else weight * gain).to(computed_type(linears[0].weight))


def _biases(linears: Sequence[Any]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    return torch.cat(biases).to(computed_type(linears[0].weight))


def merged(linear: Any) -> Tensor:
    """The weight of a linear layer with what its active adapters add: W + scale * B A, in float32 where there are some."""
    weight: Tensor = linear.weight
    if not hasattr(linear, "lora_A") or linear.disable_adapters or linear.merged:
        return weight
    deltas = [linear.get_delta_weight(name).float() for name in linear.active_adapters if name in linear.lora_A]
    return sum(deltas, start=weight.float())


@dataclass(frozen=True, eq=False)
class ModuleLayer:
    """A layer through the model's own modules, so that adapters, hooks and gradients are those of the model."""

    layer: Any
    width: int

    def heads(self, x_Nd: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.layer.self_attn
        normed_Nd = self.layer.input_layernorm(x_Nd)
        queries, keys, values = (
            projection(normed_Nd).unflatten(-1, (-1, self.width))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return torch.cat([queries, keys], 1), values

    def close(self, x_Nd: Tensor, attended_Nh: Tensor) -> Tensor:
        x_Nd = x_Nd + self.layer.self_attn.o_proj(attended_Nh)
        output: Tensor = x_Nd + self.layer.mlp(self.layer.post_attention_layernorm(x_Nd))
        return output


def module_layers(model: TextModel) -> list[ModuleLayer]:
    return [ModuleLayer(layer, model.width) for layer in model.layers]
