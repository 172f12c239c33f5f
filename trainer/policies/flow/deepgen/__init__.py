"""DeepGen: Qwen2.5-VL reads the prompt, learned queries collect what it says, and an SD3.5 transformer draws it."""

from __future__ import annotations

from trainer.policies.flow.deepgen.formats import EXPORTERS
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.flow.deepgen.sizes import deepgen_sizes
from trainer.policies.flow.family import FLOW
from trainer.policies.registry import Entry

# Its language model reads 128,000 tokens, so that no prompt is cut off.
ENTRY = Entry(family=FLOW, build=DeepGenFlow, exporters=EXPORTERS, sizes=deepgen_sizes)
