"""Given conversations as a policy reads them: what is learnt stands as it would be drawn, and no row knows of its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_vlm import CHAT_TEMPLATE
from trainer.config import ConfigError, VlmConfig
from trainer.objectives.tokens.given import shortened
from trainer.policies.base import GivenText, ReadsTokens
from trainer.policies.tokens.conversations import given_text
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.vlm import build
from trainer.types import Conversation, Prompt, Turn

Said = tuple[str, str]


def make_policy(folder: Path, *, keep_reference: bool = False, **fields: object) -> TokenPolicy:
    config = VlmConfig.model_validate({"type": "vlm", "pretrained": str(folder), "dtype": "float32", **fields})
    return TokenPolicy(build(config, torch.device("cpu")), keep_reference=keep_reference)


@pytest.fixture
def policy(vlm_folder: Path) -> TokenPolicy:
    """A fresh one for each test: some change its template."""
    return make_policy(vlm_folder)


def talk(*turns: Said, images: tuple[str, ...] = ()) -> Conversation:
    return Conversation("rows.json row 3", tuple(Turn(role, text) for role, text in turns), images)  # type: ignore[arg-type]


def words(policy: TokenPolicy, ids: object) -> list[str]:
    return policy.model.tokenizer.convert_ids_to_tokens(list(ids))  # type: ignore[no-any-return, call-overload]


def learnt(policy: TokenPolicy, text: GivenText) -> list[str]:
    return words(policy, [token for token, counts in zip(text.tokens, text.learnt, strict=True) if counts])


def test_what_the_assistant_says_and_the_end_of_its_turns_is_learnt(policy: TokenPolicy) -> None:
    assert isinstance(policy, ReadsTokens)
    text = policy.read_conversation(
        talk(("user", "what color is the disc ?"), ("assistant", "red"), ("user", "how many ?"), ("assistant", "two ."))
    )
    assert words(policy, text.tokens) == [
        *("red", "<end_of_utterance>", "<turn>", "user", ":", "how", "many", "?", "<end_of_utterance>"),
        *("<turn>", "assistant", ":", "two", ".", "<end_of_utterance>"),
    ]
    assert learnt(policy, text) == ["red", "<end_of_utterance>", "two", ".", "<end_of_utterance>"]
    assert text.length == len(text.reading.ids_T) + 15


def test_an_answer_is_learnt_where_it_would_be_drawn(policy: TokenPolicy, pictures: list[str]) -> None:
    """What stands before it is, token for token and pixel for pixel, what the policy draws answers to."""
    text = policy.read_conversation(talk(("user", "which ?"), ("assistant", "a"), images=(pictures[0], pictures[3])))
    drawn = policy.model.read(Prompt("p", "which ?", source_images=(pictures[0], pictures[3])))
    assert text.reading.ids_T.tolist() == drawn.ids_T.tolist()
    assert all(torch.equal(text.reading.inputs[name], tensor) for name, tensor in drawn.inputs.items())


def test_the_system_prompt_begins_a_conversation_without_one(vlm_folder: Path) -> None:
    policy = make_policy(vlm_folder, system_prompt="say nothing")
    own = policy.read_conversation(talk(("system", "say yes"), ("user", "which ?"), ("assistant", "a")))
    ours = policy.read_conversation(talk(("user", "which ?"), ("assistant", "a")))
    assert words(policy, own.reading.ids_T.tolist())[:5] == ["<turn>", "system", ":", "say", "yes"]
    assert words(policy, ours.reading.ids_T.tolist())[:5] == ["<turn>", "system", ":", "say", "nothing"]


def test_the_log_probability_is_that_of_the_whole_text_read_by_the_model(
    policy: TokenPolicy, pictures: list[str]
) -> None:
    """Computed a second way: all tokens as one input, no answer apart, logits of the next token."""
    row = talk(
        ("user", "what color is the disc ?"),
        ("assistant", "red"),
        ("user", "how many ?"),
        ("assistant", "two ."),
        images=(pictures[1],),
    )
    text = policy.read_conversation(row)
    ids = torch.cat([text.reading.ids_T, torch.tensor(text.tokens)])[None]
    with torch.no_grad():
        logits = policy.model.network(input_ids=ids, attention_mask=torch.ones_like(ids), **text.reading.inputs).logits
    logp = logits[0].float().log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[-len(text.tokens) :, 0]
    torch.testing.assert_close(policy.logp([text.reading], [text.tokens])[0].detach(), logp, atol=1e-5, rtol=0)


def test_a_row_alone_is_the_row_in_its_batch(policy: TokenPolicy, pictures: list[str]) -> None:
    """Zero to four images, one to three turns, unequal lengths."""
    texts = [
        policy.read_conversation(
            talk(
                *[("user", "which " * (n + 1)), ("assistant", "red blue " * (4 - n) + "disc")] * (1 + n % 3),
                images=tuple(pictures[:n]),
            )
        )
        for n in range(5)
    ]
    together = policy.logp([text.reading for text in texts], [text.tokens for text in texts]).detach()
    for row, text in enumerate(texts):
        alone = policy.logp([text.reading], [text.tokens]).detach()
        torch.testing.assert_close(together[row, : len(text.tokens)], alone[0], atol=1e-4, rtol=0)
    assert together.std() > 0.1


LATER = (
    ("user", "<image> what color ?"),
    ("assistant", "red"),
    ("user", "and <image> <image> ?"),
    ("assistant", "two ."),
)


def test_images_of_a_later_turn_are_seen_where_they_stand(policy: TokenPolicy, pictures: list[str]) -> None:
    """Against the whole text read at once by the model; another image moves the answers behind it, and none before it."""
    text = policy.read_conversation(talk(*LATER, images=tuple(pictures[:3])))
    whole, inputs = policy.model.processed("here", text_of(policy, text), pictures[:3])
    ids = torch.cat([text.reading.ids_T, torch.tensor(text.tokens)])
    assert ids.tolist() == whole.tolist() and learnt(policy, text) == [
        *("red", "<end_of_utterance>", "two", ".", "<end_of_utterance>")
    ]
    with torch.no_grad():
        logits = policy.model.network(
            input_ids=whole[None], attention_mask=torch.ones_like(whole)[None], **inputs
        ).logits
    expected = logits[0].float().log_softmax(-1)[:-1].gather(-1, whole[1:, None])[-len(text.tokens) :, 0]
    found = policy.logp([text.reading], [text.tokens])[0].detach()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    other = policy.read_conversation(talk(*LATER, images=(*pictures[:2], pictures[3])))
    moved = (policy.logp([other.reading], [other.tokens])[0].detach() - found).abs()
    assert moved[:2].max() == 0 and moved[-3:].max() > 1e-5
    image_id = policy.model.image_ids[0]
    assert text.tokens[text.needed - 1] == image_id and image_id not in text.tokens[text.needed :]
    assert shortened(text, text.length - 2, "row").tokens == text.tokens[:-2]
    with pytest.raises(ConfigError, match="would cut through the images of a later turn; raise max_tokens"):
        shortened(text, len(text.reading.ids_T) + text.needed - 1, "row")


def text_of(policy: TokenPolicy, text: GivenText) -> str:
    turns = [Turn(role, said) for role, said in LATER]  # type: ignore[arg-type]
    return policy.model.rendered("here", turns, 3, is_asked=False)


def test_a_row_with_later_images_alone_is_the_row_in_its_batch(policy: TokenPolicy, pictures: list[str]) -> None:
    """Beside rows without images, with images before the first answer alone, and with none before it."""
    rows = [
        talk(*LATER, images=tuple(pictures[:3])),
        talk(("user", "which ?"), ("assistant", "a")),
        talk(
            ("user", "which ?"),
            ("assistant", "red blue"),
            ("user", "<image> ?"),
            ("assistant", "b"),
            images=(pictures[3],),
        ),
        talk(("user", "which one ?"), ("assistant", "b disc"), images=(pictures[1], pictures[2])),
    ]
    texts = [policy.read_conversation(row) for row in rows]
    together = policy.logp([text.reading for text in texts], [text.tokens for text in texts]).detach()
    for row, text in enumerate(texts):
        alone = policy.logp([text.reading], [text.tokens]).detach()
        torch.testing.assert_close(together[row, : len(text.tokens)], alone[0], atol=1e-4, rtol=0)
    assert [text.reading.later for text in texts] == [True, False, True, False]


def test_a_space_that_the_template_writes_before_an_answer_is_learnt_as_it_would_be_drawn(policy: TokenPolicy) -> None:
    """SmolVLM's template asks with `Assistant:` and answers with a space first."""
    policy.model.processor.chat_template = CHAT_TEMPLATE.replace(
        "<turn> assistant : {%- endif", "<turn> assistant :{%- endif"
    )
    text = policy.read_conversation(talk(("user", "which ?"), ("assistant", "b")))
    assert learnt(policy, text) == ["b", "<end_of_utterance>"]


def test_a_template_without_an_end_still_teaches_to_end(policy: TokenPolicy) -> None:
    policy.model.processor.chat_template = CHAT_TEMPLATE.replace("<end_of_utterance>", " ")
    text = policy.read_conversation(talk(("user", "which ?"), ("assistant", "b")))
    assert learnt(policy, text) == ["b", "<end_of_utterance>"]


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ((("user", "which ?"),), "has no answer of an assistant to a user"),
        ((("assistant", "a"), ("user", "which ?")), "has no answer of an assistant to a user"),
        (
            (("user", "<image> which ?"), ("assistant", "a <image>")),
            "shows an image in an answer, which this policy cannot write",
        ),
    ],
)
def test_rows_that_cannot_be_learnt_are_named(
    policy: TokenPolicy, pictures: list[str], turns: tuple[Said, ...], told: str
) -> None:
    images = tuple(pictures[:2]) if "<image>" in turns[0][1] else ()
    with pytest.raises(ConfigError, match=rf"conversation rows\.json row 3 {told}"):
        policy.read_conversation(talk(*turns, images=images))


def test_a_template_that_rewrites_history_is_refused(policy: TokenPolicy) -> None:
    """As of models that think: what was thought is gone once another turn follows."""
    policy.model.processor.chat_template = CHAT_TEMPLATE.replace(
        "{{ part['text'] }}", "{{ part['text'] if loop.last and messages|length < 3 else 'nothing' }}"
    )
    with pytest.raises(ConfigError, match="the chat template writes the first 2 turns otherwise once another follows"):
        policy.read_conversation(talk(("user", "which ?"), ("assistant", "a"), ("user", "how ?"), ("assistant", "b")))


def test_a_template_that_changes_answers_is_refused(policy: TokenPolicy) -> None:
    policy.model.processor.chat_template = CHAT_TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    with pytest.raises(ConfigError, match="does not write the assistant's turn as it is"):
        given_text(policy.model, talk(("user", "which ?"), ("assistant", "red")))


def test_given_texts_may_hold_what_is_never_drawn(policy: TokenPolicy) -> None:
    """Its probability is finite, so that it can be unlearnt; of an answer that is drawn it is 0."""
    text = policy.read_conversation(talk(("user", "which ?"), ("assistant", "a")))
    image_id = policy.model.network.config.image_token_id
    assert policy.logp([text.reading], [[text.tokens[0], policy.model.pad_id]]).isfinite().all()
    assert image_id in policy.model.banned_N.tolist()
