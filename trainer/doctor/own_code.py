"""Code of the user's own: is it there, and does it keep its contract?"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import Config, ConfigError
from trainer.data.datasets import DataError
from trainer.doctor.findings import Finding
from trainer.programs.assemble import kind_of
from trainer.programs.own_code import read_code, try_code
from trainer.records.own_code import changed_code


def check_own_code(config: Config) -> Iterator[Finding]:
    """A line for each file, with its hash, once all of it has been tried as a start tries it; nothing where there is none."""
    try:
        own = read_code(config)
    except ConfigError as error:
        yield Finding("own code", "FAIL", str(error), "correct the recipe or the file")
        return
    if not own.code:
        return
    try:
        material = kind_of(config.program).read(config)
        try_code(config, material.sets)
    except DataError as error:
        yield Finding("own code", "NOT CHECKED", f"the prompts cannot be read, so it was not tried: {error}")
        return
    except ConfigError as error:
        yield Finding("own code", "FAIL", str(error), "correct the file or the recipe")
        return
    for sentence in changed_code(config.run_dir, own.code):
        yield Finding("own code", "WARN", sentence, "go on if it was meant; else put the former file back")
    for each in own.code:
        later = {"policy": "tried when it is built", "rewards": "tried by its canary, below"}.get(
            each.field.split(".")[0]
        )
        text = f"{each.field} = {each.text}: sha256 {each.sha256[:12]}"
        if later is None:
            yield Finding("own code", "OK", f"{text}; tried by a small call")
        else:
            yield Finding("own code", "OK" if later.endswith("below") else "NOT CHECKED", f"{text}; {later}")
