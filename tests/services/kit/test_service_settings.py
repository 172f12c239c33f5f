"""Flags, environment variables, and sentences for wrong values; token files."""

from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict

from services.kit.guard.auth import Tokens
from services.kit.settings import Port, ServiceSettings, load_settings
from wire.hosts import is_loopback


class OcrLike(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="OCR_")
    port: Port = 18082


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        load_settings(OcrLike, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_flag_wins_over_environment_over_default(monkeypatch):
    monkeypatch.setenv("OCR_MAX_ITEMS", "5")
    monkeypatch.setenv("OCR_DRAIN_S", "7")
    settings = load_settings(OcrLike, ["--max-items", "6"])
    assert (settings.max_items, settings.drain_s, settings.port, settings.host) == (6, 7, 18082, "127.0.0.1")


def test_trainers_variables_do_not_disturb(monkeypatch):
    monkeypatch.setenv("OCR_URL", "http://127.0.0.1:18082")
    monkeypatch.setenv("RULES_URL", "http://127.0.0.1:18084")
    assert load_settings(OcrLike, []).port == 18082


def test_other_services_variables_do_not_disturb(monkeypatch):
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("RULES_PORT", "2")
    assert load_settings(OcrLike, []).port == 18082


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--port", "70000", "--port (OCR_PORT): Input should be less than or equal to 65535; got '70000'"),
        ("--port", "tcp://10.0.0.1:1", "--port (OCR_PORT): Input should be a valid integer"),
        ("--workers", "0", "--workers (OCR_WORKERS): Input should be greater than or equal to 1"),
        ("--max-body-bytes", "1", "--max-body-bytes (OCR_MAX_BODY_BYTES)"),
        ("--max-items", "0", "--max-items"),
        ("--max-images-per-item", "0", "--max-images-per-item"),
        ("--max-image-bytes", "0", "--max-image-bytes"),
        ("--max-image-pixels", "0", "--max-image-pixels"),
        ("--queue-size", "0", "--queue-size"),
        ("--queue-size", "10", "queue_size 10 is below max_items 1024"),
        ("--max-memory-bytes", "2000000", "max_memory_bytes 2000000 is below max_body_bytes 134217728"),
        ("--max-wait-ms", "-1", "--max-wait-ms"),
        ("--cache-entries", "-1", "--cache-entries"),
        ("--request-timeout-s", "0", "--request-timeout-s"),
        ("--body-timeout-s", "0", "--body-timeout-s"),
        ("--drain-s", "-1", "--drain-s"),
        ("--host", "0.0.0.0", "give --token-file, or --insecure-no-token"),
    ],
)
def test_wrong_value_is_a_sentence(capsys, flag, value, message):
    assert message in refused(capsys, f"{flag}={value}")


@pytest.mark.parametrize("argv", [["--no-such-flag"], ["--log-level", "loud"], ["--port"]])
def test_wrong_flag_exits(capsys, argv):
    assert argv[0].lstrip("-") in refused(capsys, *argv)


def test_open_host_needs_a_token_or_a_word(tmp_path):
    assert load_settings(OcrLike, ["--host", "0.0.0.0", "--insecure-no-token"]).insecure_no_token
    assert load_settings(OcrLike, ["--host", "::", "--token-file", str(tmp_path / "t")]).host == "::"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu1", False)],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_help_names_flags_and_variables(capsys):
    with pytest.raises(SystemExit) as caught:
        load_settings(OcrLike, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--max-items" in text and "OCR_MAX_ITEMS" in text and "Most items in one request" in text


def test_tokens_by_name(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("ci: aaaaaaaaaaaaaaaaaaaa\nbbbbbbbbbbbbbbbbbbbb\n")
    tokens = Tokens.from_file(file)
    assert tokens.name_of(b"Bearer aaaaaaaaaaaaaaaaaaaa") == "ci"
    assert tokens.name_of(b"bearer bbbbbbbbbbbbbbbbbbbb") == "line2"
    assert tokens.name_of(b"Bearer ci") is None
    assert tokens.name_of(None) is None
    assert "aaaa" not in repr(tokens) and "bbbb" not in repr(tokens)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no token"),
        (b"# only a comment\n", "holds no token"),
        (b"short\n", "line 1: a token needs at least 16 characters"),
        (b"two words are not one token\n", "no white space"),
        (b"a:aaaaaaaaaaaaaaaaaaaa\na:bbbbbbbbbbbbbbbbbbbb\n", "'a' appears twice"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_wrong_token_file_says_why_without_the_token(tmp_path, content, message):
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokens.from_file(file)
    assert "aaaa" not in str(caught.value)


def test_missing_token_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        Tokens.from_file(tmp_path / "nowhere")
