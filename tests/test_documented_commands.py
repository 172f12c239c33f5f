"""Commands of docs/*.md carried out as they stand there, in a folder that has the files they name, in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.run_folders import add_evaluation, make_run, rows_of
from services.kit.settings import load_settings
from services.rules.__main__ import RulesSettings, make_scorer
from tests.support.deployment import settings_of
from tests.support.documents import ROOT, blocks_of, program_of
from tests.support.text_rows import png, write_jsonl
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.data.formats.groups import read_groups
from trainer.migration import load_recipe

TALK = {"image": "a.png", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]}
DRAWING = {"image_path": "a.png", "txt": "a red disc"}
TORCHRUN = "#!/bin/bash\ntorchrun --nproc_per_node 8 "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed: the prompts, scripts and tables that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "data/rows.jsonl", [TALK] * 8)
    (tmp_path / "data/a.png").write_bytes(png((200, 0, 0)))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def carry_out(page: str, words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the commands of the only block of docs/<page> with these words. Returns what each prints."""
    [block] = [each for each in blocks_of(ROOT / "docs" / page) if words in each.text]
    printed = []
    for line in block.commands:
        program, rest = program_of(line)
        assert program == "python -m trainer", line
        assert main(rest) == 0, line + capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    return printed


def recipes(folder: Path, printed: list[str]) -> list[Config]:
    found = []
    for number, text in enumerate(printed):
        write(folder, f"{number}.yaml", text)
        found.append(load_config(folder / f"{number}.yaml", Config))
    return found


def test_from_neo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ("captions", "texts", "mixed", "answers")
    table = {name: {"annotation_path": "data/rows.jsonl", "data_path": "data"} for name in named}
    write(folder, "neo/data/__init__.py", f"data_dict = {table!r}\n")
    write(folder, "my_sets.yaml", yaml.safe_dump(table))
    flags = "--llm_model_name_or_path models/Qwen3 --dataset_use captions --output_dir outputs/pt --max_steps 10"
    write(folder, "scripts/2B_1PT.sh", f"{TORCHRUN}neo/train/train.py {flags}\n")
    script, *stages = recipes(folder, carry_out("migration_neo.md", "2B_1PT.sh", capsys))
    assert script.max_steps == 10 and [stage.max_steps for stage in stages] == [200_000, 50_000, 4500]
    assert {each.policy.type for each in (script, *stages)} == {"neo"}


def test_from_unireason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unireason(folder)
    flags = "--finetune_from_hf True --model_path models/BAGEL-7B-MoT --total_steps 3000"
    write(folder, "scripts/sft.sh", f"{TORCHRUN}train/pretrain_unified_navit.py {flags}\n")
    found = recipes(folder, carry_out("migration_unireason.md", "sft.sh", capsys))
    assert len(found) == 4 and found[0].max_steps == 3000
    assert {(each.program, each.policy.type) for each in found} == {("supervised", "mot")}


def unireason(folder: Path) -> None:
    """That trainer's tables of groups and of data sets."""
    groups = "t2i:\n  dataset_names: [mine]\n  num_used_data: None\n  weight: 1.0\n  is_mandatory: true\n"
    for name in ("example", "example_sft"):
        write(folder, f"data/configs/{name}.yaml", groups)
    place = {"jsonl_path": str(folder / "data/t2i.json"), "image_prefix_dir": str(folder / "data")}
    write(folder, "data/t2i.json", json.dumps([DRAWING]))
    tables = f"DATASET_REGISTRY = {{'t2i': T2ISFTIterableDataset}}\nDATASET_INFO = {{'t2i': {{'mine': {place!r}}}}}\n"
    write(folder, "data/dataset_info.py", tables)


def test_from_pairuni_and_t2i_r1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--output_dir outputs/mine --bf16 true --max_steps 10"
    write(folder, "path/to/train.sh", f"{TORCHRUN}open_r1/grpo.py {flags} --pair_data_path pairs.jsonl\n")
    write(folder, "path/to/run_grpo.sh", f"{TORCHRUN}open_r1/grpo.py {flags} --dataset_name prompts.txt\n")
    found = recipes(folder, carry_out("migration_pairuni.md", "run_grpo.sh", capsys))
    assert [each.max_steps for each in found] == [10, 10, 8000]
    assert {each.policy.type for each in found} == {"janus"}


def test_from_deepgen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in (("train", ", rewards: [{ocr: 1.0}]"), ("eval", "")):
        write(folder, f"{name}.txt", f'a sign that says "{name}"\n')
        write(folder, f"{name}.yaml", f"datasets:\n  - {{name: {name}, path: {name}.txt{more}}}\n")
    [text] = carry_out("migration_deepgen.md", "from-deepgen", capsys)
    assert yaml.safe_load(text)["max_steps"] == 500


def test_build_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for kind, more in (
        ("captions", {"prompt": "a disc"}),
        ("questions", {"question": "Which?\nA. x\nB. y", "answer": "B"}),
    ):
        rows = [{"image_path": f"data/{kind}{i}.png", "tag": kind, **more} for i in range(300)]
        for i, row in enumerate(rows):
            (folder / row["image_path"]).write_bytes(png((i % 256, len(kind), i // 256)))
        write_jsonl(folder / f"{kind}.jsonl", rows)
        np.save(folder / f"{kind}.npy", 1 + rng.random((300, 3)))
    carry_out("pairs.md", "build-pairs", capsys)
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines and {"similarity", "generate_ann", "understand_ann"} <= json.loads(lines[0]).keys()


def test_a_file_of_reward_functions(folder: Path) -> None:
    names = ("accuracy_reward", "format_reward")
    write(
        folder,
        "reward_functions.py",
        "\n\n".join(f"def {n}(completions, **more):\n    return [1.0 for _ in completions]\n" for n in names),
    )
    [block] = [each for each in blocks_of(ROOT / "docs/rewards.md") if "--conversational" in each.text]
    for line, served in zip(block.commands, (set(names), {names[0]}), strict=True):
        program, flags = program_of(line)
        scorer = make_scorer(load_settings(RulesSettings, flags))
        scorer.load()
        assert program == "python -m services.rules" and served <= set(scorer.rewards) and scorer.rewards
        assert scorer.rewards.keys() & set(names) == served


def test_tables_of_another_trainer_in_a_recipe(folder: Path) -> None:
    """docs/packed_rows.md: `packed.grouping` and `packed.registry`."""
    unireason(folder)
    [block] = [each for each in blocks_of(ROOT / "docs/packed_rows.md") if "grouping:" in each.text]
    write(
        folder,
        "recipe.yaml",
        f"run_name: r\nmax_steps: 1\nprogram: supervised\npolicy: {{type: mot, pretrained: m}}\n{block.text}\n",
    )
    config = load_recipe(folder / "recipe.yaml", Config)
    assert config.packed is not None
    [group] = read_groups(config.packed, seed=1)
    assert group.name == "t2i"


def test_variables_of_compose_are_its_own() -> None:
    """docs/compose.md: what is written into services.env are settings of the service."""
    [block] = [each for each in blocks_of(ROOT / "docs/compose.md") if "CLIP_AESTHETIC=" in each.text]
    given = dict(line.split("=", 1) for line in block.commands)
    settings = load_settings(
        settings_of("clip"), ["--model", "m", *(f"--{name[5:].lower()}={value}" for name, value in given.items())]
    )
    assert {name: str(getattr(settings, name[5:].lower())) for name in given} == given


def test_the_patch_of_a_judge_over_several_gpus() -> None:
    """docs/kubernetes.md: each place that it replaces is there in the judge's Deployment, and holds what is meant."""
    [block] = [each for each in blocks_of(ROOT / "docs/kubernetes.md") if "patches:" in each.text]
    [patch] = yaml.safe_load(block.text)["patches"]
    documents = [
        each
        for each in yaml.safe_load_all((ROOT / "deploy/k8s/base/vllm/vllm.yaml").read_text(encoding="utf-8"))
        if each
    ]
    [judge] = [each for each in documents if each["kind"] == patch["target"]["kind"]]
    prefix = yaml.safe_load((ROOT / "deploy/k8s/services/eval/kustomization.yaml").read_text(encoding="utf-8"))[
        "namePrefix"
    ]
    assert prefix + judge["metadata"]["name"] == patch["target"]["name"]
    before = []
    for step in yaml.safe_load(patch["patch"]):
        node = judge
        for part in step["path"].strip("/").split("/"):
            name = part.replace("~1", "/")
            node = node[int(name)] if isinstance(node, list) else node[name]
        before.append(node)
    assert before == ["--tensor-parallel-size=1", "1", "1"]


def test_runs_as_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("baseline", "candidate"):
        run = make_run(folder / "outputs" / name, rows_of(4, every=2), config={"run_name": name})
        add_evaluation(run, 0, {"ocr": [0.5]})
        add_evaluation(run, 4, {"ocr": [0.75]})
    carry_out("runs.md", "--export", capsys)
    page = (folder / "pages/index.html").read_text(encoding="utf-8")
    assert "baseline" in page and "candidate" in page
