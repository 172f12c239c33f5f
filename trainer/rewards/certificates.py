"""Whom the client trusts over TLS."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

import certifi

from trainer.rewards.answers import RewardServiceError


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
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.create_default_context()  # with what the two variables name, as far as it is there
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        _trust(context, file, "SSL_CERT_FILE")
    if folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        raise RewardServiceError(f"SSL_CERT_DIR = {folders} is no folder: correct the variable, or unset it")
    if not file and not folders:
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        _trust(context, ca_file, field)
    return context


def is_untrusted(error: BaseException) -> bool:
    """Whether a connection failed because the server's certificate is not trusted, which waiting does not change."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _trust(context: ssl.SSLContext, file: str, field: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:  # an OSError, too
        raise RewardServiceError(
            f"{field} = {Path(file)} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): {error}"
        ) from error
    except OSError as error:
        raise RewardServiceError(f"{field} = {Path(file)} cannot be read: {error.strerror}") from error
