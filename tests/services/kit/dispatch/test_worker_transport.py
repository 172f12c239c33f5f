"""What travels to a worker process arrives equal, pixels beside the message, and nothing that arrives is run."""

from __future__ import annotations

import io
import multiprocessing
import threading

import pytest
from PIL import Image

from services.kit.dispatch.transport import receive, send, send_stop
from services.kit.http.multipart import parse_multipart
from services.kit.scorer import Failure, Item, Score
from wire.schema import ErrorCode


class Recorder:
    """A pipe's end that keeps the length of each message."""

    def __init__(self, pipe):
        self.pipe, self.lengths = pipe, []

    def send_bytes(self, message):
        self.lengths.append(len(message))
        self.pipe.send_bytes(message)


def carried(message):
    ours, theirs = multiprocessing.Pipe()
    recorder = Recorder(ours)
    sender = threading.Thread(target=send, args=(recorder, message))
    sender.start()
    arrived = receive(theirs)
    sender.join()
    return arrived, recorder.lengths


def noise(mode, size=(300, 200)):
    return Image.effect_noise(size, 90).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
def test_images_of_every_mode_arrive_equal(mode):
    image = noise(mode)
    image.info["transparency"] = 3
    arrived, _ = carried(image)
    assert (arrived.mode, arrived.size, arrived.info) == (image.mode, image.size, image.info)
    assert arrived.tobytes() == image.tobytes()
    if mode == "P":
        assert arrived.convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_pixels_travel_beside_the_message():
    image = noise("RGB", (512, 512))
    (reward, [item]), lengths = carried(("r", [Item(id="a", prompt="p", images=(image, image.copy()))]))
    assert (reward, item.id, len(item.images)) == ("r", "a", 2)
    assert lengths[1:] == [512 * 512 * 3] * 2 and lengths[0] < 2000


def test_file_of_a_decoded_image_does_not_travel():
    buffer = io.BytesIO()
    noise("RGB").save(buffer, "PNG")
    image = Image.open(buffer)
    image.load()
    arrived, _ = carried(image)
    assert type(arrived) is Image.Image and arrived.tobytes() == image.tobytes()


def test_items_and_results_arrive_equal():
    """A user's own values may look like ours: they stay what they were."""
    odd = {
        "kind": ["item", "a"],
        "nested": [[], {"": None}],
        "pair": ["image", 0],
        "text": "\ud800 é",
        "n": 1e30,
        "yes": True,
    }
    item = Item("a", "p", group_id="g", completion="c", targets=("x", "y"), metadata=odd)
    results = [Score(0.5, {"part": 1.0}, odd, cacheable=False), Failure(ErrorCode.TIMEOUT, "late"), item]
    arrived, _ = carried(results)
    assert arrived == results and [type(each) for each in arrived] == [Score, Failure, Item]
    assert type(arrived[1].code) is ErrorCode


def test_what_cannot_travel_is_named():
    with pytest.raises(TypeError, match="a Recorder cannot travel"):
        send(Recorder(None), ("r", [Recorder(None)]))


def test_stop_sign_and_the_end_of_the_other_process():
    ours, theirs = multiprocessing.Pipe()
    send_stop(ours)
    assert receive(theirs) is None
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def test_multipart_parts_are_views_of_the_body():
    pixels = b"\r\n--X".join([bytes(range(256)) * 40, b"\r\n-", b"--X--"])[::-1]
    head = b'--XY\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    body = head + pixels + b"\r\n--XY--\r\n"
    part = parse_multipart(body, "multipart/form-data; boundary=XY", 2)["image"]
    assert bytes(part) == pixels
    assert part.obj is body
