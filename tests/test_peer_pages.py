"""docs/from_flow_grpo.md, from_flow_factory.md and from_verl_omni.md: every field of ours is one, and every recipe loads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.support.documents import ROOT, blocks_of
from tests.trainer.nanovlm_lab.test_migration_pages import fields_of, sections_in, table
from trainer.config import Config
from trainer.config.file import checked

PAGES = ("from_flow_grpo", "from_flow_factory", "from_verl_omni")
TEXT = {name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in PAGES}
# Names of theirs that are read in their configuration: as many as the page says it has, so that none is lost by a slip.
COUNTS = {"from_flow_grpo": 66, "from_flow_factory": 110, "from_verl_omni": 140}


@pytest.fixture(scope="module")
def ours() -> set[str]:
    return set(fields_of(Config))


def defaults(model: Any, path: str) -> set[str]:
    """The defaults that a dotted field has, over all types of its sections, as the page writes them."""
    name, _, rest = path.partition(".")
    if name not in model.model_fields:
        return set()
    field = model.model_fields[name]
    if rest:
        return {each for section in sections_in(field.annotation) for each in defaults(section, rest)}
    return set() if field.is_required() else {f"{field.get_default(call_default_factory=True)}".lower()}


@pytest.mark.parametrize("page", PAGES)
def test_every_row_names_a_field_of_ours_or_says_why_there_is_none(page: str, ours: set[str]) -> None:
    rows = table(TEXT[page])
    assert len(rows) == COUNTS[page] and len({row[0] for row in rows}) == len(rows)
    for theirs, _, here, why in rows:
        said = re.findall(r"`([a-z_.]+)`", here)
        assert here == "–" or said == [here.strip("`")], theirs
        assert here != "–" or why, theirs
        for field in said:
            assert field in ours, (theirs, field)
        for field in set(re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)`", why)) - {"train.sh"}:
            assert field in ours, (theirs, field)
        for value in re.findall(r"(\S+) if not said", why):
            shown = {
                str(float(each)).rstrip("0").rstrip(".") if each[0].isdigit() else each
                for each in defaults(Config, said[0])
            }
            assert value in shown, (theirs, value, shown)


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_says_of_files_and_defaults_of_ours_is_so(page: str) -> None:
    for name in re.findall(r"configs/[\w/]+\.(?:json|yaml)", TEXT[page]):
        assert (ROOT / name).is_file(), name
    for values in re.findall(r"`(\w+\.\w+)`[^|\n]*?\(ours ([\d.e-]+)\)", TEXT[page]):
        assert values[1] in defaults(Config, values[0])
    if page == "from_verl_omni":
        assert all(each in TEXT[page] for each in ("(ours 0.7)", "(ours 0)", "(ours 1e-4)"))
        assert defaults(Config, "sampling.noise_level") == {"0.7"} and defaults(Config, "optim.lr") == {"0.0001"}
        assert defaults(Config, "optim.weight_decay") == {"0.0"}


def test_a_reward_of_flow_grpo_is_one_of_the_service_that_is_named() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`: `(\w+)` \|", TEXT["from_flow_grpo"], re.M)
    assert len(rows) == 11
    listed = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    for _, service, reward in rows:
        (line,) = [
            each for each in listed.splitlines() if each.startswith(f"| `{service}`: ") and f"`{reward}`" in each
        ]
        assert json.loads((ROOT / f"docs/openapi/{service}.json").read_text(encoding="utf-8")), line


@pytest.mark.parametrize("page", PAGES)
def test_the_recipe_of_the_page_is_one(page: str, tmp_path: Any) -> None:
    """That of flow_grpo is the part in which a shipped recipe differs."""
    (block,) = [each for each in blocks_of(ROOT / f"docs/{page}.md") if each.language == "yaml"]
    tree = yaml.safe_load(block.text)
    if page == "from_flow_grpo":
        base = yaml.safe_load((ROOT / "configs/sd35_medium_pickscore.yaml").read_text(encoding="utf-8"))
        tree = {**base, **{name: {**base[name], **given} for name, given in tree.items()}}
        del tree["objective"]["kl_type"], tree["objective"]["kl_beta"]  # Fast has none
    config = checked(tmp_path / "recipe.yaml", Config, tree)
    assert config.policy.type == "sd3" and config.objective.type == "flow_grpo"
    assert config.sampling.prompts_per_step in (8, 48)


def test_the_shipped_recipes_that_stand_for_flow_grpos_are_there() -> None:
    named = re.findall(r"`(sd35_\w+)`", TEXT["from_flow_grpo"])
    assert len(named) == 6 and all((ROOT / f"configs/{name}.yaml").is_file() for name in named)
