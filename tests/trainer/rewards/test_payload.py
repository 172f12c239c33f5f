"""Samples as a request: what travels, and what is refused before it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.reward_servers import make_samples
from trainer.rewards.payload import MEDIA_TYPES, encode_samples, make_call
from trainer.types import Prompt, Sample
from wire.images import decode
from wire.schema import ScoreRequest


def test_the_body_is_a_wire_request_with_everything_the_sample_has() -> None:
    samples = make_samples(3, {}, targets=("HI", "你好"), metadata={"color": "red", "none": None, "deep": {"a": [1.5]}})
    call, refused = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", "flow_grpo")
    assert call is not None
    assert refused == {}
    request = ScoreRequest.model_validate_json(call.body(1234, "request-1"))
    assert (request.reward, request.deadline_ms, request.request_id) == ("flow_grpo", 1234, "request-1")
    item = request.items[2]
    assert (item.id, item.group_id, item.prompt, item.targets) == ("s2", "g0", "prompt 2", ["HI", "你好"])
    assert item.metadata == {"color": "red", "none": None, "deep": {"a": [1.5]}}
    reference = item.images[0]
    assert (reference.width, reference.height) == (5, 4)
    image = decode(call.parts[str(reference.part)], reference.media_type, width=5, height=4)
    assert np.array_equal(np.asarray(image), samples[2].images[0])


@pytest.mark.parametrize("encoding", ["rgb8", "png", "webp"])
def test_lossless_encodings_keep_every_pixel(encoding: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    view = np.ascontiguousarray(pixels[::-1])[::-1]  # not contiguous, as a cropped tensor's pixels may be
    sample = replace(make_samples(1, {})[0], images=(view,))
    ((data,),) = encode_samples([sample], encoding)
    assert data is not None
    image = decode(data, MEDIA_TYPES[encoding], width=5, height=7)
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_source_images_travel_as_their_files_once_for_all_samples_of_an_edit(tmp_path: Path) -> None:
    files = [tmp_path / "cat.png", tmp_path / "hat.jpg"]
    for path, colour in zip(files, ("red", "blue"), strict=True):
        Image.new("RGB", (6, 4), colour).save(path)
    edit = Prompt("p", "put the hat on", source_images=tuple(map(str, files)))
    plain, *samples = [replace(sample, prompt=edit) for sample in make_samples(3, {})]
    plain = replace(plain, prompt=Prompt("q", "a hat"))
    call, refused = make_call([plain, *samples], encode_samples([plain, *samples], "rgb8"), "rgb8", None)
    assert call is not None and refused == {}
    items = ScoreRequest.model_validate_json(call.body(1, "r")).items
    assert items[0].source_images is None
    for item in items[1:]:
        assert item.source_images is not None
        assert [image.media_type for image in item.source_images] == ["image/png", "image/jpeg"]
        assert [call.parts[str(image.part)] for image in item.source_images] == [path.read_bytes() for path in files]
    assert len(call.parts) == 3 + 2


def test_a_source_image_that_is_gone_fails_its_samples_alone(tmp_path: Path) -> None:
    first, second = make_samples(2, {})
    second = replace(second, prompt=Prompt("p", "edit", source_images=(str(tmp_path / "gone.png"),)))
    call, refused = make_call([first, second], encode_samples([first, second], "rgb8"), "rgb8", None)
    assert call is not None and list(call.ids) == ["s0"]
    assert refused["s1"].code == "bad_input"
    assert "gone.png" in refused["s1"].message


def test_a_text_completion_has_no_image() -> None:
    sample = Sample(id="t", group_id="g", prompt=Prompt("p", "say hi"), text="hi")
    call, _ = make_call([sample], encode_samples([sample], "rgb8"), "rgb8", None)
    assert call is not None
    assert call.parts == {}
    assert json.loads(call.body(1, "r"))["items"] == [
        {"id": "t", "group_id": "g", "prompt": "say hi", "images": [], "completion": "hi", "metadata": {}}
    ]


def test_a_sample_that_cannot_be_sent_fails_alone() -> None:
    samples = make_samples(3, {})
    samples[1] = replace(samples[1], prompt=Prompt("p", "x" * 70_000))
    call, refused = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", None)
    assert call is not None
    assert list(call.ids) == ["s0", "s2"]
    assert list(call.parts) == ["image0", "image2"]
    assert refused["s1"].code == "bad_input"
    assert "prompt" in refused["s1"].message


def test_several_images_and_a_text_travel_together() -> None:
    """Every image is a part of its own, numbered through the request; the text goes along as the completion."""
    plain, both = make_samples(2, {})
    both = replace(both, images=(*both.images, np.full((2, 5, 3), 7, np.uint8)), text="done")
    samples = [both, plain]
    call, refused = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", None)
    assert call is not None and refused == {}
    first, second = ScoreRequest.model_validate_json(call.body(1, "r")).items
    assert [image.part for image in first.images] == ["image0", "image1"]
    assert (first.images[1].height, first.images[1].width, first.completion) == (2, 5, "done")
    assert call.parts["image1"] == bytes([7] * 30)
    assert [image.part for image in second.images] == ["image2"] and second.completion is None


def test_metadata_that_is_not_json_is_named() -> None:
    samples = make_samples(1, {}, metadata={"mask": object()})
    call, refused = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", None)
    assert call is None
    assert "metadata.mask" in refused["s0"].message


def test_no_deadline_left_is_still_a_valid_request() -> None:
    samples = make_samples(1, {})
    call, _ = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", None)
    assert call is not None
    assert ScoreRequest.model_validate_json(call.body(-5, "r")).deadline_ms == 1


@pytest.mark.parametrize(
    ("name", "form"), [("cat.jpg", "PNG"), ("cat.png", "JPEG"), ("cat.jpeg", "WEBP"), ("cat.webp", "PNG")]
)
def test_a_source_image_is_what_its_first_bytes_say(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (6, 4), "red").save(path, form)
    sample = replace(make_samples(1, {})[0], prompt=Prompt("p", "edit", source_images=(str(path),)))
    call, refused = make_call([sample], encode_samples([sample], "rgb8"), "rgb8", None)
    assert call is not None and refused == {}
    [source] = ScoreRequest.model_validate_json(call.body(1, "r")).items[0].source_images or []
    assert source.media_type == f"image/{form.lower()}"
    assert decode(call.parts[str(source.part)], source.media_type).size == (6, 4)


def test_a_source_image_that_is_none_fails_its_samples_alone(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("P", (6, 4)).save(path, "GIF")
    first, second = make_samples(2, {})
    second = replace(second, prompt=Prompt("p", "edit", source_images=(str(path),)))
    call, refused = make_call([first, second], encode_samples([first, second], "rgb8"), "rgb8", None)
    assert call is not None and list(call.ids) == ["s0"] and list(call.parts) == ["image0"]
    assert refused["s1"].code == "bad_input"
    assert refused["s1"].message == f"cannot be sent: source_images: {path} is a GIF; PNG, JPEG and WebP can be sent"


def test_the_ids_of_a_texts_tokens_travel_as_metadata() -> None:
    prompt = Prompt("p", "say hi", metadata={"level": 3})
    sample = Sample(id="t", group_id="g", prompt=prompt, text="hi", tokens=(5, 7, 2))
    call, _ = make_call([sample], encode_samples([sample], "rgb8"), "rgb8", None)
    assert call is not None
    [item] = ScoreRequest.model_validate_json(call.body(1, "r")).items
    assert item.metadata == {"level": 3, "completion_ids": [5, 7, 2]} and prompt.metadata == {"level": 3}
