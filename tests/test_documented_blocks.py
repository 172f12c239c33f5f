"""Every code block of README.md and docs/*.md is run by a test that is named here, or its page says why it is not.

The comment just before a block says so, as one of:

    <!-- checked, not run: REASON -->    commands of ours: their flags, recipes and files are checked here
    <!-- not run: REASON -->             commands of others, or what only they can check
    <!-- not code: REASON -->            a drawing
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.options import _parser as loadtest_parser
from rewards.command import VERBS
from rewards.plane.command import build_parser as services_parser
from services.kit.catalogue import CATALOGUE
from services.kit.settings import load_settings
from tests.support.deployment import settings_of
from tests.support.documents import PAGES, ROOT, SHELL, Block, blocks_of, program_of
from tests.support.task_configs import task_tree
from tests.test_docs import flags_of
from trainer.__main__ import build_parser
from trainer.__main__ import main as trainer
from trainer.commands import VERBATIM
from trainer.config import Config
from trainer.config.file import checked
from trainer.migration import load_recipe
from trainer.migration.deepgen.flags import FLAGS as DEEPGEN
from trainer.migration.janus_grpo import flags as janus
from trainer.migration.neo import flags as neo
from trainer.migration.unireason import flags as unireason

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
HERE, COMMANDS = "tests/test_documented_blocks.py", "tests/test_documented_commands.py"
CLIENT, REWARDS = "tests/wire/test_score_command.py", "tests/test_rewards_page.py"
TUTORIALS = "tests/test_tutorials.py"
SECURITY = "tests/services/kit/test_security_docs.py"
PEERS = "tests/test_peer_pages.py"
PACKED, PAIRUNI = "tests/trainer/packed_migration/test_packed_pages.py", "tests/trainer/janus_grpo/test_pairuni_page.py"

REASONS: Mapping[str, set[str]] = {
    "checked, not run": {
        "trains for minutes",
        "serves until it is stopped",
        "needs a model's weights",
        "needs a finished run",
        "needs a running service",
        "needs a judge",
        "needs the network",
        "needs your files",
    },
    "not run": {
        "serves until it is stopped",
        "needs Docker",
        "needs a Kubernetes cluster",
        "needs the network",
        "needs vLLM and a GPU",
        "needs a judge",
        "needs a finished run",
        "needs SLURM",
        "needs several nodes",
        "changes your shell; tests/test_rewards_command.py runs what it sources",
    },
    "not code": {"a drawing", "a list of folders", "a formula", "a message", "lines of a file"},
}

# Page to what is in one of its blocks and in no other, and the test that runs this block.
RUN: Mapping[str, Mapping[str, str]] = {
    "docs/bagel.md": {"type: mot": f"{HERE}::test_a_part_of_a_recipe_loads"},
    "docs/checkpoints.md": {
        "keep_best:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "# stage_2.yaml": f"{HERE}::test_a_part_of_a_recipe_loads",
    },
    "docs/neo_quickstart.md": {"grow: {language": f"{HERE}::test_a_part_of_a_recipe_loads"},
    "docs/client.md": {
        "/v1/sample": f"{CLIENT}::test_the_examples_by_curl",
        "--form-string": f"{CLIENT}::test_the_examples_by_curl",
        'client.score(images=["sign.png"': f"{CLIENT}::test_the_first_example_in_python",
        'reward="diversity"': f"{CLIENT}::test_the_example_of_groups",
        "node:fs": f"{CLIENT}::test_the_example_in_javascript",
        "--prompts rows.jsonl": f"{CLIENT}::test_the_examples_on_the_command_line",
    },
    "docs/compose.md": {"CLIP_AESTHETIC=": f"{COMMANDS}::test_variables_of_compose_are_its_own"},
    "docs/configuration.md": {
        "program: preference": f"{HERE}::test_a_part_of_a_recipe_loads",
        "matrices:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "migrate-config": f"{HERE}::test_an_old_recipe_is_rewritten_by_the_commands_of_the_page",
    },
    "docs/data.md": {
        "sampling_mode:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "delimiter:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "split:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "def ask(row)": "tests/trainer/texts/test_preprocessing_file.py::test_the_pages_file_does_what_the_page_says",
    },
    "docs/evaluation.md": {
        "scoring: unigenbench/en": f"{HERE}::test_a_part_of_a_recipe_loads",
        "task: understand": f"{HERE}::test_a_part_of_a_recipe_loads",
    },
    "docs/first_hour.md": {"def brightness": "tests/test_newcomers_path.py::test_a_newcomer_gets_to_a_comparison"},
    "docs/first_gpu_run.md": {"--dry-run": "tests/test_first_gpu_run.py::test_what_needs_no_network_is_run"},
    "docs/from_flow_factory.md": {"from_flow_factory": f"{PEERS}::test_the_recipe_of_the_page_is_one"},
    "docs/from_flow_grpo.md": {"sde_window_size": f"{PEERS}::test_the_recipe_of_the_page_is_one"},
    "docs/from_trl.md": {"dapo": "tests/trainer/nanovlm_lab/test_migration_pages.py::test_the_trl_recipe_is_one"},
    "docs/from_verl_omni.md": {"from_verl_omni": f"{PEERS}::test_the_recipe_of_the_page_is_one"},
    "docs/generation.md": {"renorm: global": f"{HERE}::test_a_part_of_a_recipe_loads"},
    "docs/given_texts.md": {
        "program: supervised": "tests/trainer/programs/test_given_text_programs.py::test_the_recipes_of_the_page_are_recipes",
        "program: preference": "tests/trainer/programs/test_given_text_programs.py::test_the_recipes_of_the_page_are_recipes",
    },
    "docs/kubernetes.md": {"patches:": f"{COMMANDS}::test_the_patch_of_a_judge_over_several_gpus"},
    "docs/migration_deepgen.md": {"from-deepgen": f"{COMMANDS}::test_from_deepgen"},
    "docs/migration_neo.md": {
        "from-neo": f"{COMMANDS}::test_from_neo",
        "annotation_path": f"{PACKED}::test_the_registries_of_the_pages_are_read",
    },
    "docs/migration_pairuni.md": {
        "from-pairuni": f"{COMMANDS}::test_from_pairuni_and_t2i_r1",
        "sets:": f"{HERE}::test_a_part_of_a_recipe_loads",
    },
    "docs/migration_unireason.md": {"from-unireason": f"{COMMANDS}::test_from_unireason"},
    "docs/models_that_write.md": {
        "freeze:": f"{HERE}::test_a_part_of_a_recipe_loads",
        "initialize:": f"{HERE}::test_a_part_of_a_recipe_loads",
    },
    "docs/packed_rows.md": {
        "conversations": f"{HERE}::test_rows_in_json_are_json",
        "grouping:": f"{COMMANDS}::test_tables_of_another_trainer_in_a_recipe",
        "DATASET_REGISTRY": f"{PACKED}::test_the_registries_of_the_pages_are_read",
    },
    "docs/packs.md": {"mandatory:": "tests/trainer/programs/test_packs.py::test_the_recipe_of_the_page_is_a_recipe"},
    "docs/pairs.md": {
        "understand_ann": f"{HERE}::test_rows_in_json_are_json",
        "run_name: pairs": f"{PAIRUNI}::test_the_recipes_of_the_page_are_ours",
        "flow:": f"{PAIRUNI}::test_the_recipes_of_the_page_are_ours",
        "think:": f"{PAIRUNI}::test_the_recipes_of_the_page_are_ours",
        "build-pairs": f"{COMMANDS}::test_build_pairs",
    },
    "docs/rewards.md": {
        "--conversational": f"{COMMANDS}::test_a_file_of_reward_functions",
        "overlong_buffer": f"{REWARDS}::test_the_columns_of_texts_are_a_recipe_of_rewards_that_exist",
        "duplicates: 4": f"{REWARDS}::test_the_held_out_set_is_a_recipe",
        "option_letter": f"{REWARDS}::test_the_rewards_of_both_halves_are_a_recipe",
        "def git(": f"{REWARDS}::test_the_worked_example_of_a_scorer_scores",
        "GIT_MODEL=": f"{REWARDS}::test_the_worked_example_of_a_scorer_scores",
        "canary: none": f"{REWARDS}::test_the_worked_example_of_a_scorer_scores",
    },
    "docs/runs.md": {"--export": f"{COMMANDS}::test_runs_as_files"},
    "docs/security.md": {
        "ssl_certificate_key": f"{SECURITY}::test_nginx_takes_its_example",
        "request_body": f"{SECURITY}::test_caddy_takes_its_example",
    },
    "docs/services.md": {
        "flow_grpo": f"{CLIENT}::test_the_request_of_the_page_on_services",
    },
    "docs/tutorials/alarm.md": {
        "def too_dark": f"{TUTORIALS}::test_an_alarm",
        "alarms.own=": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/tutorials/objective.md": {
        "def clipped": f"{TUTORIALS}::test_an_objective_on_drawn_steps",
        "clipped.py:clipped": f"{TUTORIALS}::test_the_commands_and_recipes_load",
        "def rwr": f"{TUTORIALS}::test_an_objective_on_the_forward_process",
        "own_forward": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/tutorials/policy.md": {
        "class Aura": f"{TUTORIALS}::test_a_policy_that_nobody_here_knows",
        "policy: {type: own": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/tutorials/prompt_set.md": {
        "def signs": f"{TUTORIALS}::test_a_prompt_set",
        "signs.py:signs": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/tutorials/reward_function.md": {
        "def brightness": f"{TUTORIALS}::test_a_reward_function",
        "brightness.py \\": f"{TUTORIALS}::test_the_commands_and_recipes_load",
        "mine: {module": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/tutorials/reward_model.md": {
        "class Cats": f"{TUTORIALS}::test_a_reward_model",
        "rewards serve": f"{TUTORIALS}::test_the_service_of_a_file_is_started_by_the_command",
        "cats: {module": f"{TUTORIALS}::test_the_commands_and_recipes_load",
    },
    "docs/watching_services.md": {"--json": "tests/plane/test_plane_command.py::test_the_commands_of_the_page"},
    "docs/vllm.md": {"weights_dir:": f"{HERE}::test_a_part_of_a_recipe_loads"},
}

FOREIGN = {  # the flags that each translated command line has
    "from-deepgen": {*DEEPGEN, "eval_dataset_config"},
    "from-pairuni": {*janus.LAUNCHER, *janus.SHARED, *janus.PAIRUNI},
    "from-t2i-r1": {*janus.LAUNCHER, *janus.SHARED, *janus.T2I_R1},
    "from-unireason": {*unireason.LAUNCHER, *unireason.MODEL, *unireason.DATA, *unireason.TRAINING},
    "from-neo": {*neo.LAUNCHER, *neo.MODEL, *neo.DATA, *neo.TRAINING},
}


def named(block: Block) -> list[str]:
    """The tests that run a block, by RUN."""
    return [test for words, test in RUN.get(block.page, {}).items() if words in block.text]


def with_words(page: str, words: str) -> Block:
    (block,) = [each for each in BLOCKS if each.page == page and words in each.text]
    return block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    wrong = []
    for block in blocks_of(page):
        if len(named(block)) + bool(block.kind) != 1:
            tests = " and ".join(named(block)) or "no test"
            said = f"its comment says {block.kind}" if block.kind else "no comment before it says why it is not run"
            wrong.append(f"{block.place}: {tests} of RUN in {HERE}, and {said}")
        elif block.kind and block.why not in REASONS[block.kind]:
            wrong.append(f"{block.place}: {block.why!r} is none of the reasons for {block.kind}")
        elif (block.kind == "not code") != (block.language == ""):
            wrong.append(f"{block.place}: a block without a language is not code, and no other is")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_is_told_by_its_indentation_alone(page: Path) -> None:
    """Such blocks would be asked for no test and no reason: they are put between fences."""
    text = re.sub(
        r"^( *)```.*?^ *```$", lambda fenced: re.sub(r"[^\n]+", "```", fenced[0]), page.read_text(), flags=re.S | re.M
    )
    items = re.compile(r" *([-*]|\d+\.) ")
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        assert not (line.startswith("    ") and line.strip() and before == "blank"), f"{page.name}:{number}: {line}"
        if line.strip():
            before = "list" if items.match(line) or (before.startswith("list") and line.startswith(" ")) else "text"
        elif before == "text":
            before = "blank"


def test_every_comment_is_before_a_block_and_every_named_test_is_there() -> None:
    for page in PAGES:
        comments = re.findall(r"^ *<!-- (?:checked|not run|not code).*$", page.read_text(encoding="utf-8"), re.M)
        assert len(comments) == sum(bool(block.kind) for block in blocks_of(page)), page
    for page, tests in RUN.items():
        for words, test in tests.items():
            assert with_words(page, words)
            path, _, name = test.partition("::")
            source = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {name}(" in source and Path(page).stem in source, (page, words)


def test_a_block_without_a_test_and_without_a_comment_is_found_with_its_line(tmp_path: Path, monkeypatch: Any) -> None:
    text = "# A page\n\n<!-- not run: needs Docker -->\n```bash\ndocker ps\n```\n\n1. a list\n   ```bash\n   make tea \\\n     now\n   ```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr("tests.support.documents.ROOT", tmp_path)
    first, second = blocks_of(tmp_path / "page.md")
    assert (first.kind, first.why, first.place) == ("not run", "needs Docker", "page.md:4")
    assert (second.kind, second.place, second.commands) == ("", "page.md:9", ["make tea    now"])
    with pytest.raises(AssertionError, match=r"page\.md:9: no test of RUN in .*, and no comment before it"):
        test_every_block_is_run_or_says_why_not(tmp_path / "page.md")


def test_shell_blocks_are_valid_bash() -> None:
    shell = [block for block in BLOCKS if block.language in SHELL and "<folder" not in block.text]
    assert len(shell) > 40
    # Each in a function of its own, so that one bash reads all; a wrong one is then looked for.
    whole = "\n".join(f"block_{i}() {{\n" + "\n".join(block.commands) + "\n}" for i, block in enumerate(shell))
    if not _is_bash(whole):
        assert [block.place for block in shell if not _is_bash("\n".join(block.commands))] == []


def _is_bash(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def test_commands_of_checked_blocks_are_ours_and_are_understood() -> None:
    """So "checked" means something: whatever stands in such a block is one of the programs below, with words that it takes."""
    marked = [block for block in BLOCKS if block.kind == "checked, not run"]
    assert len(marked) > 20
    wrong = [f"{block.place}: {line}: {said}" for block in marked for line in block.commands if (said := refused(line))]
    assert not wrong, "\n".join(wrong)


def test_commands_of_ours_beside_those_of_others_are_understood_too() -> None:
    others = [block for block in BLOCKS if block.language in SHELL and block.kind == "not run"]
    found = [
        (block, line) for block in others for line in block.commands if program_of(line)[0].startswith("python -m")
    ]
    assert len(found) > 5
    foreign = ("python -m pip", "python -m venv", "python -m http.server")
    wrong = [f"{b.place}: {line}" for b, line in found if program_of(line)[0] not in foreign and refused(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("docker ps", "no program of ours"),
        ("python -m trainer train a.yaml --fast", "unrecognized"),
        ("python -m services.ocr --mode circle", "mode"),
        ("bash train.sh configs/quickstart.yaml sead=2", "unknown key"),
        ("bash train.sh configs/no_such.yaml", "no such"),
        ("python -m trainer from-neo pt --no_such_flag 1", "no_such_flag"),
        ("python -m services.eval run --promts a.csv", "--promts"),
        ("rewards trian quickstart", "no verb"),
        ("bash scripts/no_such.sh", "is not there"),
    ],
)
def test_a_command_that_is_not_understood_is_refused(line: str, words: str) -> None:
    assert words in refused(line)


def refused(line: str) -> str:
    """What is wrong with a command of ours; nothing where its program takes it."""
    program, words = program_of(line)
    if program == "python -m trainer":
        return _refused_by_trainer(words)
    if program == "rewards" or program == "python -m rewards":
        return _refused_by_rewards(words)
    if program.startswith("python -m services."):
        return _refused_by_service(program.removeprefix("python -m services."), words)
    if program == "python -m loadtest":
        return _said(lambda: loadtest_parser("loadtest").parse_args(words))
    if program == "train.sh":
        return _refused_by_recipe(words)
    if program == "test.sh" or program.startswith(("scripts/", "benchmarks/")):
        return "" if (ROOT / program).is_file() else f"{program} is not there"
    return f"{program or line} is no program of ours"


def _refused_by_trainer(words: list[str]) -> str:
    verb, *rest = words
    if verb in FOREIGN:
        flags = {word.removeprefix("--").split("=")[0] for word in rest if word.startswith("--")}
        unknown = sorted(flags - FOREIGN[verb])
        return f"{verb} has no {', '.join(unknown)}" if unknown else ""
    assert verb not in VERBATIM
    return _said(lambda: build_parser().parse_args(words))


def _refused_by_rewards(words: list[str]) -> str:
    verb, *rest = words
    if verb not in {*VERBS, "--help", "--version"}:
        return f"no verb {verb}"
    if verb == "serve":
        known = {entry.name: entry for entry in CATALOGUE}
        return _refused_by_service(rest[0], rest[1:]) if rest[0] in known else f"no service {rest[0]}"
    if verb == "services":
        return _said(lambda: services_parser("rewards services").parse_args(rest))
    command = VERBS[verb].command if verb in VERBS else None
    return _refused_by_trainer([command, *rest]) if command else ""


def _refused_by_service(name: str, words: list[str]) -> str:
    """Words of a service that is started are read by its settings; of its other commands the flags are known ones."""
    if not (ROOT / "services" / Path(*name.split("."))).with_suffix(".py").is_file():
        if not (ROOT / "services" / name / "__main__.py").is_file():
            return f"no service {name}"
        if not words or words[0].startswith("--"):
            return _said(lambda: load_settings(settings_of(name), words))
        unknown = sorted({word for word in words if word.startswith("--")} - flags_of(name))
        return f"{name} has no {', '.join(unknown)}" if unknown else ""
    return ""


def _refused_by_recipe(words: list[str]) -> str:
    """`bash train.sh RECIPE key=value ...`; without a recipe it is the quickstart, and one that is yours is not there yet."""
    overrides = [word for word in words if "=" in word]
    recipe = next((word for word in words if "=" not in word), "configs/quickstart.yaml")
    if not recipe.startswith("configs/"):
        return ""
    if not (ROOT / recipe).is_file():
        return f"no such recipe: {recipe}"
    try:
        load_recipe(ROOT / recipe, Config, overrides)
    except ValueError as error:
        return str(error)
    return ""


def _said(read: Callable[[], object]) -> str:
    """What a parser prints before it ends the program; nothing where it takes what it is given."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            read()
        except SystemExit:
            return said.getvalue()
    return ""


def test_rows_in_json_are_json() -> None:
    conversation = json.loads(with_words("docs/packed_rows.md", "conversations").text)
    assert [turn["from"] for turn in conversation["conversations"]] == ["system", "human", "gpt", "gpt"]
    pair = json.loads(with_words("docs/pairs.md", "understand_ann").text)
    assert set(pair) == {"similarity", "generate_ann", "understand_ann"}


SERVED = {"services": {"s": {"urls": ["http://127.0.0.1:1"]}}}
PLAIN: dict[str, Any] = {
    "run_name": "r",
    "max_steps": 10_000,
    "rewards": {
        **SERVED,
        "columns": {name: {"service": "s"} for name in ("ocr", "win_rate", "hps", "judge", "accuracy", "format")},
    },
    "data": {"train": [{"path": "a.txt", "rewards": {"ocr": 1.0}}]},
}
VLM: dict[str, Any] = {**PLAIN, "policy": {"type": "vlm", "pretrained": "vlm"}}
PACKS: dict[str, Any] = {
    "run_name": "r",
    "max_steps": 10,
    "program": "supervised",
    "packed": {"groups": [{"name": "drawings", "sets": [{"path": "rows.json", "format": "t2i"}]}]},
}
JUDGED = copy.deepcopy(PLAIN)
JUDGED["rewards"]["columns"]["judge"] |= {"reward": "unigenbench"}
# Parts of recipes, by page and words, and the recipe that each is a part of.
PARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("docs/bagel.md", "type: mot"): PACKS,
    ("docs/checkpoints.md", "keep_best:"): {**PLAIN, "evaluation": {"path": "h.txt", "every": 25, "rewards": ["ocr"]}},
    ("docs/checkpoints.md", "# stage_2.yaml"): PACKS,
    ("docs/neo_quickstart.md", "grow: {language"): PACKS,
    ("docs/configuration.md", "program: preference"): {},
    ("docs/configuration.md", "matrices:"): PLAIN,
    ("docs/data.md", "sampling_mode:"): PLAIN,
    ("docs/data.md", "delimiter:"): PLAIN,
    ("docs/data.md", "split:"): VLM,
    ("docs/evaluation.md", "scoring: unigenbench/en"): JUDGED,
    ("docs/evaluation.md", "task: understand"): task_tree(),
    ("docs/generation.md", "renorm: global"): {**PLAIN, "policy": {"type": "mot", "initialize": {}}},
    ("docs/migration_pairuni.md", "sets:"): task_tree(),
    ("docs/models_that_write.md", "freeze:"): VLM,
    ("docs/models_that_write.md", "initialize:"): {key: value for key, value in VLM.items() if key != "policy"},
    ("docs/vllm.md", "weights_dir:"): {**VLM, "sampling": {"prompts_per_step": 32, "group_size": 12}},
}


@pytest.mark.parametrize(("page", "words"), PARTS)
def test_a_part_of_a_recipe_loads(page: str, words: str, tmp_path: Path) -> None:
    part = yaml.safe_load(with_words(page, words).text)
    tree = {"data": {"train": part}} if isinstance(part, list) else part
    config = checked(tmp_path / "recipe.yaml", Config, laid_over(PARTS[page, words], tree))
    found = config.model_dump(mode="json", exclude_unset=True)
    assert tree.keys() <= found.keys()


def laid_over(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The base with the part's sections: a mapping is merged, but a policy of another type and lists take its place."""
    whole = copy.deepcopy(base)
    for key, value in part.items():
        merges = isinstance(value, dict) and isinstance(whole.get(key), dict) and key != "policy"
        whole[key] = laid_over(whole[key], value) if merges else value
    return whole


def test_an_old_recipe_is_rewritten_by_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, written = with_words("docs/configuration.md", "migrate-config").commands
    old = tmp_path / "mine.yaml"
    old.write_text("run_name: r\nmax_steps: 1\nalgorithm: {clip_range: 0.1}  # as published\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert trainer(program_of(shown)[1]) == 0
    text = capsys.readouterr().out
    assert "algorithm" in old.read_text(encoding="utf-8") and "clip_range: 0.1" in text and "algorithm" not in text
    assert trainer(program_of(written)[1]) == 0
    assert "objective" in old.read_text(encoding="utf-8") and "algorithm" not in old.read_text(encoding="utf-8")
