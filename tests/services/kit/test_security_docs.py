"""The pages on security and on other clients: their flags exist, their proxy examples are valid."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from services.ocr.settings import OcrSettings

DOCS = Path(__file__).resolve().parents[3] / "docs"
# Flags in the tables that belong to other programs or to another service.
OTHERS = {"--checkpoint", "--clip", "--detector", "--judge-url"}


@pytest.mark.parametrize("page", ["security.md", "legacy_clients.md"])
def test_flags_exist(page):
    named = set(re.findall(r"--[a-z][a-z-]+[a-z]", (DOCS / page).read_text("utf-8"))) - OTHERS
    known = {"--" + name.replace("_", "-") for name in OcrSettings.model_fields}
    assert len(named) > 2 and named <= known


def test_limits_are_those_of_the_settings():
    text = (DOCS / "security.md").read_text("utf-8")
    defaults = {name: field.default for name, field in OcrSettings.model_fields.items()}
    expected = ["max_connections", "max_items", "max_images_per_item", "queue_size"]
    assert [defaults[name] for name in expected] == [512, 1024, 16, 4096]
    for row in ("| 512 | 503 |", "| 1024, 16 | 413 |", "| 4096 | 429 |", "| 128 MiB, 60 s | 413, 408 |"):
        assert row in text
    assert (defaults["max_body_bytes"], defaults["body_timeout_s"]) == (128 << 20, 60)


def block(language):
    [text] = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / "security.md").read_text("utf-8"), re.S | re.M)
    return text


def program(name):
    """Its path, also where it is kept from people's PATH; the test skips without it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found or pytest.skip(f"{name} is not installed")


def test_nginx_takes_its_example(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout {key} -out {certificate}"
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    text = block("nginx").replace("/etc/ssl/rewards.pem", str(certificate)).replace("/etc/ssl/rewards.key", str(key))
    config = tmp_path / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    start = f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
    config.write_text(f"{start}http {{\naccess_log off;\n{temporary}{text}}}\n")
    done = subprocess.run([program("nginx"), "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_caddy_takes_its_example(tmp_path):
    config = tmp_path / "Caddyfile"
    config.write_text(block("caddy"))
    command = [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
