"""The number formats that a network may compute in. They have a module of their own, which does not import torch."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "bf16", "fp32"]
