"""Whom the client trusts over TLS."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from trainer.rewards.answers import RewardServiceError
from wire.tls import tls_context, trusts_nobody


def ssl_context(urls: Sequence[str], ca_file: str | None, field: str) -> ssl.SSLContext:
    """Trusts the authorities of the system and of certifi, or those that SSL_CERT_FILE and SSL_CERT_DIR name in their place,
    and `ca_file`.

    Args:
        urls: whom it is for; where none is https, nothing is read and nobody is trusted.
        ca_file: certificates in PEM form, of a company's own authority or of one server.
        field: the setting that names it.

    Raises:
        RewardServiceError: a file is missing or holds no certificate.
    """
    if ca_file is None and not any(url.lower().startswith("https:") for url in urls):
        return trusts_nobody()
    try:
        return tls_context(None if ca_file is None else Path(ca_file), field)
    except ValueError as error:
        raise RewardServiceError(str(error)) from error


def is_untrusted(error: BaseException) -> bool:
    """Whether a connection failed because the server's certificate is not trusted, which waiting does not change."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
