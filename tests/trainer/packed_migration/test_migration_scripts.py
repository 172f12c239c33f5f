"""Shell scripts that start a program: which words its command has, and what is said where only a shell could tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.migration.scripts import Script

START = "torchrun --nproc_per_node 2 tools/train.py --lr 1"


def command(tmp_path: Path, text: str | bytes) -> tuple[list[str], list[str]]:
    """The command's words, and what is said."""
    path = tmp_path / "run.sh"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    words, _, said = Script(path).command("train.py")
    return words, said


WORDS = ["--nproc_per_node", "2", "tools/train.py", "--lr", "1"]


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (START, []),
        (START.replace(" --", " \\\n  --"), []),
        (START.replace(" --", " \\\r\n  --"), []),
        (b"\xef\xbb\xbf" + START.encode(), []),
        (f"{START} # --lr 9", []),
        (f"{START} 2>&1 | tee log.txt", []),
        (f"{START} &> log.txt &\nwait", []),
        (f"{START} > out.txt 2> err.txt", []),
        (f"if true; then\n  {START} --steps 5; fi", ["--steps", "5"]),
        (f"run() {{\n  {START}\n}}\nrun", []),
        (f"A=7\n{START} --steps $A", ["--steps", "7"]),
        (f"declare -i A=7\n{START} --steps $A", ["--steps", "7"]),
        (f"readonly A=7\n{START} --steps ${{A}}", ["--steps", "7"]),
        (f"{START} --steps ${{STEPS:-5}}", ["--steps", "5"]),
        (f'{START} --steps "${{STEPS:=5}}"', ["--steps", "5"]),
        (f'{START} --steps ${{STEPS-"5"}}', ["--steps", "5"]),
        (f'ARGS="--a 1"\nARGS+=" --b 2"\n{START} $ARGS', ["--a", "1", "--b", "2"]),
        (f'ARGS="\n --a 1 \\\n --b 2"\n{START} $ARGS', ["--a", "1", "--b", "2"]),
        (f'ARGS=(--a 1 --b "x y")\n{START} "${{ARGS[@]}}"', ["--a", "1", "--b", "x y"]),
        (f'ARGS=(\n  --a 1  # first\n  --b 2\n)\nARGS+=(--c 3)\n{START} "${{ARGS[@]}}"', ["--a", "1", "--b", "2", "--c", "3"]),
        (f'HERE=$(cd "$(dirname "$0")" && pwd)\n{START} --path $HERE/x', ["--path", "./x"]),
        (f"GPUS=$(nvidia-smi -L | wc -l)\n{START}", []),  # which the command does without
        (f"echo 'starts train.py --lr 9'\n{START}", []),
        (f"cat <<EOF > note\ntrain.py --lr 9\nEOF\n{START}", []),
        (f"python pretrain.py --lr 9\n{START}", []),
    ],
)  # fmt: skip
def test_the_command_is_found_with_its_words(
    tmp_path: Path, text: str | bytes, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEPS", raising=False)
    assert command(tmp_path, text) == ([*WORDS, *more], [])


def test_a_second_command_is_said(tmp_path: Path) -> None:
    words, said = command(tmp_path, f"{START}\n{START} --steps 5\n")
    assert words == WORDS
    assert said == [f"{tmp_path}/run.sh starts train.py more than once; the first command alone is read"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{START} --gpus=$(nvidia-smi -L | wc -l) --a 1", "uses $(nvidia-smi -L | wc -l), whose value only a shell can tell"),
        (f"N=$(nproc)\n{START} --gpus $N", "uses $(nproc), whose value"),
        (f"{START} --gpus `nproc`", "uses `nproc`, whose value"),
        (f"{START} --steps $((10 * 2))", "uses $((10 * 2)), whose value"),
        (f"A=a/b\n{START} --path ${{A%/*}}", "uses ${A%/*}, whose value"),
        (f'{START} "$@"', "uses $@, whose value"),
        (f"{START} --steps $1", "uses $1, which it does not set"),
        (f"{START} --steps $NO_SUCH_VARIABLE", "uses $NO_SUCH_VARIABLE, which it does not set; set it in the environment"),
        ("torchrun \\ \n  tools/train.py --lr 1", "run.sh:1: a space stands behind the backslash, so that a shell ends"),
        ("torchrun tools/train.py \\\n  # --lr 2 \\\n  --a 1", "a comment stands between the lines of the command"),
        (f'A="x\n{START}', "a quote or an array has no end in"),
        (f"A=(x\n{START}", "a quote or an array has no end in"),
        ("echo train.py", "has no line that starts train.py"),
        ("", "has no line that starts train.py"),
        (b"# \xff", "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_said(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        command(tmp_path, text)
    assert message in str(error.value) and "run.sh" in str(error.value)
