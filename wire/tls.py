"""Whose certificates a client believes over TLS: the trainer and the load test of services, services of judges and images."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi


def tls_context(ca_file: Path | None = None, setting: str = "--ca-file") -> ssl.SSLContext:
    """The authorities of the system and of certifi, or those that SSL_CERT_FILE and SSL_CERT_DIR name in their place.

    `ca_file` (PEM) names further ones, such as a company's own; `setting` is where it was named. Raises ValueError, with the remedy, when what is named
    is not there or holds no certificate: OpenSSL would pass over it and then believe nobody.
    """
    context = ssl.create_default_context()  # with what the two variables name
    named_file, named_folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if named_file:
        _load(context, "SSL_CERT_FILE", named_file)
    if named_folders and not any(Path(folder).is_dir() for folder in named_folders.split(os.pathsep)):
        raise ValueError(f"SSL_CERT_DIR {named_folders} is no folder: correct the variable, or unset it")
    if not (named_file or named_folders):
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        _load(context, setting, str(ca_file))
    return context


def trusts_nobody() -> ssl.SSLContext:
    """For connections without TLS, where nothing has to be read."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def untrusted_note(reason: str) -> str:
    """A clause for the message of a connection that failed for its certificate, else nothing."""
    if "CERTIFICATE_VERIFY_FAILED" not in reason:
        return ""
    return "; if its certificate is of your own authority, name that one's file with --ca-file (or SSL_CERT_FILE)"


def _load(context: ssl.SSLContext, name: str, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{name} {path} cannot be read as certificates (PEM): {error}") from error
