"""Training data of both programs, and the file that asks for a plan."""

from __future__ import annotations

from trainer.config.base import ConfigError
from trainer.config.texts import RowsConfig
from trainer.data.prompts import DataError, read_prompt_file
from trainer.data.rows.table import open_table
from trainer.migration.command_line import CommandLine
from trainer.migration.recipe_text import Line


def data_lines(line: CommandLine) -> dict[str, Line]:
    """The training set. Raises ConfigError: it is not named."""
    flag = _flag(line)
    path = line.path(line[flag])
    if line.program == "t2i-r1":
        return {"data.train": Line([{"path": path, "format": "json"}])}
    entry = {"path": path, "format": "pairs", "image_dir": str(line.home(line[flag]))}
    return {"data.train": Line([entry], "images count from the working directory, as there; bad_rows: leave_out passes over bad rows")}  # fmt: skip


def count_rows(line: CommandLine) -> int:
    """How many rows the training set has. Raises ConfigError: it cannot be read."""
    flag = _flag(line)
    path = line.path(line[flag])
    try:
        if line.program == "pairuni":
            return len(open_table(RowsConfig(), field=f"--{flag}", path=path))
        return len(read_prompt_file(path, dataset="data", format="json").prompts)
    except DataError as error:
        raise ConfigError(f"--max_steps is missing, and --{flag} cannot be counted: {error}") from error


def plan_instruction(line: CommandLine) -> Line:
    """What stands behind the prompt in the file that asks for a plan. Raises ConfigError: it is not there, or has no {}."""
    name = line["reasoning_prompt_path"]
    found = line.find(name)
    if found is None:
        raise ConfigError(
            f"--reasoning_prompt_path {name}: no such file in {' or '.join(map(str, line.folders))}; give its path, or leave the "
            "flag out to draw at once"
        )
    before, mark, behind = found.read_text(encoding="utf-8").strip().partition("{}")
    if not mark:
        raise ConfigError(f"--reasoning_prompt_path {found}: no {{}} in it, where the prompt goes")
    said = f"what stands before it there is left out: {' '.join(before.split())}" if before.strip() else ""
    return Line(behind.lstrip("\"'").strip(), said)


def _flag(line: CommandLine) -> str:
    flag = "pair_data_path" if line.program == "pairuni" else "dataset_name"
    if line[flag] is None:
        raise ConfigError(f"--{flag} is missing: what is trained on")
    return flag
