"""The fake service with decoding taken out: every image is one that is there already. For `service_overhead.py`.

python -m benchmarks.undecoded_service --port 0 --behaviour constant
"""

from __future__ import annotations

import sys

from PIL import Image

from services.kit.dispatch import decoding
from services.kit.run import serve
from services.kit.settings import load_settings
from services.kit.testing import fakes
from wire.images import Picture

if __name__ == "__main__":
    _image = Image.new("RGB", (512, 512))
    decoding.open_header = lambda *_args, **_kwargs: Picture(512, 512, 3, lambda: _image)
    _settings = load_settings(fakes.FakeSettings, sys.argv[1:], prog="python -m benchmarks.undecoded_service")
    serve(lambda: fakes.make_fake(_settings), _settings, "fake")
