"""docs/reference_configuration.md and docs/reference_metrics.md are what the code says, whole, and say what acts."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from pydantic import TypeAdapter

from scripts import reference
from trainer.config import Config, FlowSamplingConfig, ObjectiveConfig
from trainer.config.errors import field_paths
from trainer.config.objective_checks import check_objective
from trainer.records.keys import SENTENCES

TEXT = {name: (reference.DOCS / name).read_text(encoding="utf-8") for name in reference.PAGES}
CONFIGURATION = TEXT["reference_configuration.md"]
HEADINGS = re.findall(r"^##+ (.+)$", CONFIGURATION, re.M)


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_committed_page_is_the_generated_one(name: str) -> None:
    assert TEXT[name] == reference.PAGES[name](), "run: python -m scripts.reference"


def test_a_page_that_differs_is_told_and_left_alone(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"one.md": lambda: "one\n", "two.md": lambda: "two\n"})
    assert reference.main(["--check"]) == 1 and not list(tmp_path.iterdir())
    assert "run python -m scripts.reference" in capsys.readouterr().err
    assert reference.main([]) == 0 == reference.main(["--check"])
    (tmp_path / "two.md").write_text("", encoding="utf-8")
    assert reference.main(["--check"]) == 1


def test_every_field_is_there_and_every_link_leads_to_a_heading() -> None:
    shown = set(re.findall(r"^\| `(\w+)` \|", CONFIGURATION, re.M))
    names = {path.rpartition(".")[2] for path in field_paths(Config)} - {"type"}
    sections = {name for name, field in Config.model_fields.items() if reference.sections_in(field.annotation)}
    assert names - sections <= shown <= names
    assert {f"`{name}`" for name in sections} <= set(HEADINGS)
    assert [each for each, count in Counter(HEADINGS).items() if count > 1] == []
    links = set(re.findall(r"\]\(#([^)]*)\)", CONFIGURATION))
    assert len(links) > 20 and links <= {reference.anchor(each) for each in HEADINGS}


@pytest.mark.parametrize(
    "row",
    [
        "| `max_steps` | whole number ≥ 1 | **required** | Training steps. |",
        "| `seed` | whole number ≥ 0, < 2147483648 | `1` | Seed of everything random in the run. |",
        "| `sampling` | `flow`, `tokens` | whole number ≥ 2 | `12` |",
        "| `betas` | [number ≥ 0, < 1, number ≥ 0, < 1] | `[0.9, ",
        "| `checkpoint` | path or null | `null` | Safetensors file to start from; null starts from random weights. |",
        "| `level` | `grpo`, `bnpo`, `dr_grpo`, `dapo`, `sapo`, `cispo` | `token`, `sequence` | `token` |",
        "| `services` | names to [`rewards.services.*`](#rewardsservices) | `{}` | The services, by name. |",
        "| `stop_ids` | list of whole number ≥ 0 | `[]` |",
    ],
)
def test_a_field_stands_with_its_values_its_default_and_its_sentence(row: str) -> None:
    assert row.replace("| `sampling` |", "| `group_size` |") in CONFIGURATION


# A value that is not the default, of each field of the drawing that acts on stochastic steps alone.
STOCHASTIC: dict[str, dict[str, Any]] = {
    "kind": {"kind": "flow_sde"},
    "noise_level": {"noise_level": 0.5},
    "sde_window": {"sde_window": (0, 2)},
    "sde_window_size": {"sde_window_size": 2},
    "sde_window_range": {"sde_window_size": 2, "sde_window_range": (0, 4)},
    "sde_window_motion": {"sde_window_size": 2, "sde_window_motion": "progressive"},
    "sde_window_every": {"sde_window_size": 2, "sde_window_motion": "progressive", "sde_window_every": 5},
    "sde_window_stride": {"sde_window_size": 2, "sde_window_motion": "progressive", "sde_window_stride": 2},
    "timestep_fraction": {"timestep_fraction": 0.5},
    "same_noise": {"same_noise": True},
}
OTHERS: dict[str, dict[str, Any]] = {
    "num_inference_steps": {"num_inference_steps": 8},
    "solver": {"solver": "dpm2m"},
    "shift": {"shift": 3.0},
    "height and width": {"height": 64, "width": 64},
    "resolution_schedule": {"height": 64, "width": 64, "resolution_schedule": ((1, 128, 128),)},
}


def test_the_objectives_that_a_field_of_the_drawing_is_said_to_act_with_take_it_and_the_others_refuse_it() -> None:
    of_drawing = {name for name in FlowSamplingConfig.model_fields if reference.is_of_stochastic_steps(name)}
    assert of_drawing == set(STOCHASTIC)
    told = f"Of these, {reference.codes([name for name in FlowSamplingConfig.model_fields if name in STOCHASTIC])} act with"
    assert told in CONFIGURATION and "alone (`flow_grpo`, `grpo_guard`, `own`)" in CONFIGURATION
    for fields in (*STOCHASTIC.values(), *OTHERS.values()):
        # GRPO-Guard has no ratio for the default kind.
        taken = {
            name for name in reference.OF_IMAGES if fits(name, fields if name != "grpo_guard" else guarded(fields))
        }
        acts = set(reference.OF_IMAGES) if fields in OTHERS.values() else {"flow_grpo", "grpo_guard", "own"}
        assert taken == acts, fields


def guarded(fields: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "flow_sde"} | fields


def code(objective: str) -> dict[str, str]:
    """What an objective of one's own needs."""
    return {"code": "mine.py:loss"} if objective.startswith("own") else {}


def fits(objective: str, fields: dict[str, Any]) -> bool:
    section: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python({"type": objective, **code(objective)})
    sampling = FlowSamplingConfig.model_validate(fields, strict=True)
    try:
        check_objective(section, sampling)
    except ValueError:
        return False
    return True


def test_a_section_is_read_with_the_objectives_that_the_page_names() -> None:
    """Of both types of sampling with one task, and every objective: those that fit are those named."""
    recipe: dict[str, Any] = {
        "run_name": "r",
        "max_steps": 1,
        "rewards": {"services": {"s": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"a": {"service": "s"}}},
        "data": {"train": [{"path": "a.txt", "rewards": {"a": 1.0}}]},
    }
    policies = {"flow": {"type": "tiny"}, "tokens": {"type": "vlm", "pretrained": "vlm"}}
    for kind, policy in policies.items():
        taken = []
        for name in reference.OBJECTIVES:
            # The default kind has no density for GRPO-Guard.
            drawing = {"kind": "flow_sde"} if name == "grpo_guard" and kind == "flow" else {}
            tree = {
                **recipe,
                "policy": policy,
                "objective": {"type": name, **code(name)},
                "sampling": {"type": kind, **drawing},
            }
            if is_accepted(tree):
                taken.append(name)
        assert taken == list(reference.READ_BY["sampling", kind])
        part = CONFIGURATION.partition(f"### `sampling` of type `{kind}`\n")[2].partition("\n#")[0]
        assert f"Read with `objective.type`: {reference.codes(taken)}." in part


def is_accepted(tree: dict[str, Any]) -> bool:
    """Whether a recipe of these fields is one."""
    try:
        Config.model_validate(tree)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "policy"), [("images", {"type": "tiny"}), ("answers", {"type": "vlm", "pretrained": "vlm"})]
)
def test_given_pairs_are_read_with_the_objectives_that_the_page_names(kind: str, policy: dict[str, Any]) -> None:
    taken = []
    for name in reference.OBJECTIVES:
        tree = {
            "program": "preference",
            "policy": policy,
            "objective": {"type": name},
            "preferences": {"path": "p.jsonl"},
        }
        if is_accepted({"run_name": "r", "max_steps": 1, **tree}):
            taken.append(name)
    assert taken == list(reference.READ_BY["preferences", kind])
    part = CONFIGURATION.partition(f"### `preferences` of type `{kind}`\n")[2].partition("\n#")[0]
    assert f"Read with `objective.type`: {reference.codes(taken)}." in part


def test_every_key_of_the_metrics_is_there_once() -> None:
    shown = re.findall(r"^\| `([^`]+)` \|", TEXT["reference_metrics.md"], re.M)
    assert sorted(shown) == sorted(SENTENCES)


def test_a_key_that_no_group_has_is_refused_by_name(monkeypatch: Any) -> None:
    monkeypatch.setitem(SENTENCES, "weather/rain", "It rains.")
    with pytest.raises(ValueError, match="weather/rain begins with weather, which no group"):
        reference.metrics()
