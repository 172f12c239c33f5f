"""Messages name the program as it was called."""

from __future__ import annotations

import pytest

from machine.called import command


@pytest.mark.parametrize(
    ("called", "export", "migrate"),
    [
        ("/usr/bin/rewards", "rewards export", "rewards migrate config"),
        ("/opt/src/rewards/__main__.py", "rewards export", "rewards migrate config"),
        ("/opt/src/trainer/__main__.py", "python -m trainer export", "python -m trainer migrate-config"),
        ("", "python -m trainer export", "python -m trainer migrate-config"),
    ],
)
def test_a_command_is_named_as_its_program_was_called(
    called: str, export: str, migrate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [called, "train", "quickstart"])
    assert (command("export"), command("migrate-config")) == (export, migrate)
