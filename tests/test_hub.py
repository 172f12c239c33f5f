"""Models by an id of the hub, with huggingface_hub itself against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import huggingface_hub
import huggingface_hub.constants as constants
import pytest
from huggingface_hub import HfApi

from machine.hub import HubError, fetch_file, fetch_folder, hub_id, is_hub_file, is_hub_id, shown, variant_patterns
from rewards import signs, sources
from rewards.fetch import main
from rewards.sources import FetchError, download, read_table
from scripts.recipe_heads import with_head
from services.kit.models.sources import SourceError, at_hand, inspect_folder
from tests.support.local_hub import COMMIT, LocalHub, local_hub
from trainer.config import ConfigError
from trainer.config.deepgen import DeepGenConfig
from trainer.config.neo import GrowConfig, NeoConfig
from trainer.config.network import LoraConfig
from trainer.config.paths import check_policy_files, located, nearest_path
from trainer.config.policy import DIFFUSERS_FILES, Sd3Config
from trainer.config.vlm import VlmConfig
from trainer.data.prompts import DataError, read_prompt_file

NOBODY = "http://127.0.0.1:9"  # nobody listens there
SD3 = {
    "model_index.json": b'{"_class_name": "StableDiffusion3Pipeline"}',
    "sd3_medium.safetensors": b"one file for another program",
    "scheduler/scheduler_config.json": b"{}",
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"weights",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"plain",
    "text_encoder/model.fp16.safetensors": b"half",
    "text_encoders/t5xxl_fp8.safetensors": b"for another program",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"half alone",
}
CLIP = {
    "config.json": b'{"model_type": "clip"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"w",
    "flax.msgpack": b"f",
}
REPOS = {
    "lab/sd3": SD3,
    "lab/base": SD3,
    "lab/closed": SD3,
    "lab/clip": CLIP,
    "lab/head": {"head.pt": b"head", "other.pt": b"o"},
    "lab/words": {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w"},
    "lab/lora": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a", "README.md": b"r"},
    "plain": {"ocr/train.txt": b"a sign that says 'hello'\n", "ocr/test.txt": b"a sign that says 'bye'\n"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with local_hub(REPOS, frozenset({"lab/closed"})) as hub:
        yield hub


@pytest.fixture
def hub(server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The hub that is asked, with an empty cache, from an empty folder."""
    pattern = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    server.sent.clear()
    return server


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_an_id_and_what_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("lmms-lab/some-rows@main", "Qwen/Qwen2.5-VL-3B-Instruct", "owner/name@v1.0", "owner/name@refs/pr/3"):
        assert is_hub_id(name), name
    for name in (
        "models/sd3",
        "mine/sd3",
        "/abs/path",
        "./a/b",
        "../a/b",
        "name",
        "a/b/c",
        "data/ocr",
        "a/b@",
        "a/b.JSONL",
    ):
        assert not is_hub_id(name), name
    assert is_hub_file("xswu/HPSv2/HPS_v2.1_compressed.pt") and is_hub_file(Path("o/n@v1/a/b.pt"))
    assert not is_hub_file("mine/folder/file.pt") and not is_hub_file("weights/a/b.pt")
    asked = hub_id("o/n@v1/a/b.pt")
    assert (asked.repo, asked.revision, asked.file) == ("o/n", "v1", "a/b.pt")
    assert hub_id("o/n@refs/pr/3").revision == "refs/pr/3"


def test_a_policy_takes_what_it_reads_of_a_revision(hub: LocalHub) -> None:
    section = Sd3Config(type="sd3", pretrained="lab/sd3@v1")
    check_policy_files(section, "rl")
    folder = Path(located(section, fetch=False).pretrained)
    assert folder.name == COMMIT
    unread = {"sd3_medium.safetensors", "text_encoders/t5xxl_fp8.safetensors", "text_encoder/model.fp16.safetensors"}
    assert names(folder) == SD3.keys() - unread
    assert section.pretrained == "lab/sd3@v1", "the recipe of the run keeps the id"
    sent = list(hub.sent)
    check_policy_files(section, "rl")
    assert hub.sent == sent, "nothing is fetched twice"
    assert "Bearer hf_secretsecretsecret" in hub.tokens


def test_what_an_export_reads_of_its_base_is_of_the_hub_too(hub: LocalHub) -> None:
    from trainer.policies.lora_files import pipeline_class, read_adapters

    section = Sd3Config(type="sd3", pretrained="lab/sd3", lora=LoraConfig(path="lab/lora"))
    assert pipeline_class(section).__name__ == "StableDiffusion3Pipeline"
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors cannot be read"):  # fetched, and no safetensors
        read_adapters(Path("lab/lora"), section)


def test_every_field_that_names_a_model_takes_an_id(hub: LocalHub) -> None:
    lora = Sd3Config(type="sd3", pretrained="lab/sd3", lora=LoraConfig(path="lab/lora"))
    check_policy_files(lora, "rl")
    assert "adapter_model.safetensors" in hub.sent and "README.md" not in hub.sent
    neo = NeoConfig(type="neo", grow=GrowConfig(language="lab/words", tokenizer="lab/words"))
    found = located(neo).grow
    assert found is not None and (Path(found.language) / "model.safetensors").is_file()
    assert found.tokenizer is not None and Path(found.tokenizer).name == COMMIT
    deepgen = located(DeepGenConfig(type="deepgen", sd3_path="lab/base", qwen_path="lab/words", checkpoint=None))
    assert (Path(str(deepgen.sd3_path)) / "transformer" / "config.json").is_file()
    assert not (Path(str(deepgen.sd3_path)) / "text_encoder").exists()
    vlm = VlmConfig(type="vlm", pretrained="lab/words")
    check_policy_files(vlm, "rl")
    assert located(vlm) is vlm, "its exports name the id"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lab/closed", "it is gated: accept its licence at {url}/lab/closed, then `hf auth login` or set HF_TOKEN"),
        ("lab/none", "there is no {url}/lab/none, or it is private"),
        ("lab/sd3@v9", "it has no revision v9"),
    ],
)
def test_a_no_says_what_to_do(hub: LocalHub, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_policy_files(Sd3Config(type="sd3", pretrained=name), "rl")
    message = str(caught.value)
    assert f"policy.pretrained = {name} is no folder here, and the hub did not give it" in message
    assert said.format(url=hub.url) in message, message
    assert f"\n    {hub_id(name).command(DIFFUSERS_FILES)}\n" in message
    assert "secret" not in message


def test_offline_takes_the_cache_and_says_what_it_lacks(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_folder("lab/clip", "--model", ["*.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    assert (fetch_folder("lab/clip", "--model", ["*.json"]) / "config.json").is_file()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and the cache lacks it"):
        fetch_folder("lab/sd3", "policy.pretrained", DIFFUSERS_FILES)


def test_a_network_that_is_not_there_is_no_traceback(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the library that huggingface_hub asks by, as it comes where a name is not known."""

    def gone(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "list_repo_files", gone)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(
        HubError, match=r"policy.pretrained = lab/sd3 is no folder here.*Name or service not known"
    ) as said:
        fetch_folder("lab/sd3", "policy.pretrained", DIFFUSERS_FILES)
    assert "\n    hf download lab/sd3 --local-dir models/sd3 --include " in str(said.value)


@pytest.mark.slow  # huggingface_hub tries again for a while
def test_a_hub_that_is_not_reached_gives_the_command(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOBODY + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(HubError, match=r"--weights = lab/head/head.pt is no file here") as caught:
        fetch_file("lab/head/head.pt", "--weights")
    assert "\n    hf download lab/head head.pt --local-dir models/head\n" in str(caught.value)
    assert "copy models/head/head.pt here and set --weights to it" in str(caught.value)
    with pytest.raises(HubError, match=r"policy.pretrained = lab/sd3 is no folder here"):
        fetch_folder("lab/sd3", "policy.pretrained", DIFFUSERS_FILES)


def test_a_service_takes_ids_of_models_and_of_files(hub: LocalHub) -> None:
    source = inspect_folder(Path("lab/clip"), "--model")
    assert source.kind == "clip" and names(source.path) == CLIP.keys() - {"flax.msgpack"}
    assert at_hand(Path("lab/head@v1/head.pt"), "--weights").read_bytes() == b"head"
    assert at_hand(Path("/there/is/no.pt"), "--weights") == Path("/there/is/no.pt")
    with pytest.raises(SourceError, match=r"--weights = lab/head/nothing\.pt is no file here"):
        at_hand(Path("lab/head/nothing.pt"), "--weights")


def test_variants_are_left_where_plain_weights_are() -> None:
    files = [*SD3, "t/model-00001-of-00002.safetensors", "t/model.fp16-00001-of-00002.safetensors"]
    files += ["t/model-00001-of-00002.fp16.safetensors", "t/model.safetensors.index.json"]
    files += ["t/model.safetensors.index.fp16.json", "vae/diffusion_pytorch_model.safetensors.index.fp16.json"]
    patterns = variant_patterns(files)
    assert {name for name in files if any(fnmatch(name, pattern) for pattern in patterns)} == {
        "text_encoder/model.fp16.safetensors",
        "t/model.fp16-00001-of-00002.safetensors",
        "t/model-00001-of-00002.fp16.safetensors",
        "t/model.safetensors.index.fp16.json",
    }


@pytest.fixture
def recipe(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shipped recipe whose sources are on this machine."""
    table = tmp_path / "sources.yaml"
    paths = {
        "models/stable-diffusion-3.5-medium": {"what": "a model", "hub": "lab/sd3"},
        "data/ocr": {"what": "prompts", "url": f"{hub.url}/plain/ocr", "files": ["train.txt", "test.txt"]},
    }
    table.write_text(json.dumps({"paths": paths, "fields": {}, "services": {"ocr": []}}))
    monkeypatch.setattr(sources, "TABLE", table)
    return "sd35_medium_ocr_1gpu"


def test_fetch_brings_what_a_recipe_names_to_its_place(
    recipe: str, hub: LocalHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as client_alone:
        client_alone.setitem(sys.modules, "huggingface_hub", None)
        assert main([recipe, "--dry-run"], "rewards fetch") == 0
    printed = capsys.readouterr().out
    assert "hf download lab/sd3 --local-dir models/stable-diffusion-3.5-medium --include" in printed
    assert f"curl -fL --create-dirs -o data/ocr/train.txt {hub.url}/plain/ocr/train.txt" in printed
    assert "size: not known here; licence: not known here" in printed
    assert not list(Path().iterdir()) and not hub.sent
    assert main([recipe], "rewards fetch") == 0
    assert Path("data/ocr/test.txt").read_bytes() == REPOS["plain"]["ocr/test.txt"]
    assert Path("models/stable-diffusion-3.5-medium/transformer/config.json").is_file()
    assert not Path("models/stable-diffusion-3.5-medium/sd3_medium.safetensors").exists()
    sent = len(hub.sent)
    Path("data/ocr/train.txt").write_text("mine\n")
    assert main([recipe], "rewards fetch") == 0
    assert len(hub.sent) == sent and Path("data/ocr/train.txt").read_text() == "mine\n"


def test_fetch_says_what_did_not_come(
    recipe: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main([recipe, "data.train.0.path=data/mine"], "rewards fetch") == 1
    said = capsys.readouterr().err
    assert "data.train.0.path = data/mine: nothing is there, and sources.yaml does not say where it is from" in said
    assert "HF_HUB_OFFLINE is set, and nothing is fetched" in said
    assert "error: not fetched: models/stable-diffusion-3.5-medium, data/mine, data/ocr" in said
    assert main(["no_such_recipe"], "rewards fetch") == 2


def test_a_path_that_no_folder_begins_is_asked_of_the_hub_and_both_are_said(hub: LocalHub) -> None:
    """`x/y` may be an id or a path that was mistyped: what is said names both, and the path that it is like."""
    Path("checkpoint_of_mine/sd3").mkdir(parents=True)
    for name, remedy in (
        ("lab/none", "correct it, or give it as an absolute path"),
        ("checkpoint_of_min/sd3", "did you mean checkpoint_of_mine/sd3?"),
        ("modles/sd3", "did you mean models/sd3?"),
    ):
        with pytest.raises(ConfigError) as raised:
            check_policy_files(Sd3Config(type="sd3", pretrained=name), "rl")
        owner = name.partition("/")[0]
        assert f"policy.pretrained = {name} is no folder here, and the hub did not give it" in str(raised.value)
        assert str(raised.value).endswith(f"If a path was meant: nothing is called {owner} in {Path.cwd()}; {remedy}")


def test_a_service_shows_an_id_with_its_commit_and_a_folder_by_its_name(hub: LocalHub) -> None:
    of_hub = inspect_folder(Path("lab/clip"), "--model")
    assert of_hub.name == f"lab/clip@{COMMIT} sha256:{of_hub.sha256[:16]}"
    assert of_hub.path.name == COMMIT, "the folder in the cache is called after its commit"
    assert shown(fetch_file("lab/head/head.pt", "--weights").absolute()) == f"lab/head@{COMMIT}/head.pt"
    mine = Path("my_clip")
    mine.mkdir()
    for name, content in CLIP.items():
        (mine / name).write_bytes(content)
    assert inspect_folder(mine, "--model").name.startswith("my_clip sha256:")
    assert shown(Path("/data/models--a--b/notes.txt")) == "notes.txt"


@pytest.mark.parametrize("path", ["data/ocr", "data/ocr/train.txt", "models/stable-diffusion-3.5-medium"])
def test_what_a_recipe_names_and_is_not_there_is_said_with_the_command_that_gets_it(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is one that `rewards fetch` takes, and where a file of it is there only the missing ones are spoken of."""
    monkeypatch.chdir(tmp_path)
    asked = str(Path(path).parent) if path.endswith(".txt") else path
    assert f"`rewards fetch {asked}` gets it" in nearest_path(Path(path))
    assert f"`rewards fetch {asked}` gets it" in nearest_path(tmp_path / path)
    if path.startswith("models"):
        with pytest.raises(
            ConfigError, match=r"policy\.pretrained = .*`rewards fetch models/stable-diffusion-3.5-medium` gets"
        ):
            check_policy_files(Sd3Config(type="sd3", pretrained=path), "rl")
    else:
        with pytest.raises(
            DataError, match=r"no prompt file at .*; `rewards fetch data/ocr` gets it, or with --dry-run"
        ):
            read_prompt_file(path, dataset="ocr")
    (tmp_path / "data/ocr").mkdir(parents=True)
    (tmp_path / "data/ocr/trains.txt").touch()
    assert "rewards fetch" in nearest_path(Path("data/ocr/train.txt"))
    assert nearest_path(Path("data/ocr/trans.txt")) == "did you mean data/ocr/trains.txt?"


def test_one_path_is_fetched_as_the_recipe_that_names_it_does(
    recipe: str, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models/stable-diffusion-3.5-medium", "--dry-run"], "rewards fetch") == 0
    assert "hf download lab/sd3 --local-dir models/stable-diffusion-3.5-medium --include" in capsys.readouterr().out
    assert main(["data/ocr/"], "rewards fetch") == 0
    assert not Path("models").exists() and Path("data/ocr/train.txt").is_file()


def test_prompts_that_this_program_writes_need_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["data/signs", "--dry-run"], "rewards fetch") == 0
    assert "to be written\n    rewards fetch data/signs" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main(["data/signs"], "rewards fetch") == 0
    trained = read_prompt_file("data/signs", dataset="signs", format="flow_grpo_text")
    held = read_prompt_file("data/signs", dataset="signs", format="flow_grpo_text", split="test")
    assert (len(trained.prompts), len(held.prompts)) == (signs.TRAIN, signs.HELD_OUT)
    texts = [{target for prompt in file.prompts for target in prompt.targets or ()} for file in (trained, held)]
    assert not texts[0] & texts[1] and all(len(each) > 200 for each in texts)
    assert all(len(prompt.targets or ()) == 1 for prompt in (*trained.prompts, *held.prompts))
    size = sum(file.stat().st_size for file in (tmp_path / "data/signs").iterdir())
    named = read_table().paths["data/signs"]
    assert named.size == f"{size / 1e6:.1f} MB, {signs.TRAIN} prompts and {signs.HELD_OUT} held out"
    # The same everywhere: an evaluation on another machine, or in a year, is of the same prompts.
    digest = hashlib.sha256(Path("data/signs/test.txt").read_bytes()).hexdigest()
    assert digest[:16] == "1d1b8141db4b8fcc"
    Path("data/signs/train.txt").write_text("mine\n")
    assert main(["data/signs"], "rewards fetch") == 0 and Path("data/signs/train.txt").read_text() == "mine\n"


def test_half_a_file_is_none(hub: LocalHub) -> None:
    with pytest.raises(FetchError, match=r"gone.txt did not come \(HTTP Error 404"):
        download(f"{hub.url}/plain/gone.txt", Path("data/gone.txt"))
    assert not list(Path("data").iterdir())


def test_the_table_is_of_what_the_shipped_recipes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path of a recipe that does not come along is in the table, and nothing else is; each recipe's comment says so."""
    from rewards.fetch import needs
    from rewards.shipped import recipes
    from trainer.config import Config
    from trainer.migration import load_recipe
    from trainer.migration.deepgen.variables import VARIABLES

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    table = read_table()
    named: set[str] = set()
    fields: set[str] = set()
    services: set[str] = set()
    for path in recipes().values():
        config = load_recipe(path, Config)
        assert with_head(path, config, table) == path.read_text("utf-8"), "run: python -m scripts.recipe_heads"
        for need in needs(config, table):
            assert need.source is not None, f"{path.name}: {need.field} = {need.path} is not in {sources.TABLE.name}"
            (fields if need.source.variable else named).add(need.field if need.source.variable else str(need.path))
        services |= {name for name, each in config.rewards.services.items() if each.urls}
    assert named == set(table.paths) and fields == set(table.fields) and services == set(table.services)
    for source in [*table.paths.values(), *table.fields.values(), *sum(table.services.values(), ())]:
        assert (source.hub is not None) + (source.url is not None) + source.written == 1
        assert source.hub is None or source.asked
        assert source.url is None or source.url.startswith("https://")
