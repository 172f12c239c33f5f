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
    return functional.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Product:
    """x W + b; the weight lies as (inputs, outputs), which is the faster one for few rows."""

    weight_io: Tensor
    bias_o: Tensor | None

    def of(self, x_Ni: Tensor) -> Tensor:
        return torch.mm(x_Ni, self.weight_io) if self.bias_o is None else torch.addmm(self.bias_o, x_Ni, self.weight_io)

    def added_to(self, y_No: Tensor, x_Ni: Tensor) -> Tensor:
        """y + x W + b."""
        y_No = y_No if self.bias_o is None else y_No + self.bias_o
        if y_No.dtype != self.weight_io.dtype:  # under an autocast the residual stream stays in float32
            return y_No + torch.mm(x_Ni, self.weight_io)
        return torch.addmm(y_No, x_Ni, self.weight_io)


@dataclass(frozen=True, eq=False)
class FusedLayer:
    """A layer's weights as few matrices: fewer and larger products.

    The gain of a norm scales the inputs of the matrices that follow: (g * n) W = n (g * W).

    Attributes:
        qkv: d to H * D + 2 * K * D.
        gains: of the norms of queries and keys (H + K, D); None without.
        out: H * D to d.
        gate_up: d to 2 * F.
        down: F to d.
        activation: of the gate.
        queries_keys: H + K.
        width: D.
        eps: of the norms.
    """

    qkv: Product
    gains: Tensor | None
    out: Product
    gate_up: Product
    down: Product
    activation: Callable[[Tensor], Tensor]
    queries_keys: int
    width: int
    eps: float

    def heads(self, x_Nd: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.qkv.of(normed(x_Nd, self.eps)).unflatten(-1, (-1, self.width))
        turned, values = heads[:, : self.queries_keys], heads[:, self.queries_keys :]
        if self.gains is not None:
            turned = normed(turned, self.eps) * self.gains
        return turned, values

    def close(self, x_Nd: Tensor, attended_Nh: Tensor) -> Tensor:
        x_Nd = self.out.added_to(x_Nd, attended_Nh)
        gate, up = self.gate_up.of(normed(x_Nd, self.eps)).chunk(2, -1)
        return self.down.added_to(x_Nd, self.activation(gate) * up)


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
        _product(projections, layer.input_layernorm.weight),
        gains,
        _product([attention.o_proj]),
        _product(gates, layer.post_attention_layernorm.weight),
        _product([mlp.down_proj]),
        mlp.act_fn,
        model.heads + model.key_heads,
        model.width,
        model.eps,
    )


def _product(linears: Sequence[Any], gain_i: Tensor | None = None) -> Product:
    """Linear layers of the same inputs as one, their inputs scaled by the gain of the norm before them."""
    dtype = computed_type(linears[0].weight)
    weight_oi = torch.cat([merged(linear) for linear in linears])
    weight_oi = weight_oi if gain_i is None else weight_oi * gain_i
    biases = [linear.bias for linear in linears]
    bias_o = None
    if any(bias is not None for bias in biases):
        widths = [linear.out_features for linear in linears]
        pairs = zip(biases, widths, strict=True)
        bias_o = torch.cat([weight_oi.new_zeros(width) if bias is None else bias for bias, width in pairs]).to(dtype)
    return Product(weight_oi.t().to(dtype).contiguous(), bias_o)


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
