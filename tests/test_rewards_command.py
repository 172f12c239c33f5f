"""The command `rewards`: a table of programs that are imported when they are called, recipes by name, completion by bash."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.options import _parser as loadtest_parser
from rewards import __version__, completion, migrate
from rewards.command import VERBS, main, missing
from rewards.plane.command import build_parser as services_parser
from rewards.recipes import about
from rewards.shipped import FOLDER, is_shipped, recipe, recipes, shipped, shipped_in
from services.kit.catalogue import CATALOGUE
from trainer.__main__ import build_parser
from trainer.commands import COMMANDS
from trainer.commands.recipes import checked
from trainer.config import Config, ConfigError
from trainer.migration import load_recipe
from trainer.processes import launch
from wire.client.command import build_parser as score_parser

ROOT = Path(__file__).resolve().parents[1]


def typed(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """`rewards WORDS` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-P", "-m", "rewards", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


LOADED = """
import json, sys
before = set(sys.modules)
from rewards.command import main
code = main(json.loads(sys.argv[1]))
print(code, *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["serve", "--help"], ["recipes"], ["completion", "bash"]], ids=" ".join
)
def test_what_only_prints_imports_the_standard_library_alone(words: list[str]) -> None:
    command = [sys.executable, "-c", LOADED, json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == "0" and {"torch", "pydantic", "numpy", "argparse"}.isdisjoint(loaded)
    assert {name for name in loaded if name not in sys.stdlib_module_names} == (
        {"rewards"} if len(words) == 1 else {"rewards", "services"}
    ), loaded
    if words == ["--help"]:
        assert all(re.search(rf"^  {name} +\w", done.stdout, re.M) for name in VERBS)
        assert len(loaded) <= 20, loaded


def test_the_trainers_help_imports_no_command_and_a_command_only_itself() -> None:
    """And none of the configuration, which takes ten times as long as the standard library."""
    program = (
        "import sys\nfrom trainer.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('pydantic', 'yaml', 'numpy') or name.startswith('trainer.commands.')))"
    )

    def loaded(*words: str) -> list[str]:
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout.splitlines()[-1].split()

    assert loaded("--help") == []
    assert loaded("flight", "--help") == ["trainer.commands.flight"]


def test_the_version_is_printed_and_a_call_without_words_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"rewards {__version__}\n"
    assert main([]) == 2 and "usage: rewards VERB" in capsys.readouterr().err
    assert main(["help"]) == 0 and "usage: rewards VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no verb 'trian'; did you mean train?"),
        (["xyzzy"], "no verb 'xyzzy'; there are: train, sft, "),
        (["serve", "orc"], "no service 'orc'; did you mean ocr?"),
        (["recipes", "quikstart"], "no recipe 'quikstart'; did you mean quickstart?"),
        (["migrate", "deepgem"], "no source 'deepgem'; did you mean deepgen?"),
        (["completion", "bush"], "no completion for 'bush'; did you mean bash?"),
        (["train", "quikstart"], "did you mean quickstart?"),
        (["train", "quickstart", "--seed", "2"], "--seed 2; a field of the recipe is written key=value, as in seed=2;"),
        (["report", "--bogus", "runs"], "arguments: --bogus; `rewards report --help` has the flags"),
        (["migrate", "config", "a", "--bogus"], "`rewards migrate config --help` has the flags"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_name_that_is_not_known_is_answered_with_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(words) == 2
    except SystemExit as ended:  # argparse's
        assert ended.code == 2
    assert said in capsys.readouterr().err


def test_every_command_of_the_trainer_has_its_verb() -> None:
    of_verbs = {verb.command for verb in VERBS.values() if verb.command is not None}
    assert of_verbs | set(migrate.SOURCES.values()) == set(COMMANDS)
    assert all(name == verb.command for name, verb in VERBS.items() if verb.command is not None)
    assert set(completion.SOURCES) == set(migrate.SOURCES)


def flags(parser: Any) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def test_completion_knows_the_flags_of_every_program() -> None:
    of_trainer = next(action.choices for action in build_parser()._actions if action.choices)
    wanted = {name: flags(of_trainer[name]) for name in VERBS if VERBS[name].command}
    wanted["launch"] = flags(launch.build_parser())
    wanted["score"] = flags(score_parser("rewards score"))
    wanted["services"] = flags(services_parser("rewards services"))
    wanted["loadtest"] = flags(loadtest_parser("rewards loadtest"))
    written = {name: {*completion.FLAGS.get(name, ()), "--help"} for name in wanted}
    assert written == wanted, "write into rewards/completion.py: " + str(
        {n: sorted(f - {"--help"}) for n, f in wanted.items()}
    )


def test_verbs_of_the_trainer_are_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Sequence[str], str]] = []
    monkeypatch.setattr("trainer.__main__.main", lambda words, prog: seen.append((words, prog)) or 7)
    monkeypatch.setattr("rewards.migrate.trainer", lambda words, _, typed: seen.append((words, typed)) or 8)
    assert main(["train", "quickstart", "seed=2"]) == 7
    assert main(["report", "outputs/a"]) == 7
    assert main(["migrate", "neo", "--bf16", "--help"]) == 8
    assert main(["migrate", "config", "a.yaml", "--write"]) == 8
    assert seen == [
        (["train", "quickstart", "seed=2"], "rewards"),
        (["report", "outputs/a"], "rewards"),
        (["from-neo", "--bf16", "--help"], "rewards migrate neo"),
        (["migrate-config", "a.yaml", "--write"], "rewards migrate config"),
    ]


def test_help_of_a_verb_names_what_was_typed() -> None:
    assert typed("train", "--help").stdout.startswith("usage: rewards train ")
    assert typed("loadtest", "--help").stdout.startswith("usage: rewards loadtest ")
    assert typed("launch", "--help").stdout.startswith("usage: rewards launch ")
    assert typed("migrate", "config", "--help").stdout.startswith("usage: rewards migrate config ")


@pytest.mark.parametrize(("verb", "needed"), [("train", "config"), ("score", "url"), ("fetch", "RECIPE")])
def test_what_may_be_left_out_is_not_said_to_be_required(
    verb: str, needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb])
    assert capsys.readouterr().err.endswith(f"required: {needed}\n")


def test_serve_is_the_service_of_that_name(tmp_path: Path) -> None:
    """Typed elsewhere than in the checkout; SIGTERM ends it as it ends `python -m services.rules`."""
    command = [sys.executable, "-P", "-m", "rewards", "serve", "rules", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            url = running.stdout.readline().split()[-1]
            assert running.stdout.readline() == "rules ready\n"
            rewards = httpx.get(f"{url}/v1/info", trust_env=False).json()["rewards"]
        finally:
            running.terminate()
    assert running.returncode == 0
    assert "color_match" in {each["name"] for each in rewards}


def test_a_package_that_is_not_installed_is_named_with_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert missing(ModuleNotFoundError("No module named 'yaml'", name="yaml"), "rewards train", "train") == 2
    assert "rewards train needs the package yaml, which is not installed: pip install 'rewards-as-services[train]'" in (
        capsys.readouterr().err
    )
    with pytest.raises(ModuleNotFoundError):
        missing(ModuleNotFoundError("No module named 'trainer.gone'", name="trainer.gone"), "rewards train", "train")


def test_a_verb_whose_package_is_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')\n")
    done = typed("train", "quickstart", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2 and "pip install 'rewards-as-services[train]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- shipped files


def test_a_recipe_is_found_by_its_name_after_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe("quickstart") == FOLDER / "configs/quickstart.yaml" == ROOT / "configs/quickstart.yaml"
    assert recipe("configs/quickstart.yaml") == FOLDER / "configs/quickstart.yaml"
    assert recipe("mine") == Path("mine") and recipe("mine.yaml") == Path("mine.yaml")
    (tmp_path / "quickstart").mkdir()
    assert recipe("quickstart") == FOLDER / "configs/quickstart.yaml", "a folder is no recipe"
    (tmp_path / "vlm_quickstart").write_text("run_name: mine\n")
    assert recipe("vlm_quickstart") == Path("vlm_quickstart")


def test_a_path_counts_from_here_and_else_from_the_shipped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "assets/quickstart/heldout.jsonl"
    assert shipped(name) == str(FOLDER / name)
    for other in (
        "assets/none.jsonl",
        "data/x.jsonl",
        "README.md",
        "outputs",
        "assets/../README.md",
        "/etc/hostname",
        "auto",
        "owner/model",
    ):
        assert shipped(other) == other
    functions = "assets/unified_quickstart/rewards.py"
    assert (
        shipped_in(f"{functions}:a,b,mine.py,{functions}") == f"{FOLDER / functions}:a,b,mine.py,{FOLDER / functions}"
    )
    assert shipped_in("line") == "line" and shipped_in("my assets/quickstart") == "my assets/quickstart"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert shipped(name) == name


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_finds_its_files_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of configs/ or assets/ it reads is there; what it writes lies where it was typed."""
    monkeypatch.chdir(tmp_path)
    config = load_recipe(recipe(name), Config, REQUIRED.get(name, ()))
    texts = set(re.findall(r"(?:configs|assets)/[\w./-]+", config.model_dump_json()))
    absolute = set(re.findall(r'"(/[^":]*?/(?:configs|assets)/[^":]+)', config.model_dump_json()))
    assert all(Path(path).exists() and is_shipped(path) for path in absolute)
    left = {text for text in texts if not any(path.endswith(text) for path in absolute)}
    assert left == set(WRITTEN.get(name, ())), left
    assert config.run_dir == Path("outputs") / config.run_name


REQUIRED: dict[str, list[str]] = {}
WRITTEN = {
    "quickstart_base": ["assets/quickstart/base.safetensors"],
    "unified_base": ["assets/unified_base"],
}


@pytest.mark.parametrize("name", ["vlm_base", "pair_base"])
def test_a_shipped_model_is_not_written_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.pretrained = .*: program .*_base writes this folder.*my_base"):
        checked(recipe(name))
    assert checked(recipe(name), ["policy.pretrained=my_base"]).run_name == name
    monkeypatch.chdir(ROOT)
    assert checked(recipe(name)).run_name == name  # where it is made, in the checkout


def test_recipes_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(recipes())
    assert about(recipes()["quickstart"]).startswith("The quickstart: a 2.4 M-parameter text-to-image model learns")
    assert all(10 < len(about(path)) < 200 and "bash" not in about(path) for path in recipes().values())
    assert main(["recipes", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/quickstart.yaml").read_text()


def test_a_name_does_for_train_sh(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "train.sh"), "vlm_quickstart", "seed=2"],
        cwd=tmp_path,
        env={**os.environ, "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [
        "python",
        "-m",
        "trainer",
        "train",
        str(ROOT / "configs/vlm_quickstart.yaml"),
        "seed=2",
    ]


@pytest.mark.parametrize("words", ["recipes", "--help"])
def test_a_reader_that_leaves_is_no_error(words: str) -> None:
    command = f"'{sys.executable}' -P -m rewards {words} | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "" and done.stdout in ("0\n", "1\n")


# --- completion

ASK = """
source <(printf '%s' "$SCRIPT")
COMP_WORDS=({words}) COMP_CWORD={number}
_rewards
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(*words: str, cwd: Path = ROOT) -> list[str]:
    """What bash offers for the last of some words."""
    asked = ASK.format(words=" ".join(f"'{word}'" for word in words), number=len(words) - 1)
    environment = {**os.environ, "SCRIPT": completion.script("bash", __version__)}
    done = subprocess.run(
        ["bash", "-c", asked], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs_recipes_services_and_flags(tmp_path: Path) -> None:
    assert set(completed("rewards", "")) == set(VERBS)
    assert completed("rewards", "rec") == ["recipes"]
    assert completed("rewards", "serve", "te", cwd=tmp_path) == ["textjudge"]
    assert set(completed("rewards", "serve", "", cwd=tmp_path)) == {entry.name for entry in CATALOGUE}
    (tmp_path / "my recipe.yaml").touch()
    assert set(completed("rewards", "train", "quick", cwd=tmp_path)) == {"quickstart", "quickstart_base"}
    assert completed("rewards", "doctor", "my", cwd=tmp_path) == ["my", "recipe.yaml"]  # one file, its name has a blank
    assert completed("rewards", "evaluate", "quickstart", "--ch") == ["--checkpoint"]
    assert completed("rewards", "migrate", "neo", "x", cwd=tmp_path) == []


def test_fish_is_told_what_each_verb_does() -> None:
    """A verb's text has quotes, which end fish's own where they are not escaped."""
    lines = [shlex.split(line.replace("\\'", "’")) for line in completion.script("fish", __version__).splitlines()[1:]]
    assert {line[7]: line[9].replace("’", "'") for line in lines if line[4] == "__fish_use_subcommand"} == {
        name: verb.text for name, verb in VERBS.items()
    }


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(shell: str) -> None:
    text = completion.script(shell, __version__)
    assert all(name in text for name in [*VERBS, *recipes(), *(entry.name for entry in CATALOGUE)])
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", "/dev/stdin"], input=text, text=True, check=True, timeout=60)
