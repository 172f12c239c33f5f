"""The fake service with a second's patience for clients that do not read, and none for idle connections."""

from __future__ import annotations

import services.kit.http.protocol as protocol
from services.kit.run import serve
from services.kit.settings import load_settings
from services.kit.testing.fakes import FakeSettings, make_fake

if __name__ == "__main__":
    protocol.WRITE_TIMEOUT_S = 1.0
    protocol._GIVES_WAY_S = 0.0
    settings = load_settings(FakeSettings)
    serve(lambda: make_fake(settings), settings, "impatient")
