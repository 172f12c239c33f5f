"""What earlier versions of this trainer called the fields of a recipe, and where they are now.

A recipe with old names is refused with the new ones, as a name that silently meant nothing would be worse. The
configuration that a finished run left behind is brought up to date when it is read (`with_new_keys`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from machine.called import command
from trainer.config.advantage import ESTIMATORS
from trainer.config.base import ConfigError
from trainer.config.objective import OBJECTIVES
from trainer.config.supervised_loss import SftLossConfig

OLD_SECTION = "algorithm"
SECTIONS = "objective, advantage, sft and optim.updates_per_rollout"  # what it became

# Field of the old section to its new place. Several places: the field acts in each that has it.
NEW_PLACES: dict[str, tuple[str, ...]] = {
    "objective": ("objective.type",),
    "clip_range": ("objective.clip_range",),
    "kl_beta": ("objective.kl_beta",),
    "kl_type": ("objective.kl_type",),
    "guard_reweight": ("objective.guard_reweight",),
    "importance_cap": ("objective.importance_cap",),
    "nft_beta": ("objective.nft_beta",),
    "nft_adv_clip": ("objective.nft_adv_clip",),
    "dpo_beta": ("objective.dpo_beta",),
    "old_decay": ("objective.old_decay",),
    "old_decay_steps": ("objective.old_decay_steps",),
    "timestep_draws": ("objective.timestep_draws",),
    "timestep_distribution": ("objective.timestep_distribution", "sft.timestep_distribution"),
    "timestep_shift": ("objective.timestep_shift", "sft.timestep_shift"),
    "type": ("advantage.type",),
    "eps": ("advantage.eps",),
    "min_valid": ("advantage.min_valid",),
    "std_floor": ("advantage.std_floor",),
    "adv_clip": ("advantage.adv_clip",),
    "updates_per_rollout": ("optim.updates_per_rollout",),
    "sft": ("sft",),
}

# Fields of the recipe that made the quickstart's base before it was a program of the same loop, and their new places.
PRETRAINING = {
    "output": "quickstart.output",
    "words.char_noise": "quickstart.char_noise",
    "words.color_noise": "quickstart.color_noise",
    "optim.batch_size": "quickstart.batch_size",
    "optim.muon_lr": "optim.groups.blocks.lr",
    "optim.adamw_lr": "optim.lr",
    "log_every": "nothing, as every step is recorded",
}
_ONLY_THERE = ("output", "words", "log_every")  # sections and fields that no other recipe ever had

# What the old fields were where a recipe left them out: a run's own configuration states all of them, and those that do
# not act with its objective are left out of the new form.
_OLD_DEFAULTS: dict[str, Any] = {
    "objective": "flow_grpo",
    "type": "gdpo",
    "clip_range": 1e-4,
    "kl_type": "velocity",
    "guard_reweight": False,
    "importance_cap": 5.0,
    "nft_beta": 0.1,
    "nft_adv_clip": 5.0,
    "dpo_beta": 100.0,
    "old_decay": 0.0,
    "old_decay_steps": 0,
    "timestep_draws": 1,
    "timestep_distribution": "uniform",
    "timestep_shift": 1.0,
    "eps": 1e-4,
    "std_floor": 0.0,
}


def places(field: str) -> str:
    """The new place of a field of the old section, for a sentence."""
    return " or ".join(NEW_PLACES[field])


def refuse_old_keys(path: object, raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises ConfigError that gives the new name of every old one in a recipe or among the overrides, with the remedy."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key in PRETRAINING:
            raise ConfigError(f"override {override!r}: {key} is {PRETRAINING[key]} now")
        section, _, field = key.partition(".")
        if section == OLD_SECTION and field.partition(".")[0] in NEW_PLACES:
            first, _, rest = field.partition(".")
            news = [f"{place}{'.' if rest else ''}{rest}={value}" for place in NEW_PLACES[first]]
            raise ConfigError(
                f"override {override!r}: {OLD_SECTION}.{first} is {places(first)} now; write {' or '.join(news)}"
            )
        if section == OLD_SECTION:
            raise ConfigError(f"override {override!r}: {OLD_SECTION} is now {SECTIONS}; override their fields")
    refuse_old_pretraining(path, raw)
    if OLD_SECTION not in raw:
        return
    fields = raw[OLD_SECTION] if isinstance(raw[OLD_SECTION], Mapping) else {}
    moved = [f"  {OLD_SECTION}.{field} is {places(field)} now" for field in fields if field in NEW_PLACES]
    raise ConfigError(
        "\n".join(
            [
                f"{path} cannot be used: its section {OLD_SECTION} is now {SECTIONS}:",
                *moved,
                f"  `{command('migrate-config')} {path} --write` rewrites it; without --write the new text is printed",
            ]
        )
    )


def refuse_old_pretraining(path: object, raw: Mapping[str, Any]) -> None:
    """Raises ConfigError for a recipe that made the quickstart's base before it was a program of the same loop."""
    if not any(name in raw for name in _ONLY_THERE):
        return
    moved = [f"  {old} is {new} now" for old, new in PRETRAINING.items()]
    raise ConfigError(
        "\n".join(
            [
                f"{path} cannot be used: it has the names of an earlier pre-training; start from "
                "configs/quickstart_base.yaml, where",
                *moved,
            ]
        )
    )


def with_new_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe under their new names; one without old names as it is.

    An old field that does not act with the objective is left out where it has its default. Any other stays, in the new
    place, for the check to refuse it.
    """
    old = raw.get(OLD_SECTION)
    if not isinstance(old, Mapping):
        return dict(raw)
    new: dict[str, Any] = {}
    for key, value in raw.items():  # the new sections stand where the old one stood
        for name, section in _split(old).items() if key == OLD_SECTION else [(key, value)]:
            if section is None and name in new:
                continue  # an empty `optim:` that a field was moved to
            both = isinstance(section, Mapping) and isinstance(new.get(name), Mapping)
            new[name] = {**new[name], **section} if both else section
    return new


def moves(old: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every field of the old section `old` with the places where its value acts now; none where it is to be left out."""
    sections = {
        "objective": OBJECTIVES.get(str(old.get("objective", _OLD_DEFAULTS["objective"]))),
        "advantage": ESTIMATORS.get(str(old.get("type", _OLD_DEFAULTS["type"]))),
        "sft": SftLossConfig if isinstance(old.get("sft"), Mapping) else None,
    }

    def acts(place: str) -> bool:
        section, _, name = place.partition(".")
        known = sections.get(section)
        return not name or (known is None and section != "sft") or (known is not None and name in known.model_fields)

    found = {}
    for field, value in old.items():
        every = NEW_PLACES.get(field, (f"objective.{field}",))  # an unknown one is refused there
        acting = tuple(place for place in every if place.partition(".")[0] == "optim" or acts(place))
        idle = field in _OLD_DEFAULTS and value == _OLD_DEFAULTS[field]
        found[field] = acting or (() if idle else every[:1])
    return found


def _split(old: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The old section as the new ones, each with its `type` first."""
    new: dict[str, Any] = {}
    for field, where in moves(old).items():
        for place in where:
            section, _, name = place.partition(".")
            if name:
                new[section] = {**(new.get(section) or {}), name: old[field]}
            else:
                new[section] = (
                    {**old[field], **(new.get(section) or {})} if isinstance(old[field], Mapping) else old[field]
                )
    for section, field in (("objective", "objective"), ("advantage", "type")):
        if section in new:
            new[section] = {"type": old.get(field, _OLD_DEFAULTS[field]), **new[section]}
    return new
