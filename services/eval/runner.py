"""`run`: judge a folder of images against a prompt file. Stops and resumes anywhere."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from services.eval.images import ImageFile, find_images, hash_file, open_image
from services.eval.judge import Judgement, JudgeMethod, Missing, judge_image
from services.eval.prompts import Prompt, PromptFile, read_prompts
from services.eval.report import Report, write_report
from services.eval.settings import RunSettings
from services.eval.store import Place, Plan, Record, ResultLog, read_records, result_key, write_plan
from services.kit.judge.client import JudgeClient, JudgeError
from services.kit.judge.metrics import JudgeMetrics
from wire.schema import ErrorCode


def run(settings: RunSettings) -> Report:
    """Judge what has no verdicts yet and write the table and the page; also when interrupted.

    Raises ValueError (a file or folder cannot be used), OSError, JudgeError (the judge is not there) and
    KeyboardInterrupt, the latter two after the report on what was judged before.
    """
    method = settings.method()
    endpoint = settings.endpoint()
    plan = make_plan(settings, method)
    settings.out.mkdir(parents=True, exist_ok=True)
    with ResultLog(settings.out) as log:
        write_plan(settings.out, plan)
        records, damaged = read_records(settings.out)
        if damaged:
            _say(f"{damaged} cut lines in results.jsonl: those images are judged again")
        known = {key for key, record in records.items() if record.verdicts is not None}
        todo = list({place.key: place for place in plan.places if place.key not in known}.values())
        _say(f"{len(plan.places)} images, {len(plan.places) - len(todo)} judged before")
        try:
            if todo:
                client = JudgeClient(endpoint, metrics := JudgeMetrics())
                judging = _Judging(client, metrics, method, plan, settings.image_timeout_s, log)
                asyncio.run(judging.run(todo, settings.judge_wait_s))
        finally:
            report = write_report(settings.out, settings)
    return report


def make_plan(settings: RunSettings, method: JudgeMethod) -> Plan:
    """What there is to judge. Says on stderr what is wrong with the files. Raises ValueError or OSError."""
    prompts = read_prompts(settings.prompts)
    files, others = find_images(settings.images)
    by_index = {prompt.index: prompt for prompt in prompts.prompts}
    notes = [*prompts.report(), *_notes(prompts, files, others)]
    for note in notes:
        _say(note)
    places = []
    for file in _progress([file for file in files if file.index in by_index], "reading images"):
        key = result_key(hash_file(file.path), by_index[file.index], settings.model, method.revision)
        places.append(Place(file.index, file.image, file.path.name, key))
    if not places:
        raise ValueError(f"no image in {settings.images} belongs to a prompt of {settings.prompts}")
    asked = {place.index for place in places}
    return Plan(
        model=settings.model,
        revision=method.revision,
        prompts_file=str(settings.prompts.resolve()),
        images_dir=str(settings.images.resolve()),
        prompts=tuple(prompt for prompt in prompts.prompts if prompt.index in asked),
        places=tuple(places),
        notes=tuple(notes),
    )


class _Judging:
    """The calls of one run: as many at a time as the client has slots."""

    def __init__(
        self,
        client: JudgeClient,
        metrics: JudgeMetrics,
        method: JudgeMethod,
        plan: Plan,
        timeout_s: float,
        log: ResultLog,
    ) -> None:
        self._client, self._metrics, self._method, self._log = client, metrics, method, log
        self._prompts = {prompt.index: prompt for prompt in plan.prompts}
        self._images = Path(plan.images_dir)
        self._plan = plan
        self._timeout_s = timeout_s
        self._counts: Counter[str] = Counter()

    async def run(self, todo: Sequence[Place], wait_s: float) -> None:
        try:
            await self._client.wait(wait_s, lambda reason: _say(f"waiting up to {wait_s:.0f} s: {reason}"))
            places = iter(todo)
            with _progress(todo, "judging") as bar:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._client.endpoint.concurrency, len(todo))):
                        group.create_task(self._work(places, bar))
        except ExceptionGroup as errors:  # such as a full disk, met by several workers at once
            raise errors.exceptions[0] from errors
        finally:
            await self._client.aclose()

    async def _work(self, places: Iterable[Place], bar: tqdm[Any]) -> None:
        for place in places:  # shared by all workers
            result = await self._judge(place, self._prompts[place.index])
            failure = self._client.failure
            if isinstance(result, Missing) and failure is not None:
                await self._client.recover()  # an image that breaks every call is no dead judge
                if self._client.failure is not None:
                    raise JudgeError(ErrorCode.UPSTREAM, f"{failure}; the same command goes on from here")
            record = Record.of(place, result)
            await asyncio.to_thread(self._log.append, record)
            self._counts["judged" if record.verdicts is not None else "failed"] += 1
            bar.set_postfix(judged=self._counts["judged"], failed=self._counts["failed"], refresh=False)
            bar.update()

    async def _judge(self, place: Place, prompt: Prompt) -> Judgement | Missing:
        try:
            data = await asyncio.to_thread((self._images / place.file).read_bytes)
            sha256 = hashlib.sha256(data).hexdigest()
            if result_key(sha256, prompt, self._plan.model, self._plan.revision) != place.key:
                return Missing(ErrorCode.BAD_INPUT, f"{place.file} was changed during the run: run again")
            image = await asyncio.to_thread(open_image, data)
        except (OSError, ValueError) as error:
            return Missing(ErrorCode.BAD_INPUT, f"{place.file}: {error}")
        deadline = time.monotonic() + self._timeout_s
        return await judge_image(self._client, self._metrics, self._method, image, prompt, deadline)


def _notes(prompts: PromptFile, files: Sequence[ImageFile], others: Sequence[str]) -> list[str]:
    """What of the two folders does not fit together."""
    indexes = {prompt.index for prompt in prompts.prompts}
    per_prompt = Counter(file.index for file in files if file.index in indexes)
    most = max(per_prompt.values(), default=0)
    short = sum(0 < per_prompt[index] < most for index in indexes)
    strangers = [file.path.name for file in files if file.index not in indexes]
    counts = {
        f"{len(prompts.problems)} rows of the prompt file were skipped": len(prompts.problems),
        f"{len(others)} files are not named like images, such as {''.join(others[:1])}": len(others),
        f"{len(strangers)} images belong to no good row of the prompt file, such as {''.join(strangers[:1])}": len(
            strangers
        ),
        f"{len(indexes) - len(per_prompt)} of {len(indexes)} prompts have no image": len(indexes) - len(per_prompt),
        f"{short} prompts have fewer than {most} images": short,
    }
    return [note for note, count in counts.items() if count]


def _progress(items: Sequence[Any], what: str) -> tqdm[Any]:
    """A bar on a terminal; elsewhere a line every half minute."""
    return tqdm(items, desc=what, unit="image", dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 30)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
