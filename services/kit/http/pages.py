"""What the service's pages have in common: headers, and hashes of the style and script that are in them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence


def page_headers(policy: Sequence[str]) -> dict[str, str]:
    """The headers of a page with that content security policy."""
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def hashed(text: str) -> str:
    """The source by which a policy admits an element of exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
