"""What the settings of a judge refuse."""

from __future__ import annotations

import pytest

from services.common.judge.settings import JudgeSettings
from services.common.settings import load_settings


def test_a_password_in_the_judges_address_is_refused_and_not_repeated(capsys):
    """The address is part of messages, `/ready` shows them to everybody."""
    with pytest.raises(SystemExit):
        load_settings(JudgeSettings, ["--judge-url", "https://lab:hunter2@judge:8000/v1"])
    told = capsys.readouterr().err
    assert "--judge-key-file" in told and "https://judge:8000/v1" in told
    assert "hunter2" not in told
