"""The images: Dockerfiles, what they copy and install, their health check, and the scripts around them."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rewards import __version__
from scripts.hash_requirements import pins
from services.kit.guard.auth import Tokens
from tests.support.deployment import ROOT, own_services, settings_of

SERVICES = sorted({service["build"]["args"]["SERVICE"] for service in own_services().values()})
DOCKERFILES = ("docker/service.Dockerfile", "docker/trainer.Dockerfile")
# Engines and backends that a user adds to the image; the code says so when they are missing.
OPTIONAL = {"paddleocr", "paddle", "pytesseract"}
OURS = {"machine", "wire", "services", "loadtest", "trainer", "rewards"}


def lines(name: str) -> list[str]:
    return (ROOT / name).read_text().splitlines()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(name: str) -> set[str]:
    """The packages an image's list names, with those of the lists it includes."""
    found: set[str] = set()
    for line in lines(f"requirements/services/{name}.in"):
        if line.startswith("-r "):
            found |= listed(line.removeprefix("-r ").removesuffix(".in"))
        elif line and not line.startswith("#"):
            found.add(line)
    return found


@cache
def named_modules(path: Path) -> set[str]:
    """What a file imports, wherever in it; of `from a import b` both a and a.b, which may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def reached(service: str) -> set[Path]:
    """The files of a service, and those of wire and of the kit that they import, directly or through others: what of the kit
    needs torch counts only for services that use it."""
    found: set[Path] = set()
    waiting = list((ROOT / "services" / service).rglob("*.py"))
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in named_modules(path):
            place = ROOT.joinpath(*name.split("."))
            if name.partition(".")[0] in {"wire", "services"}:
                waiting += [each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()]
    return found


@cache
def owners_of_modules() -> Mapping[str, list[str]]:
    return packages_distributions()


def imported(service: str) -> set[str]:
    """The installed packages that the modules of a service's image import."""
    owners = owners_of_modules()
    tops = {name.partition(".")[0] for path in reached(service) for name in named_modules(path)}
    tops -= {*sys.stdlib_module_names, *OURS, *OPTIONAL}
    return {normal(owner) for top in tops for owner in owners[top]}


def needed(roots: set[str]) -> set[str]:
    """The packages that installing `roots` brings, by the metadata of what is installed here."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@cache
def pinned() -> frozenset[str]:
    return frozenset(normal(line.partition("==")[0]) for line in lines("requirements/base.txt") if "==" in line)


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_installs_what_its_service_imports_and_no_more(name: str) -> None:
    imports = imported(name)
    missing, idle = imports - needed(listed(name)), listed(name) - listed("kit") - imports
    assert not missing, f"add to requirements/services/{name}.in, or to kit.in: {missing}"
    assert not idle, f"remove from requirements/services/{name}.in or kit.in, nothing imports them: {idle}"


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_copies_all_that_its_service_imports(name: str) -> None:
    copied = [ROOT / folder for folder in ("machine", "wire", "services/kit", f"services/{name}")]
    outside = {path for path in reached(name) if not any(path.is_relative_to(each) for each in copied)}
    assert {path.relative_to(ROOT).as_posix() for path in outside} <= {"services/__init__.py"}


@pytest.mark.parametrize("name", SERVICES)
def test_versions_come_from_the_one_list_of_pins(name: str) -> None:
    """The lists hold names; what is made of them has base.txt's versions and hashes, of what the packages need, too."""
    assert "-r kit.in" in lines(f"requirements/services/{name}.in")
    base, made = pins(ROOT / "requirements/base.txt"), pins(ROOT / f"requirements/services/{name}.txt")
    assert made == {package: base[package] for package in needed(listed(name))}, "run scripts/hash_requirements.py"
    assert all(re.fullmatch(r"[a-z0-9-]+", package) for package in listed(name))
    # torch's CUDA libraries, which a machine without a GPU does not have, are pinned by torch itself.
    assert needed(listed(name)) - pinned() == set()


def test_light_images_stay_light() -> None:
    heavy = {"torch", "transformers", "diffusers", "opencv-python-headless"}
    for name in ("rules", "unifiedreward", "eval", "vqa", "textjudge"):
        assert not needed(listed(name)) & heavy, name
    assert not needed(listed("ocr")) & (heavy - {"opencv-python-headless"})


@pytest.mark.parametrize("file", DOCKERFILES)
def test_dockerfiles_pass_hadolint(file: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / file], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES)
def test_images_are_pinned_and_run_as_nobody(file: str) -> None:
    text = (ROOT / file).read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "ORT_DISABLE_TELEMETRY=1" in text
    # The pins are installed before the code is copied, so that a change of code builds no packages.
    assert text.index("--mount=type=secret,id=pip") < text.index("COPY wire wire")


@pytest.mark.parametrize("file", DOCKERFILES)
def test_what_an_image_copies_is_there_and_not_ignored(file: str) -> None:
    allowed = [line.removeprefix("!") for line in lines(".dockerignore") if line.startswith("!")]
    for line in lines(file):
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                path = source.replace("${SERVICE}", "ocr").rstrip("/")
                assert (ROOT / path).exists(), source
                assert any(path == entry or path.startswith(entry + "/") for entry in allowed), source


def test_of_the_command_a_service_needs_its_version_alone() -> None:
    """And so the image of a service copies no more of it."""
    imported_of_it = {name for service in SERVICES for path in reached(service) for name in named_modules(path)}
    assert {name for name in imported_of_it if name.split(".")[0] == "rewards"} == {"rewards", "rewards.__version__"}
    assert "COPY rewards/__init__.py rewards/" in lines("docker/service.Dockerfile")


@pytest.mark.parametrize("file", DOCKERFILES)
def test_images_say_their_version(file: str) -> None:
    """After what is built of the pins and the code, so that a new version alone builds nothing again; whoever builds can give another."""
    text = (ROOT / file).read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', text))
    name = "rewards-${SERVICE}" if "service" in file else "rewards-trainer"
    assert labels == {"title": name, "version": "${VERSION}", "licenses": "Apache-2.0"}
    assert re.findall(r"^ARG VERSION=(.+)$", text, re.MULTILINE) == [__version__]
    assert text.index("compileall") < text.index("ARG VERSION") < text.index("LABEL") < text.index("\nUSER")


def test_compose_builds_with_the_labels_of_the_dockerfiles() -> None:
    """No build argument of compose stands in their way, and its images are those that build_images.sh makes."""
    for name, service in own_services().items():
        assert set(service["build"]["args"]) == {"SERVICE", "PORT"}, name
        assert service["build"]["dockerfile"] == "docker/service.Dockerfile"


def test_nothing_secret_can_reach_the_build() -> None:
    """An allow-list: all is ignored but what follows."""
    entries = [line for line in lines(".dockerignore") if line and not line.startswith("#")]
    assert entries[0] == "*" and entries[-1] == "**/__pycache__"
    assert all(entry.startswith("!") for entry in entries[1:-1])
    assert not [entry for entry in entries if re.search(r"env$|secret|token", entry)]
    for entry in (".env", "services.env", "secrets/"):
        assert entry in lines(".gitignore")


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that gives every GET this status; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def health_check(port: int) -> int:
    command = [sys.executable, str(ROOT / "docker/ready.py")]
    environment = {"PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False).returncode


def test_the_health_check_is_ready() -> None:
    with answering(200) as port:
        assert health_check(port) == 0
    with answering(503) as port:
        assert health_check(port) == 1
    assert health_check(port) == 1  # nothing listens there now


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = ["bash", str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_build_script_names_each_service_with_its_port() -> None:
    done = script("build_images.sh", *SERVICES, DRY_RUN="1", TAG="v1", ENGINE="podman")
    assert done.returncode == 0, done.stderr
    commands = done.stdout.splitlines()
    assert len(commands) == len(SERVICES)
    for command in commands:
        match = re.search(
            r"--tag rewards-(\w+):v1 --format docker --build-arg SERVICE=(\w+) --build-arg PORT=(\d+)", command
        )
        assert match is not None, command
        assert match[1] == match[2]
        assert int(match[3]) == settings_of(match[1]).model_fields["port"].default


def test_without_a_name_the_build_script_builds_what_compose_starts() -> None:
    done = script("build_images.sh", DRY_RUN="1", ENGINE="podman")
    started = {name for name, service in own_services().items() if "profiles" not in service}
    assert set(re.findall(r"SERVICE=(\w+)", done.stdout)) == started


def test_the_build_script_passes_on_what_it_is_told() -> None:
    done = script(
        "build_images.sh",
        "trainer",
        DRY_RUN="1",
        ENGINE="docker",
        PYTHON_IMAGE="mirror/python:3.11",
        PIP_CONFIG_FILE="pip.conf",
        BUILD_FLAGS="--pull --no-cache",
    )
    assert done.stdout.strip() == (
        "docker build --pull --no-cache --file docker/trainer.Dockerfile --tag rewards-trainer:latest "
        "--build-arg PYTHON_IMAGE=mirror/python:3.11 --secret id=pip\\,src=pip.conf ."
    )


def test_the_build_script_says_what_is_wrong(tmp_path: Path) -> None:
    done = script("build_images.sh", "nope", DRY_RUN="1")
    assert done.returncode == 1 and "no image nope. There are: clip ocr hps rules " in done.stderr
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = script("build_images.sh", "ocr", PATH=str(tmp_path))
    assert done.returncode == 1 and "python3 (3.8 or newer) is needed" in done.stderr
    (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
    done = script("build_images.sh", "ocr", PATH=str(tmp_path))
    assert done.returncode == 1 and "no working docker, podman or buildah found." in done.stderr


def test_secrets_are_made_once_and_are_what_the_services_read(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert script("make_secrets.sh", str(folder)).returncode == 0
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(files) == {"reward_tokens", "metrics_token", "grafana_password"}
    # Readable to the containers' users, but below a folder that other users of the machine cannot enter.
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    tokens = Tokens.from_file(folder / "reward_tokens")
    assert tokens.name_of(b"Bearer " + files["metrics_token"].strip().encode()) == "prometheus"
    assert "trainer" in repr(tokens)
    again = script("make_secrets.sh", str(folder))
    assert again.returncode == 0 and "wrote" not in again.stdout
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_secrets_that_belong_together_are_not_made_apart(tmp_path: Path) -> None:
    (tmp_path / "reward_tokens").write_text("trainer:0123456789abcdef\n")
    done = script("make_secrets.sh", str(tmp_path))
    assert done.returncode == 1 and "which belong together" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"reward_tokens"}
