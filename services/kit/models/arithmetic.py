"""The arithmetic a network may be asked to run in; here, so that it can be named without importing torch."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "bf16", "fp32"]
