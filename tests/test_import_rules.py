"""Who may import whom. The table below is the architecture; a module that is not in it has no place yet.

The walk reads every file's syntax tree, so imports inside functions, under TYPE_CHECKING and by `import_module("...")`
count, and nothing is executed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("machine", "wire", "services", "loadtest", "trainer", "rewards")

KIT_BASE = (
    "wire",
    "services.kit.scorer",
    "services.kit.rows",
    "services.kit.settings",
    "services.kit.errors",
    "services.kit.metrics",
    "services.kit.samples",
)

# A module is judged by the longest entry that is its name or a package above it. It may import what that entry covers
# and what is listed; nothing else of ours. A name covers itself and what is below it; "=name" that module alone.
RULES: dict[str, tuple[str, ...]] = {
    "machine": (),
    "machine.hub": (),  # a folder, or an id of the Hugging Face hub
    "machine.own": (),  # what a user's own file is called, and how it is loaded
    "wire": (),
    "wire.connections": ("=wire.tls",),  # of whoever asks many questions at a time
    "wire.client": ("wire",),  # the client that is installed alone
    "=services": (),
    # The kit: what a scorer's author imports, then the rooms, each of which may import those above it.
    "services.kit.scorer": ("=wire.schema",),
    "services.kit.rows": ("=wire.schema",),
    "services.kit.samples": ("=wire.schema",),
    "services.kit.settings": ("wire",),
    "services.kit.errors": ("wire",),
    "services.kit.metrics": (),
    "services.kit.guard": KIT_BASE,
    "services.kit.dispatch": (*KIT_BASE, "services.kit.guard"),
    "services.kit.scale": (*KIT_BASE, "services.kit.guard", "services.kit.dispatch"),
    "services.kit.http": (*KIT_BASE, "=rewards", "services.kit.guard", "services.kit.dispatch", "services.kit.scale"),
    "services.kit.legacy": (*KIT_BASE, "services.kit.guard", "services.kit.http"),
    "services.kit.models": (*KIT_BASE, "machine"),
    "services.kit.functions": (*KIT_BASE, "machine.own"),
    "services.kit.judge": (*KIT_BASE, "services.kit.guard", "services.kit.http", "services.kit.models"),
    "services.kit.testing": (*KIT_BASE, "services.kit.run"),
    "=services.kit.openapi": ("services.kit", "wire"),
    "services.kit": ("machine", "wire"),  # the app, its process, its commands: all of the kit
    "services.*": ("services.kit", "machine", "wire"),  # any one service; never another
    "loadtest": ("wire",),
    # The command: its table names programs that it does not import; what a verb brings along may.
    "=rewards": (),
    "rewards.shipped": (),  # where recipes and assets lie: a leaf
    "rewards.command": ("=rewards",),
    "=rewards.__main__": ("rewards.command",),
    "rewards.recipes": ("rewards.command", "rewards.shipped"),
    "rewards.serve": ("rewards.command", "machine.own", "=services.kit.catalogue"),
    "rewards.migrate": ("rewards.command", "=trainer.__main__", "=trainer.commands"),
    "rewards.signs": (),  # prompts that it writes: a leaf
    "rewards.sources": ("rewards.shipped", "rewards.signs", "machine.hub"),
    "rewards.fetch": (
        "machine.hub",
        "machine.own",
        "rewards.shipped",
        "rewards.sources",
        "trainer.config",
        "trainer.migration",
    ),
    # Services looked at from outside: of the trainer, what a recipe says and how pages are served.
    "rewards.plane": (
        "wire",
        "rewards.shipped",
        "=services.kit.catalogue",
        "trainer.config",
        "trainer.migration",
        "trainer.report.charts",
        "=trainer.runs.look",
        "=trainer.runs.serving",
        "=trainer.runs.shell",
    ),
    "rewards.completion": ("=rewards", "rewards.command", "rewards.shipped", "=services.kit.catalogue"),
    "=trainer": (),
    "trainer.types": (),
    "trainer.config": ("rewards.shipped", "rewards.sources", "machine.called", "machine.hub", "machine.own"),
    "trainer.seeds": (),
    "machine.transfers": (),  # how tensors reach the device
    "trainer.quickstart": (),
    "trainer.processes": ("machine", "trainer.config"),
    "trainer.processes.launch": (  # a command
        "machine",
        "rewards.shipped",
        "trainer.config",
        "trainer.processes",
        "trainer.migration",
    ),
    "trainer.engine": ("trainer.config", "trainer.processes"),
    "trainer.advantages": ("trainer.types",),
    "trainer.losses": ("trainer.types",),
    "trainer.samplers": ("trainer.types", "machine.transfers"),
    "trainer.policies": (
        "machine.hub",
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.samplers",
        "trainer.quickstart",
        "trainer.records.phases",
        "=trainer.data.sequences",
        "=wire.images",
    ),
    "trainer.policies.flow": (
        "machine.called",
        "machine.own",
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.samplers",
        "trainer.seeds",
        "trainer.quickstart",
        "trainer.policies",
        "trainer.records.phases",
        "=wire.images",
    ),
    "trainer.policies.tokens": (
        "machine.hub",
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.samplers",
        "trainer.policies",
        "=wire.images",
    ),
    "trainer.policies.unified": (
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.samplers",
        "trainer.policies",
        "trainer.seeds",
        "trainer.quickstart",
        "=trainer.data.sequences",
        "=wire.images",
    ),
    "trainer.policies.tokens.server": (
        "trainer.types",
        "trainer.config",
        "trainer.policies",
        "trainer.processes.children",
    ),
    "trainer.processes.children": ("rewards.shipped",),
    "trainer.rewards": ("machine.own", "wire", "trainer.types", "trainer.config", "trainer.processes.children"),
    "trainer.migration": ("machine.hub", "rewards.shipped", "trainer.config", "trainer.data"),
    "trainer.data.sequences": (),
    "trainer.data": (
        "machine.hub",
        "machine.own",
        "trainer.types",
        "trainer.config",
        "trainer.seeds",
        "trainer.quickstart",
        "=wire.quotes",
        "=wire.containers",
        "=wire.images",
    ),
    "trainer.objectives": (
        "machine.own",
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.seeds",
        "=trainer.policies.base",
        "=trainer.data.sequences",
        "trainer.losses",
    ),
    "trainer.update": (
        "trainer.types",
        "trainer.config",
        "trainer.engine",
        "trainer.objectives",
        "trainer.losses",
        "trainer.processes",
    ),
    "trainer.checkpoint": ("trainer.types", "trainer.config", "trainer.processes"),
    "trainer.export": (
        "trainer.types",
        "trainer.config",
        "trainer.migration",
        "trainer.checkpoint",
        "trainer.policies",
        "trainer.data",
    ),
    "trainer.records": (
        "machine.called",
        "machine.own",
        "trainer.types",
        "trainer.config",
        "trainer.processes",
        "trainer.advantages",
    ),
    "trainer.report": ("trainer.types", "trainer.config", "trainer.records", "=wire.quotes", "=wire.images"),
    "trainer.evaluation": (
        "machine.own",
        "trainer.types",
        "trainer.config",
        "trainer.seeds",
        "=trainer.policies.base",
        "=trainer.policies.generation",
        "=trainer.policies.registry",
        "trainer.rewards",
        "trainer.data",
        "trainer.processes",
        "trainer.records",
        "=wire.images",
    ),
    "trainer.runs": (
        "trainer.config",
        "trainer.processes.run_lock",
        "trainer.records",
        "trainer.report",
        "trainer.evaluation.outcomes",
        "=wire.hosts",
        "=wire.quotes",
    ),
    "trainer.doctor": (
        "machine",
        "trainer.migration",
        "trainer.types",
        "trainer.config",
        "trainer.checkpoint",
        "trainer.programs",
        "trainer.data",
        "trainer.rewards",
        "trainer.records",
        "trainer.processes",
        "wire",
        "trainer.evaluation",
        "trainer.objectives",
        "trainer.policies",
    ),
    "trainer.programs": (
        "machine.called",
        "machine.own",
        "trainer.types",
        "machine.transfers",
        "trainer.config",
        "trainer.seeds",
        "trainer.processes",
        "trainer.data",
        "trainer.policies",
        "trainer.samplers",
        "trainer.advantages",
        "trainer.losses",
        "trainer.objectives",
        "trainer.quickstart",
        "trainer.update",
        "trainer.engine",
        "trainer.rewards",
        "trainer.checkpoint",
        "trainer.evaluation",
        "trainer.records",
        "trainer.report",
        "trainer.export",
        "=wire.quotes",
    ),
    "trainer.loop": ("trainer.types", "trainer.config", "trainer.processes", "trainer.programs"),
    "=trainer.commands": (),  # a table of modules that it does not import
    "trainer.commands": (  # a command each
        "machine.called",
        "machine.own",
        "rewards.shipped",
        "trainer.types",
        "trainer.config",
        "trainer.processes",
        "trainer.policies.registry",
        "trainer.data",
        "trainer.records",
        "trainer.report",
        "trainer.runs",
        "trainer.export",
        "trainer.doctor",
        "trainer.programs",
        "trainer.migration",
        "trainer.loop",
    ),
    "trainer.__main__": ("trainer",),
}

# What else these may import, beside the standard library.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "machine": ("torch",),
    "machine.hub": ("huggingface_hub", "httpx"),
    "wire": ("pydantic", "PIL", "certifi"),
    "wire.connections": ("httpx",),
    "=rewards": (),
    "rewards.shipped": (),
    "rewards.command": (),
    "rewards.recipes": (),
    "rewards.serve": (),
    "rewards.completion": (),
    "wire.client": ("pydantic", "PIL", "numpy", "httpx"),
    "=trainer.commands": (),
    "trainer.commands": (),
    "trainer.types": ("torch", "numpy", "PIL"),
    "trainer.config": ("pydantic", "pydantic_core", "yaml"),
    "trainer.advantages": ("torch", "numpy"),
    "trainer.losses": ("torch",),
    "trainer.samplers": ("torch",),
}

# Circles that are to go, each by a module or unit of it; once it is gone the test fails until its name is, too.
KNOWN_CIRCLES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Violation:
    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def violations(root: Path) -> list[Violation]:
    """Every import in the tree under `root` that the tables do not allow."""
    modules = _modules(root)
    found = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        unit = _unit(module)
        if unit is None:
            found.append(Violation(path, 1, f"{module} has no rule: add it to RULES with what it may import"))
            continue
        for line, target in _imports(tree, module, path.name == "__init__.py", modules):
            problem = _problem(module, unit, target)
            if problem is not None:
                found.append(Violation(path, line, problem))
    return found


def module_circles(root: Path) -> list[set[str]]:
    """Modules that import one another round, each circle as the set of its modules."""
    return _circles(_graph(root))


def unit_circles(root: Path) -> list[set[str]]:
    """Entries of the table whose modules import one another round."""
    units: dict[str, set[str]] = {}
    for module, targets in _graph(root).items():
        unit = _unit(module) or module
        units.setdefault(unit, set()).update(_unit(target) or target for target in targets)
    return _circles(units)


def _graph(root: Path) -> dict[str, set[str]]:
    """Every module of ours with the modules of ours that it names, and the package where it names one `from package import`.

    That a package is imported on the way to `package.module` is not counted.
    """
    modules = _modules(root)
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        named = {target for _, target in _imports(tree, module, path.name == "__init__.py", modules)}
        named |= {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
        }
        graph[module] = named & modules.keys() - {module}
    return graph


def _circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node: of any two of them each reaches the other."""
    reached = {node: _reachable(graph, node) for node in graph}
    circles: list[set[str]] = []
    for node in graph:
        circle = {other for other in reached[node] if node in reached.get(other, ())}
        if len(circle) > 1 and circle not in circles:
            circles.append(circle)
    return circles


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """The nodes that a path of at least one edge leads to; an edge from a node to itself is none."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        node = ahead.pop()
        new = graph.get(node, set()) - {node} - found
        found |= new
        ahead += new
    return found


def _modules(root: Path) -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _unit(module: str) -> str | None:
    """The table's entry for a module, with "services.ocr" and the like for a service; None where there is none."""
    if f"={module}" in RULES:
        return f"={module}"
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in RULES:
            return name
    return ".".join(parts[:2]) if parts[0] == "services" else None


def _problem(module: str, unit: str, target: str) -> str | None:
    top = target.partition(".")[0]
    if top in OURS:
        allowed = RULES.get(unit, RULES["services.*"])
        if _covers(unit, target) or any(_covers(entry, target) for entry in allowed):
            return None
        return (
            f"{module} imports {target}; {unit} may import {', '.join(allowed).replace('=', '') or 'nothing of ours'}"
        )
    limit = THIRD_PARTY.get(unit)
    if limit is None or top in limit or top in sys.stdlib_module_names:
        return None
    return f"{module} imports {target}; of other packages {unit} may import {', '.join(limit)}"


def _covers(entry: str, target: str) -> bool:
    return target == entry.removeprefix("=") or target.startswith(entry + ".")


def _imports(tree: ast.Module, module: str, is_package: bool, modules: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in modules else base
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            argument = node.args[0]
            if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def test_the_tree_keeps_the_rules() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(str(violation) for violation in found)


def test_no_module_and_no_unit_is_part_of_a_circle() -> None:
    """A circle cannot be read, tested or replaced in parts. Imports under TYPE_CHECKING count: they are dependencies, too."""
    circles = {"modules": module_circles(ROOT), "units": unit_circles(ROOT)}
    for kind, found in circles.items():
        new = [sorted(circle) for circle in found if not circle & set(KNOWN_CIRCLES)]
        assert not new, f"{kind} that import one another round: " + "; ".join(" <-> ".join(circle) for circle in new)
    left = set().union(*(circle for found in circles.values() for circle in found))
    gone = set(KNOWN_CIRCLES) - left
    assert not gone, f"no circle is left through these: take them out of KNOWN_CIRCLES: {gone}"


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        ("from trainer.policies.base import Policy\n", "run"),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trainer.policies.base import Policy\n",
            "types",
        ),
        ("def f():\n    import trainer.policies.base\n", "inside a function"),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_a_planted_circle_is_found(tmp_path: Path, planted: str, kind: str) -> None:
    files = {
        "trainer/__init__.py": "",
        "trainer/policies/__init__.py": "",
        "trainer/policies/base.py": "from trainer.samplers.flow_sde import Kind\n",
        "trainer/samplers/__init__.py": "",
        "trainer/samplers/flow_sde.py": "",
        "trainer/samplers/schedules.py": "from trainer.samplers.flow_sde import Kind\n",
    }
    _plant(tmp_path, files)
    assert module_circles(tmp_path) == unit_circles(tmp_path) == []
    _plant(tmp_path, {"trainer/samplers/flow_sde.py": planted})
    assert module_circles(tmp_path) == [{"trainer.policies.base", "trainer.samplers.flow_sde"}], kind
    assert unit_circles(tmp_path) == [{"trainer.policies", "trainer.samplers"}]
    _plant(tmp_path, {"trainer/samplers/flow_sde.py": "", "trainer/samplers/schedules.py": planted})
    assert module_circles(tmp_path) == [], "round by units alone: no module reaches itself"
    assert unit_circles(tmp_path) == [{"trainer.policies", "trainer.samplers"}]


def test_the_top_of_the_trainer_is_rooms_and_four_modules() -> None:
    """A room is looked into when it is needed; a module that lies beside the rooms is met by everybody."""
    entries = [path for path in (ROOT / "trainer").iterdir() if path.suffix == ".py" or any(path.glob("**/*.py"))]
    assert len(entries) <= 27
    modules = {path.stem for path in entries if path.is_file()}
    assert modules == {"__init__", "__main__", "loop", "types", "seeds"}


def test_every_rule_is_about_something_known() -> None:
    """A listed name must be an entry itself, so that a rename cannot leave a hole behind."""
    for unit, allowed in RULES.items():
        for entry in allowed:
            name = entry.removeprefix("=")
            known = name in RULES or f"={name}" in RULES or name.rpartition(".")[0] in RULES
            assert known, f"{unit} lists {entry}"


PLANTED: list[tuple[str, str, int, str]] = [
    # file, its text, the line at fault, what is imported
    ("wire/schema.py", "import json\nfrom trainer import config\n", 2, "trainer.config"),
    ("wire/images.py", "import httpx\n", 1, "httpx"),
    ("services/kit/app.py", "def f():\n    from trainer.config import Config\n", 2, "trainer.config"),
    ("services/kit/dispatch/batcher.py", "import services.ocr.scorer\n", 1, "services.ocr.scorer"),
    (
        "services/kit/dispatch/base.py",
        "from services.kit.http.service import Service\n",
        1,
        "services.kit.http.service",
    ),
    ("loadtest/sender.py", "from services.kit.app import create_app\n", 1, "services.kit.app"),
    ("services/ocr/scorer.py", "from services.hps import scorer\n", 1, "services.hps.scorer"),
    ("services/ocr/engines/rapid.py", "from ...hps import scorer\n", 1, "services.hps.scorer"),
    ("services/hps/scorer.py", "import trainer.types\n", 1, "trainer.types"),
    ("trainer/config/base.py", "import torch\n", 1, "torch"),
    ("trainer/losses.py", "from services.rules.scorer import RulesScorer\n", 1, "services.rules.scorer"),
    ("trainer/advantages/estimators.py", "from trainer.config import Config\n", 1, "trainer.config"),
    ("trainer/advantages/spread.py", "import scipy\n", 1, "scipy"),
    ("trainer/samplers/flow_sde.py", "from ..policies.base import Policy\n", 1, "trainer.policies.base"),
    ("trainer/samplers/schedules.py", "import importlib\nimportlib.import_module('trainer.loop')\n", 2, "trainer.loop"),
    ("trainer/policies/flow/tiny.py", "from trainer.rewards import RewardClient\n", 1, "trainer.rewards"),
    ("trainer/rewards/client.py", "from services.kit.scorer import Item\n", 1, "services.kit.scorer"),
    (
        "trainer/update/updater.py",
        "\n\nfrom trainer.policies.flow.tiny import TinyPolicy\n",
        3,
        "trainer.policies.flow.tiny",
    ),
    ("trainer/evaluation/sets.py", "from trainer.policies import POLICIES\n", 1, "trainer.policies"),
    ("trainer/data/datasets.py", "import trainer\nif True:\n    import trainer.loop\n", 1, "trainer"),
    ("trainer/loop.py", "from services.ocr import scorer\n", 1, "services.ocr"),
    ("trainer/__init__.py", "from trainer.loop import train\n", 1, "trainer.loop"),
    ("services/__init__.py", "from services import ocr\n", 1, "services.ocr"),
    ("trainer/newcomer.py", "import math\n", 1, "has no rule"),
]


@pytest.mark.parametrize(("file", "text", "line", "target"), PLANTED, ids=[case[0] for case in PLANTED])
def test_a_planted_violation_is_reported_with_file_and_line(
    tmp_path: Path, file: str, text: str, line: int, target: str
) -> None:
    others = (
        "services/hps/scorer.py",
        "services/ocr/__init__.py",
        "trainer/config/__init__.py",
        "trainer/policies/base.py",
    )
    _plant(tmp_path, {**dict.fromkeys(others, ""), file: text})
    found = violations(tmp_path)
    assert any(each.path == tmp_path / file and each.line == line and target in each.message for each in found), found
    assert str(found[0]).startswith(f"{tmp_path / file}:{line}: ")


def test_what_the_table_allows_is_not_reported(tmp_path: Path) -> None:
    _plant(
        tmp_path,
        {
            "wire/schema.py": "import pydantic\nfrom PIL import Image\nimport math\n",
            "services/kit/scorer.py": "from wire.schema import ErrorCode\nimport fastapi\n",
            "services/ocr/scorer.py": "from services.kit.scorer import Item\nfrom . import text\nimport wire.schema\n",
            "services/ocr/text.py": "import onnxruntime\n",
            "trainer/types.py": "import torch\n",
            "trainer/losses.py": "from trainer import types\nfrom .types import Rollout\nimport torch\n",
            "trainer/policies/__init__.py": "def f():\n    from trainer.policies.flow.tiny import TinyPolicy\n",
            "trainer/policies/base.py": "from trainer.types import Rollout\n",
            "trainer/policies/flow/tiny.py": "from trainer.policies import base\nimport diffusers\n",
            "trainer/evaluation/sampling.py": "from trainer.policies import base\nfrom trainer.policies.base import Policy\n",
            "trainer/programs/rl.py": "from trainer.policies.flow.tiny import TinyPolicy\nimport trainer.update.updater\n",
            "trainer/loop.py": "from trainer.programs import rl\n",
        },
    )
    assert violations(tmp_path) == []


def _plant(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


IMPORT_ALL = """
import importlib, socket, sys

sys.modules["torchvision"] = None  # its wheel does not fit a torch without CUDA, so nothing may need it

def refuse(*args, **kwargs):
    raise OSError("an import reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"import {name}: {type(error).__name__}: {error}")
"""


def test_every_module_imports_without_gpu_network_or_torchvision() -> None:
    loaded_by_vllm = "trainer.policies.tokens.server.worker"  # in the server's own environment, by its command line
    names = [name for name in _modules(ROOT) if not name.endswith("__main__") and name != loaded_by_vllm]
    environment = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("wire.schema", ("torch", "fastapi", "httpx", "numpy")),
        ("wire.images", ("torch", "fastapi", "httpx", "numpy")),
        ("wire.client", ("torch", "fastapi", "numpy", "services", "trainer")),
        ("trainer.config", ("torch", "diffusers", "fastapi", "httpx")),
        ("services.rules.scorer", ("torch", "diffusers", "fastapi")),
        ("services.kit.app", ("torch", "diffusers", "onnxruntime")),
        ("trainer.policies.registry", ("torch", "numpy", "diffusers", "transformers")),
        ("trainer.rewards", ("fastapi", "uvicorn", "diffusers")),
    ],
)
def test_importing_a_light_module_stays_light(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}\nprint(*(name for name in {unwanted!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
