"""Fuzz target: everything that turns a stranger's bytes into a request. Coverage-guided, by Atheris.

    python tests/fuzz/fuzz_decoder.py FOLDER -max_total_time=600

FOLDER keeps the inputs that reached something new and is begun with `seeds()`. A finding stops the run and is written
to a file; it becomes a test of the decoder. The first byte of an input chooses the decoder.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.kit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

DECODERS = ("json", "multipart", "compute", "pickled", "pickle", "png", "jpeg", "webp", "url")


def check(data: bytes) -> None:
    """Decode one input. Raises on what must not happen: another exception than a refusal, or a result that is wrong."""
    if not data:
        return
    decoder, body = DECODERS[data[0] % len(DECODERS)], data[1:]
    if decoder == "pickle":
        _check_pickle(body)
    elif decoder in ("png", "jpeg", "webp"):
        _check_image(body, f"image/{decoder}")
    elif decoder == "url":
        _check_url(body)
    else:
        _check_request(decoder, body)


def _check_request(decoder: str, body: bytes) -> None:
    from services.kit.errors import ApiError
    from services.kit.http.intake import parse_request
    from services.kit.legacy.compute import parse_compute
    from services.kit.legacy.pickled import PickledRequest
    from wire.images import BadImageError, ImageLimits, decode_ref
    from wire.schema import ScoreRequest

    parse = {"compute": partial(parse_compute, "r"), "pickled": PickledRequest("r").parse}.get(decoder, parse_request)
    kind = "multipart/form-data; boundary=xx" if decoder == "multipart" else "application/json"
    try:
        parsed = parse(bytearray(body), kind, _settings())
    except ApiError as error:
        assert 400 <= error.status < 500, error
        assert error.message
        error.message.encode("utf-8")
        return
    text = parsed.request.model_dump_json()
    assert ScoreRequest.model_validate_json(text) == parsed.request, "a valid request survives a round trip"
    assert 1 <= len(parsed.request.items) <= 16
    for item in parsed.request.items:
        for ref in item.refs:
            try:
                image = decode_ref(ref, parsed.parts, ImageLimits(max_bytes=1 << 20, max_pixels=1 << 16))
            except BadImageError:
                continue
            assert image.width * image.height <= 1 << 16


@cache
def _settings() -> ServiceSettings:
    from services.kit.settings import ServiceSettings

    return ServiceSettings(max_items=16)


def _check_image(body: bytes, media_type: str) -> None:
    from wire.images import BadImageError, ImageLimits, decode

    try:
        image = decode(body, media_type, limits=ImageLimits(max_bytes=1 << 20, max_pixels=1 << 16))  # type: ignore[arg-type]
    except BadImageError as error:
        assert str(error)
        return
    assert image.width * image.height <= 1 << 16
    assert len(image.convert("RGB").tobytes()) == image.width * image.height * 3


def _check_pickle(body: bytes) -> None:
    from services.kit.legacy.plain_pickle import PickleError, PickleLimits, load_plain

    try:
        value = load_plain(body, PickleLimits(max_steps=5000, max_depth=8))
    except PickleError as error:
        assert str(error)
        return
    # It is plain now, so the standard reader runs nothing. Not the one in C: that one makes room for as many stored
    # values as the highest number in use, which may be four billion.
    try:
        theirs = pickle._loads(body)  # type: ignore[attr-defined]
    except pickle.UnpicklingError:
        return  # it wants frames to end where an instruction does; the one in C and ours do not
    _assert_same(value, theirs, 0)


def _assert_same(ours: object, theirs: object, depth: int) -> None:
    """What the standard reader made of the same bytes, but for tuples and views."""
    assert depth <= 8
    if isinstance(theirs, list | tuple):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _assert_same(one, other, depth + 1)
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs)
        for key, other in theirs.items():
            _assert_same(ours[key], other, depth + 1)
    elif isinstance(theirs, float) and math.isnan(theirs):
        assert isinstance(ours, float) and math.isnan(ours)
    else:
        assert type(theirs) in (type(None), bool, int, float, str, bytes), type(theirs)
        assert ours == theirs


def _check_url(body: bytes) -> None:
    from services.kit.guard.image_hosts import ImageHosts, UrlRefused

    try:
        target = ImageHosts("images.test,http://10.0.0.5:9000").target(body.decode("utf-8", "replace"))
    except UrlRefused:
        return
    place = (target.scheme, target.host, target.port)
    assert place in {("https", "images.test", 443), ("http", "10.0.0.5", 9000)}
    assert (
        target.path.startswith("/") and target.path.isascii() and target.path.isprintable() and " " not in target.path
    )


def seeds() -> Iterator[bytes]:
    """One or more good inputs of each decoder."""
    from PIL import Image

    picture = Image.new("RGB", (5, 3), (10, 200, 30))
    encoded = {}
    for name, modes in {"PNG": ("RGB", "L", "P"), "JPEG": ("RGB", "CMYK"), "WEBP": ("RGBA",)}.items():
        for mode in modes:
            buffer = io.BytesIO()
            picture.convert(mode).save(buffer, name)
            encoded[name, mode] = buffer.getvalue()
    progressive = io.BytesIO()
    picture.save(progressive, "JPEG", progressive=True)
    png = base64.b64encode(encoded["PNG", "RGB"]).decode()
    item = {
        "id": "a",
        "group_id": "g",
        "prompt": 'a sign "x"',
        "completion": "c",
        "images": [
            {"media_type": "image/png", "data": png},
            {"media_type": "image/x-rgb8", "data": "AAAA", "width": 1, "height": 1},
        ],
        "targets": ["x"],
        "metadata": {"k": [1, 2.5, None, {"t": True}]},
    }
    request = {"items": [item], "reward": "r", "deadline_ms": 1000, "request_id": "q"}
    by_part = {"items": [item | {"images": [{"media_type": "image/png", "part": "p"}]}]}
    form = b'--xx\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    batch = {
        "images": [encoded["JPEG", "RGB"]] * 2,
        "prompts": ["a", "b"],
        "metadata": {"k": [1, -(2**70), 0.5, (None, "é")]},
    }
    inputs = {
        "json": [json.dumps(request), json.dumps({"items": [{"id": "a", "prompt": "", "completion": ""}]})],
        "multipart": [
            form % (b"request", json.dumps(by_part).encode()) + form % (b"p", encoded["PNG", "RGB"]) + b"--xx--\r\n"
        ],
        "compute": [json.dumps({"prompt": ["a"], "image": [png], "condition_images": [[png]], "kwargs": {"k": [1]}})],
        "pickled": [pickle.dumps(batch, protocol) for protocol in (3, 4, 5)],
        "pickle": [pickle.dumps(value, 4) for value in (batch, [batch["metadata"]] * 3, [[]] * 1200)],
        "png": [data for (name, _), data in encoded.items() if name == "PNG"],
        "jpeg": [*(data for (name, _), data in encoded.items() if name == "JPEG"), progressive.getvalue()],
        "webp": [data for (name, _), data in encoded.items() if name == "WEBP"],
        "url": ["https://images.test/a.png?b=c#d", "http://10.0.0.5:9000/", "https://user@images.test:443\\@evil"],
    }
    for number, name in enumerate(DECODERS):
        for value in inputs[name]:
            yield bytes([number]) + (value.encode() if isinstance(value, str) else value)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["services", "wire", "python_multipart"]):
        import services.kit.guard.image_hosts
        import services.kit.http.intake
        import services.kit.legacy  # noqa: F401
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if folders:
        folders[0].mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folders[0] / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, "-timeout=20", "-rss_limit_mb=3000", "-max_len=8192"], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
