"""What a server is asked for one answer, and what of its answer may be believed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.model import TokenModel, open_image

BANNED = -100.0  # the lowest bias there is; e^-100 of a share is nothing in float32
MOST_BANNED = 1024  # biases that a server takes for one request
NO_LOGP = -9999.0  # what a server gives in place of NaN and of minus infinity
_FINISHED = {"stop": True, "length": False}
_PICTURES = 256  # as they are sent, kept for the other answers of their group


class UnfitAnswerError(Exception):
    """An answer that cannot be trained on, and why; it is asked for again."""


@dataclass(frozen=True)
class Question:
    """A prompt as servers take it.

    Attributes:
        ids: token ids with one placeholder an image, which the server expands as the processor does.
        expanded: what that must come to.
        images: the images in their order, as parts of a message.
        banned: ids that must not be drawn.
    """

    ids: Sequence[int]
    expanded: Sequence[int]
    pictures: Sequence[Mapping[str, Any]]
    banned: Sequence[int]

    def body(self, model: str, plan: TokenPlan, ends: Sequence[int], seed: int) -> dict[str, Any]:
        """A request for one answer that depends on the prompt, the seed and the plan alone.

        Args:
            model: the name that the server gives the weights.
            ends: ids that end an answer.
        """
        params = {
            "n": 1,
            "seed": seed,
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "top_k": plan.top_k,
            "max_tokens": plan.max_new_tokens,
            # What ends an answer is ours to say: a server would take it from generation_config.json.
            "ignore_eos": True,
            "stop_token_ids": list(ends),
            "logprobs": 0,
            "logit_bias": {str(each): BANNED for each in self.banned},
            "detokenize": False,
        }
        return self._request(model, self.ids, params)

    def probe(self, model: str, before: Sequence[int], token: int) -> dict[str, Any]:
        """A request for the log-probability of `token` behind the prompt and `before`, of the model's own distribution."""
        params = {
            "temperature": 1.0,
            "max_tokens": 1,
            # The drawn token comes first and counts as one of these, so a second id makes room for the one that is asked for.
            "logprobs": 2,
            "logprob_token_ids": [token, token],
            "detokenize": False,
        }
        return self._request(model, [*self.ids, *before], params)

    def _request(self, model: str, ids: Sequence[int], params: Mapping[str, Any]) -> dict[str, Any]:
        parts = {"content_parts": list(self.pictures)} if self.pictures else {}
        return {"model": model, "token_ids": list(ids), "return_token_ids": True, "sampling_params": params, **parts}


def question_of(model: TokenModel, reading: Reading) -> Question:
    """A reading as servers take it. Raises ConfigError where an image cannot be read any more."""
    ids = model.tokenizer(reading.text)["input_ids"]
    pictures = [{"type": "image_url", "url": _data_url(path, Path(path).stat().st_mtime_ns)} for path in reading.images]
    return Question(ids, reading.ids_T.tolist(), pictures, model.banned_N.tolist())


@lru_cache(_PICTURES)
def _data_url(path: str, changed_ns: int) -> str:
    """The pixels that the policy sees, without loss: turned as the file says, in RGB."""
    buffer = io.BytesIO()
    open_image("rollout", path).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_answer(given: Mapping[str, Any], question: Question, ends: Sequence[int]) -> tuple[Answer, set[str]]:
    """The answer, and the labels of the weights that drew it.

    Raises:
        UnfitAnswerError: it is none that may be trained on.
    """
    try:
        [choice] = given["choices"]
        prompt, tokens, reason = given["prompt_token_ids"], choice["token_ids"], choice["finish_reason"]
        content = choice["logprobs"]["content"]
        logp = [float(each["logprob"]) for each in content]
        drawn = [int(each["token_id"]) for each in content]
        labels = {str(span["version"]) for span in choice.get("weight_versions") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise UnfitAnswerError(f"its answer lacks what was asked for ({type(error).__name__}: {error})") from error
    if reason not in _FINISHED:
        raise UnfitAnswerError(f"finish_reason is {reason}: the answer was broken off")
    if list(prompt) != list(question.expanded):
        raise UnfitAnswerError(
            f"it read the prompt as {len(prompt)} tokens, the trainer as {len(question.expanded)}, or other ones: model, "
            "processor and tokenizer of the server must be those of policy.pretrained"
        )
    if not tokens or drawn != list(tokens):
        raise UnfitAnswerError(f"it gave {len(tokens)} tokens and log-probabilities of {len(drawn)} others")
    if bad := [token for token in tokens if token in set(question.banned)]:
        raise UnfitAnswerError(f"it drew token {bad[0]}, which logit_bias forbids")
    if broken := [each for each in logp if not math.isfinite(each) or each <= NO_LOGP]:
        raise UnfitAnswerError(f"a log-probability is {broken[0]}: its weights have become NaN")
    finished = _FINISHED[reason]
    if finished != (tokens[-1] in ends):
        raise UnfitAnswerError(f"finish_reason is {reason}, but the last token is {tokens[-1]}")
    answer = Answer(torch.tensor(tokens, dtype=torch.int64), torch.tensor(logp), finished)
    return answer, labels


def read_probe(given: Mapping[str, Any], token: int) -> float:
    """The log-probability that a `Question.probe` asked for. Raises UnfitAnswerError where it is not there."""
    try:
        [choice] = given["choices"]
        [place] = choice["logprobs"]["content"]
        found = {int(each["token_id"]): float(each["logprob"]) for each in (place, *place["top_logprobs"])}
    except (KeyError, TypeError, ValueError) as error:
        raise UnfitAnswerError(f"its answer lacks what was asked for ({type(error).__name__}: {error})") from error
    if token not in found:
        raise UnfitAnswerError("it gives no log-probability of a token that is asked for (logprob_token_ids)")
    return found[token]
