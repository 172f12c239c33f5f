"""The reward services that a run can start, and the rewards of each: a wrong name is found before anything is started.

The services themselves are not asked, as that takes seconds and some need their models. A test compares this table with
what they say.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from machine.own import OwnError, is_code, named
from trainer.config.base import nearest

# Every reward that some checkpoint or family of the service gives.
REWARDS: dict[str, tuple[str, ...]] = {
    "ocr": ("multi", "flow_grpo", "strict", "deepgen_new"),
    "hps": ("hpsv2", "hpsv2.1"),
    "rules": (
        "color_match",
        "side_by_side",
        "jpeg_compressibility",
        "jpeg_incompressibility",
        "option_letter",
        "number",
        "exact_answer",
        "answer",
        "think_format",
        "answer_format",
        "tag_count",
        "length",
        "overlong",
        "json_valid",
    ),
    "unifiedreward": (
        "think_pairwise",
        "pair_rank",
        "flex",
        "pair_score",
        "pointwise",
        "edit_pair",
        "edit_pointwise",
    ),
    "eval": ("unigenbench",),
    "clip": (
        "clip_sim",
        "aesthetic",
        "image_similarity",
        "clip_direction",
        "diversity",
        "pickscore",
        "pickscore_26",
        "pickscore_cosine",
    ),
    "geneval": ("geneval", "geneval_strict", "geneval_soft", "geneval_soft_plain", "gdino"),
    "imagereward": ("imagereward",),
    "regression": ("hpsv3", "editreward"),
    "vqa": ("vqa_yes", "vqa_yes_ratio", "deqa", "deqa_over_5"),
    "textjudge": ("text_quality", "text_match"),
}
_SERVICES = Path(__file__).resolve().parents[2] / "services"


def check_module(where: str, module: str) -> None:
    """Raises ValueError when `python -m services.<module>` would find nothing, with the nearest service."""
    if is_code(module):
        try:
            named(module, f"{where}.module", needs_name=False)
        except OwnError as error:
            raise ValueError(str(error)) from error
        return
    place = _SERVICES.joinpath(*module.split("."))
    if not place.with_name(f"{place.name}.py").is_file() and not (place / "__main__.py").is_file():
        raise ValueError(f"{where}.module = {module!r} is no service of ours; {nearest(module, REWARDS)}")


def flags_of_own(module: str) -> tuple[str, dict[str, str | int | float | bool]]:
    """The service that a module is, and the flags that make it so: a file of the user's is served by `services.own`."""
    return ("own", {"file": module}) if is_code(module) else (module, {})


def check_reward(where: str, reward: str, module: str, args: Mapping[str, object]) -> None:
    """Raises ValueError when a service that the run starts has no such reward, with the nearest one.

    Nothing is said of a module outside the table, nor where the service's own file of functions may give the name.
    """
    known = REWARDS.get(module)
    own_recipe = module == "regression" and str(args.get("recipe", "")).endswith((".yaml", ".yml"))
    if known is None or reward in known or own_recipe:
        return
    functions = args.get("functions", os.environ.get("RULES_FUNCTIONS")) if module == "rules" else None
    own = [] if functions is None else _own_names(str(functions), reward)
    if own is not None:
        raise ValueError(
            f"{where}.reward = {reward!r} is no reward of services.{module}; {nearest(reward, [*known, *own])}"
        )


def check_args(where: str, module: str, args: Iterable[str]) -> None:
    """Raises ValueError when a service that the run starts has no such flag, with the nearest one.

    The flags are the fields of the classes in the service's own files and in the settings that services share, read
    without running them. Nothing is said of a module outside the table.
    """
    module, _ = flags_of_own(module)
    if module not in REWARDS and module != "own":
        return
    files = [_SERVICES / module / name for name in ("settings.py", "__main__.py")]
    files += sorted((_SERVICES / "kit").rglob("*settings.py"))  # wherever the kit keeps them
    known: set[str] = set()
    for tree in (ast.parse(path.read_bytes()) for path in files if path.is_file()):
        classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        fields = (each for node in classes for each in node.body if isinstance(each, ast.AnnAssign))
        known |= {each.target.id for each in fields if isinstance(each.target, ast.Name)}
    for name in args:
        if name.replace("-", "_") not in known:
            raise ValueError(f"{where}.args: services.{module} has no flag {name!r}; {nearest(name, sorted(known))}")


def _own_names(functions: str, reward: str) -> list[str] | None:
    """The functions in the Python files of `--functions`; None where a file cannot be read, or may give the name `reward`
    because it is among its functions or texts."""
    names: list[str] = []
    for spec in re.split(r",(?=[^,]*\.py(?:[:,]|$))", functions):
        path, ends, listed = spec.partition(".py")
        try:
            tree = ast.parse(Path(path + ends).read_bytes())
        except (OSError, SyntaxError, ValueError):
            return None  # the service says what is wrong with the file
        found = list(ast.walk(tree))
        texts = [node.value for node in found if isinstance(node, ast.Constant)]
        names += [node.name for node in found if isinstance(node, ast.FunctionDef)]
        if reward in texts or reward in names or reward in listed.removeprefix(":").split(","):
            return None
    return names
