"""Every policy of the configuration has one entry, and what is read from it before its module is imported agrees with it."""

from __future__ import annotations

import pytest
import torch

from trainer.config import ConfigError, Sd3Config, TinyConfig
from trainer.config.policy import sections
from trainer.policies.registry import all_formats, build_model, entry_of, exporter_of


@pytest.mark.parametrize("name", sections())
def test_every_section_has_an_entry_that_fits_it(name: str) -> None:
    section = sections()[name].model_construct(type=name)
    entry = entry_of(section)
    assert tuple(entry.exporters) == section.formats
    assert set(section.starts_from) <= set(type(section).model_fields)


def test_formats_of_all_policies() -> None:
    known = ("bagel", "deepgen", "deepgen_pt", "deepseek", "diffusers", "hf", "lora", "nanovlm", "neo", "safetensors")
    assert all_formats() == known


def test_a_format_that_another_policy_has_is_refused_before_the_policy_is_imported() -> None:
    with pytest.raises(ConfigError, match="the policy tiny cannot be exported to lora; it can to safetensors"):
        exporter_of(TinyConfig(), "lora")
    with pytest.raises(ConfigError, match=r"it can to diffusers, lora; did you mean diffusers\?"):
        exporter_of(Sd3Config(type="sd3", pretrained="nowhere"), "diffuser")


def test_the_tiny_policy_has_the_sizes_that_are_told() -> None:
    section = TinyConfig(num_layers=2, num_heads=2, head_dim=16)
    found, model = entry_of(section).sizes(section), build_model(section, torch.device("cpu")).model
    transformer, text = model.transformer, model.text
    assert found.trained == sum(p.numel() for p in transformer.parameters())
    assert found.positions == sum(buffer.nbytes for buffer in transformer.buffers()) > 0
    assert found.others == sum(t.nbytes for t in (*text.parameters(), *model.codec.buffers()))
    assert found.network == 0, "all of the transformer is trained"
