"""Configuration files: what is read as what, overrides, and errors of the file itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import Config, ConfigError
from trainer.config.file import dump_config, load_config, parse_yaml

TEXT = """\
run_name: test
max_steps: 10
policy: {type: tiny}
rewards:
  services:
    ocr: {urls: ["http://127.0.0.1:18082", "http://127.0.0.1:18083"]}
  columns:
    ocr: {service: ocr}
data:
  train:
    - {path: train.jsonl, rewards: {ocr: 1.0}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_resolved_config_is_read_back_as_it_was(file: Path, tmp_path: Path) -> None:
    config = load_config(file, Config, ["sampling.sde_window=[0, 3]", "evaluation.path=heldout.txt", "optim.lr=1e-5"])
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again, Config) == config


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "1.e-4", "0.0001", "+1e-4"])
def test_a_number_with_an_exponent_is_a_number(file: Path, written: str) -> None:
    """YAML 1.1 reads 1e-4 as a text."""
    assert load_config(file, Config, [f"optim.lr={written}"]).optim.lr == 1e-4


def test_a_whole_number_is_good_enough_where_a_number_belongs(file: Path) -> None:
    assert load_config(file, Config, ["optim.lr=1"]).optim.lr == 1.0


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda c: c.seed == 7),
        ("data.train.0.path=other.txt", lambda c: c.data.train[0].path == "other.txt"),
        ("data.train.0.rewards.ocr=0.5", lambda c: c.data.train[0].rewards == {"ocr": 0.5}),
        ("data.train.1={path: b.txt, rewards: {ocr: 2}}", lambda c: c.data.train[1].rewards == {"ocr": 2.0}),
        ("rewards.services.ocr.urls.1=http://h:1", lambda c: c.rewards.services["ocr"].urls[1] == "http://h:1"),
        ("rewards.services.ocr.urls.2=http://h:1", lambda c: len(c.rewards.services["ocr"].urls) == 3),
        ("rewards.services.ocr.urls=['http://h:1']", lambda c: c.rewards.services["ocr"].urls == ("http://h:1",)),
        ("rewards.services.ocr.args.mode=line", lambda c: c.rewards.services["ocr"].args == {"mode": "line"}),
        ("rewards.services.ocr.args={workers: 2}", lambda c: c.rewards.services["ocr"].args == {"workers": 2}),
        ("rewards.services.hps.urls.0=http://h:2", lambda c: c.rewards.services["hps"].urls == ("http://h:2",)),
        ("logging.report_to=[]", lambda c: c.logging.report_to == ()),
        ("policy.checkpoint=null", lambda c: c.policy.checkpoint is None),
        ("distributed.num_threads=", lambda c: c.distributed.num_threads is None),
        ("evaluation.path=a=b.txt", lambda c: c.evaluation.path == "a=b.txt"),
        ("sampling={group_size: 4, micro_batch_size: 8}", lambda c: c.sampling.group_size == 4),
    ],
)
def test_overrides_reach_lists_mappings_and_null(file: Path, override: str, read: object) -> None:
    assert callable(read) and read(load_config(file, Config, [override]))


def test_later_overrides_win(file: Path) -> None:
    assert load_config(file, Config, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "not of the form key.sub=value, as in optim.lr=1e-4"),
        ("=3", "not of the form"),
        ("optim..lr=3", "not of the form"),
        ("seed.x=1", "seed is None, which has no field 'x'"),
        ("max_steps.x=1", "max_steps is 10, which has no field 'x'"),
        ("data.train.first.path=a", "data.train is a list; give a number from 0 to 1, not 'first'"),
        ("data.train.-1.path=a", "not '-1'"),
        ("data.train.2.path=a", "data.train has 1 entries, so the index 2 is too large; 1 adds one"),
        ("optim.betas=[0.9", "the value is not YAML"),
        ("policy={type: tiny, type: tiny}", "the key 'type' comes twice"),
        ("seed=!!python/object/apply:os.getcwd []", "the value is not YAML"),
    ],
)
def test_a_broken_override_is_refused(file: Path, override: str, words: str) -> None:
    if override == "seed.x=1":
        file.write_text(TEXT + "seed: null\n", encoding="utf-8")
        words = "seed: must be a whole number"
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, [override])
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds NoneType, not a mapping of settings"),
        (b"- a\n", "holds list, not a mapping"),
        (b"a: [", "is not YAML"),
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' comes twice"),
        (b"caf\xe9: 1\n", "is not UTF-8 text"),
        (b"a: !!python/name:os.system\n", "is not YAML"),
        (b"? [a]\n: 1\n", "is not YAML"),
        (b"[" * 1500, "is not YAML"),
        (b"1: 2\n", "Keys should be strings"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path, Config)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_config("none.yaml", Config)
    assert str(tmp_path / "none.yaml") in str(raised.value)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, Config)


def test_a_byte_order_mark_does_no_harm(file: Path) -> None:
    file.write_text("\ufeff" + TEXT, encoding="utf-8")
    assert load_config(file, Config).run_name == "test"


def test_all_problems_are_listed_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, ["seed=-1", "optim.lr=0", "policy.typ=tiny"])
    assert [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]] == [
        "seed",
        "policy.typ",
        "optim.lr",
    ]


def test_a_list_is_not_called_short_because_an_entry_is_broken(file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, ["data.train.0.path=3"])
    assert len(str(raised.value).splitlines()) == 2


def test_long_values_are_cut(file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, [f"run_name={'/' * 5000}"])
    assert len(str(raised.value)) < 500


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=120) | st.text(alphabet="ab:-[]{}&*!|>'\"#%\n ,?", max_size=60).map(str.encode))
def test_random_files_are_configs_or_config_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path, Config)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        ["seed", "data", "data.train", "data.train.0", "rewards.services.ocr", "optim.betas", "x", "policy"]
    ),
    value=VALUES,
)
def test_random_values_are_taken_or_config_errors(file: Path, key: str, value: object) -> None:
    try:
        config = load_config(
            file, Config, [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}"]
        )
    except ConfigError as error:
        assert str(error)
    else:
        assert isinstance(config, Config)


@pytest.mark.parametrize(
    "urls",
    [
        "['http://lab:TOKEN@h:1']",
        "['http://h:1', 'http://lab:TOKEN@h:1']",
        "http://lab:TOKEN@h:1",  # no list
        "['lab:TOKEN@h:1']",  # no scheme
        "['http://lab:TO/KEN@h:1']",  # a token that ends the host
        "['http://lab:TOKEN@h:1', 'nonsense']",  # the others are wrong, too
    ],
)
def test_a_token_in_an_address_is_refused_and_not_repeated(file: Path, urls: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, [f"rewards.services.ocr.urls={urls}"])
    _, line = str(raised.value).splitlines()
    assert line.startswith("  rewards.services.ocr: urls has an address with a user name or a password (before an @)")
    assert "token_file" in line
    assert "TOKEN" not in line and "KEN@" not in line


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:port", "http://[::1", "ftp://h:1", "http://", "h:1"])
def test_an_address_that_is_none_is_named_with_the_form_it_has(file: Path, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(file, Config, [f"rewards.services.ocr.urls=['{url}']"])
    assert f"  rewards.services.ocr.urls: {url!r} is no address of a service; write it like http://" in str(
        raised.value
    )


def test_merged_tables_may_be_merged_again() -> None:
    """What a table takes over and says otherwise is no key that comes twice, however deep it lies."""
    text = "d: &d {k: 0}\nx: {y: {z: &a {<<: *d, k: 1}}}\nb: {<<: *a, k: 5, m: 2}\nc: {<<: *a}\n"
    assert parse_yaml(text) == {"d": {"k": 0}, "x": {"y": {"z": {"k": 1}}}, "b": {"k": 5, "m": 2}, "c": {"k": 1}}
    for twice in ("a: {k: 1, k: 1}", "x: &a {k: 1, k: 2}\nb: {<<: *a}", "b: {<<: {k: 1, k: 2}}"):
        with pytest.raises(yaml.YAMLError, match="the key 'k' comes twice"):
            parse_yaml(twice)
