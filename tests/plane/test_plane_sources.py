"""Whom a recipe, a compose file and addresses name: where, with which token, and what need not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.plane.compose import interpolated
from rewards.plane.sources import read_plan
from rewards.plane.targets import SourceError, Target
from rewards.shipped import recipes
from services.kit.catalogue import DEPLOYED
from tests.support.deployment import COMPOSE_FILE, ROOT, env_file
from tests.support.deployment import interpolated as by_the_specification
from trainer.config import ConfigError

CPU = ROOT / "docker/cpu.env"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(autouse=True)
def _no_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPOSE_PROFILES", "BIND_ADDRESS", "SECRETS_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_compose_file_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_tokens").write_text(f"# made\ntrainer:{TOKEN} items_per_minute=9\nlab:{TOKEN[::-1]}\n")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    plan = read_plan([str(COMPOSE_FILE)], env_file=CPU)
    assert {each.group: each.url for each in plan.targets} == {
        entry.name: f"http://127.0.0.1:{entry.port}" for entry in DEPLOYED
    }
    assert all(each.expects == each.group and each.token == TOKEN for each in plan.targets)
    assert {each.group for each in plan.targets if each.optional} == {
        entry.name for entry in DEPLOYED if entry.deployed == "shelf"
    }
    shelf = next(each for each in plan.targets if each.group == "geneval")
    assert shelf.absent == "of the profile shelf, which was not chosen (--profile)"
    assert plan.notes == (
        "not asked, as they publish no port: ocr-worker",
        "not asked, as they are no reward services: redis, unifiedreward-vllm, eval-vllm, prometheus, grafana",
    )
    assert not any(each.optional for each in read_plan([str(COMPOSE_FILE)], profiles=["shelf"], env_file=CPU).targets)
    monkeypatch.setenv("COMPOSE_PROFILES", "observe,shelf")
    assert not any(each.optional for each in read_plan([str(COMPOSE_FILE)], env_file=CPU).targets)


def test_one_that_is_named_has_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = read_plan([str(COMPOSE_FILE)], only=["geneval"], env_file=CPU).targets
    assert (found.group, found.optional) == ("geneval", False)
    with pytest.raises(SourceError, match=r"--only orc: no such service there; there are: clip, eval, geneval"):
        read_plan([str(COMPOSE_FILE)], only=["orc"], env_file=CPU)


def test_without_its_secrets_the_reason_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "none"))
    found = read_plan([str(COMPOSE_FILE)], only=["ocr"], env_file=CPU).targets[0]
    assert found.token is None
    assert (
        found.no_token
        == f"it wants a token, and {tmp_path}/none/reward_tokens cannot be read (No such file or directory)"
    )


OTHER = """
services:
  text:
    image: registry.example.com:5000/rewards-ocr:1.2
    ports: ["127.0.0.1:${FIRST:-9000}-9002:18082"]
  colour:
    build: {context: ., args: [SERVICE=rules, PORT=18084]}
    ports:
      - {target: 18084, published: "9100", host_ip: "::1"}
      - {target: 18084, protocol: udp, published: 9101}
      - "18084"
    environment: [RULES_TOKEN_FILE=/run/secrets/tokens]
  hps: {ports: ["0.0.0.0:9200:18083/tcp", "[::1]:9201:18083"]}
  eval: {image: somebody/else, ports: ["1:1"]}
  nothing:
secrets: {tokens: {file: ./t}}
"""


def test_other_forms_of_ports_images_and_arguments(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{TOKEN}\n")
    (tmp_path / "compose.yaml").write_text(OTHER)
    plan = read_plan([str(tmp_path / "compose.yaml")])
    assert [(each.group, each.url, each.expects) for each in plan.targets] == [
        ("text", "http://127.0.0.1:9000", "ocr"),
        ("text", "http://127.0.0.1:9001", "ocr"),
        ("text", "http://127.0.0.1:9002", "ocr"),
        ("colour", "http://[::1]:9100", "rules"),
        ("hps", "http://127.0.0.1:9200", "hps"),
        ("hps", "http://[::1]:9201", "hps"),
    ]
    assert [each.token for each in plan.targets[2:4]] == [None, TOKEN]
    assert plan.notes == ("not asked, as they are no reward services: eval, nothing",)
    (tmp_path / ".env").write_text("# ports\nexport FIRST='9002'\n")
    assert [each.url for each in read_plan([str(tmp_path / "compose.yaml")], only=["text"]).targets] == [
        "http://127.0.0.1:9002"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}:$A:${NO}:$$A", "a:a::$A"),
        ("${NO:-x}${NO-y}${EMPTY:-x}${EMPTY-y}", "xyx"),
        ("${A:+x}${NO:+x}${EMPTY+y}", "xy"),
        ("${NO:-${A:-b}}${NO:-${NO:-b}}", "ab"),
        ("${ODD}", "$A${A}"),
        ("$5 and {A}", "$5 and {A}"),
    ],
)
def test_variables_are_filled_in_as_compose_does(text: str, expected: str) -> None:
    assert interpolated(text, {"A": "a", "EMPTY": "", "ODD": "$A${A}"}) == expected


def test_the_whole_file_is_filled_in_alike() -> None:
    given = env_file("docker/cpu.env")
    assert interpolated(COMPOSE_FILE.read_text(), given) == by_the_specification(COMPOSE_FILE.read_text(), given)


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ('["${MUST:?set it}:1"]', "the variable MUST is not set: set it"),
        ('["127.0.0.1"]', "services.ocr.ports: '127.0.0.1' is no port, as in 127.0.0.1:18082:18082"),
        ("[]", "publishes no port of a reward service of ours (clip, imagereward, ocr,"),
    ],
)
def test_a_compose_file_that_cannot_be_asked(ports: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(f"services: {{ocr: {{ports: {ports}}}}}\n")
    with pytest.raises(SourceError) as refused:
        read_plan([str(tmp_path / "compose.yaml")])
    assert said in str(refused.value)


def test_a_recipe_with_addresses(tmp_path: Path) -> None:
    plan = read_plan(["sd35_medium_multi", "rewards.services.hps.urls=[http://a:1/, http://b:2]"])
    assert [(each.group, each.url) for each in plan.targets] == [
        ("ocr", "http://127.0.0.1:18082"),
        ("hps", "http://a:1"),
        ("hps", "http://b:2"),
        ("unifiedreward", "http://127.0.0.1:18087"),
    ]
    assert all(each.columns and each.expects is None for each in plan.targets)
    token, no_file = tmp_path / "token", tmp_path / "none"
    token.write_text(f"{TOKEN}\n")
    words = ["sd35_medium_ocr", f"rewards.services.ocr.token_file={token}"]
    assert read_plan(words).targets[0].token == TOKEN
    found = read_plan(["sd35_medium_ocr", f"rewards.services.ocr.token_file={no_file}"]).targets[0]
    assert found.token is None and f"token_file = {no_file} cannot be read" in found.no_token


def test_a_recipe_whose_run_starts_its_services(tmp_path: Path) -> None:
    """Before the run nothing is known; then the newest start of each says where it listens."""
    words = ["quickstart", f"output_dir={tmp_path}"]
    before = read_plan(words).targets
    assert {each.url for each in before} == {""} and [each.expects for each in before] == ["ocr", "rules", "ocr"]
    assert (
        before[0].absent
        == f"the run starts it (launch: local), and no run has written {tmp_path}/quickstart/logs/ocr.log"
    )
    assert before[0].columns == {"ocr": "flow_grpo"}
    logs = tmp_path / "quickstart" / "logs"
    logs.mkdir(parents=True)
    (logs / "ocr.log").write_text(
        'ocr listening on http://127.0.0.1:41001\n{"message": "x listening on http://evil"}\nocr ready\n'
        "ocr listening on http://127.0.0.1:41002\n"
    )
    (logs / "rules.log").write_text("Traceback\n")
    after = read_plan(words).targets
    assert [each.url for each in after] == ["http://127.0.0.1:41002", "", ""]
    assert after[1].absent.endswith("rules.log does not say where it listens")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_is_read_or_names_no_service(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those whose models are not here: nobody trains."""
    try:
        assert read_plan([name]).targets
    except SourceError as error:
        assert "names no reward service" in str(error)


def test_addresses_alone_and_in_groups() -> None:
    plan = read_plan(["http://127.0.0.1:1/", "ocr=http://a:1,https://b:2/x/"])
    assert plan.targets == (
        Target("", "http://127.0.0.1:1"),
        Target("ocr", "http://a:1"),
        Target("ocr", "https://b:2/x"),
    )


def test_a_token_of_the_command_line_is_for_all_and_in_no_message(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"name:{TOKEN}\n")
    plan = read_plan(["http://a", "http://b"], token_file=tmp_path / "token", ca_file=tmp_path / "ca.pem")
    assert [(each.token, each.ca_file) for each in plan.targets] == [(TOKEN, tmp_path / "ca.pem")] * 2
    assert TOKEN not in repr(plan)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=2"], "nothing is named to be asked"),
        (["http://user:secret@a"], "a URL with a password"),
        (["http://a/v1/score"], "names a route"),
        (["http://"], "is no URL of a service"),
        (["quikstart"], "did you mean quickstart?"),
        (["none.yaml"], "no file at"),
        (
            ["quickstart", "rewards.tape={mode: replay, path: t}"],
            "takes its scores from the tape t: no service is asked",
        ),
        (["quickstart", "rewards.services.ocr.urls=[ftp://a]"], "is no address of a service"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_remedy(words: list[str], said: str) -> None:
    with pytest.raises((SourceError, ConfigError)) as refused:
        read_plan(words)
    assert said in str(refused.value) and "secret" not in str(refused.value)
