"""Code of the user's own that a run was started with: its hashes and copies in the run folder, and what changed of it since.

own/code.json             field, what the recipe says, sha256 and the copy of each, as of the newest start
own/3f2a9c01_alarm.py     the bytes that ran, by the beginning of their sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.records.recorder import write_atomic

FOLDER, LIST = "own", "code.json"
_SHOWN = 12  # of a sha256, in a sentence


@dataclass(frozen=True)
class Code:
    """A file of the user's own.

    Attributes:
        field: of the recipe, such as objective.code.
        text: what it says, FILE.py:NAME.
        sha256: of the file's bytes.
        copy: the name of its copy in the folder.
    """

    field: str
    text: str
    sha256: str
    copy: str

    @classmethod
    def of(cls, field: str, text: str, path: str, content: bytes) -> Code:
        digest = hashlib.sha256(content).hexdigest()
        return cls(field, text, digest, f"{digest[:8]}_{Path(path).name}")


def keep_code(run_dir: Path, code: Sequence[Code], contents: Iterable[bytes]) -> None:
    """Write the list and the copies; those of earlier starts stay. Nothing is written where there is none and was none."""
    folder = run_dir / FOLDER
    if not code and not (folder / LIST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for each, content in zip(code, contents, strict=True):
        if not (folder / each.copy).exists():
            write_atomic(folder / each.copy, content.decode("utf-8", errors="replace"))
    write_atomic(folder / LIST, json.dumps([asdict(each) for each in code], indent=1, ensure_ascii=False) + "\n")


def changed_code(run_dir: Path, code: Sequence[Code]) -> list[str]:
    """A sentence for each file that is another one than at the last start. What the recipe names anew is a change of the recipe."""
    folder, before = run_dir / FOLDER, {}
    try:
        tree = json.loads((folder / LIST).read_text(encoding="utf-8"))
        before = {each["field"]: Code(**each) for each in tree}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [
            f"{folder / LIST} cannot be read ({type(error).__name__}): whether code of your own has changed is not known"
        ]
    return [
        f"{each.field} = {each.text}: the file has changed since the last start, sha256 {old.sha256[:_SHOWN]} -> "
        f"{each.sha256[:_SHOWN]}; what ran before is {folder / old.copy}"
        for each in code
        if (old := before.get(each.field)) is not None and old.text == each.text and old.sha256 != each.sha256
    ]
