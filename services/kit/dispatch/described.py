"""What a scorer says of itself beside the protocol's methods, passed on by what stands before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from services.kit.rows import ServesRows
from services.kit.samples import Sample
from services.kit.scorer import AsyncScorer, Scorer


class Described:
    """Asks a scorer for what it may have; what it does not have is empty. A base of what stands before one."""

    def __init__(self, scorer: Scorer | AsyncScorer) -> None:
        self._scorer = scorer

    def all_about(self) -> dict[str, JsonValue]:
        """`about`, and what a page needs to know: the components that get no bar, and the form of the metadata."""
        about = dict(self.about)
        if self.off_scale:
            about["off_scale"] = list(self.off_scale)
        if self.form is not None:
            about["form"] = dict(self.form)
        return about

    @property
    def about(self) -> Mapping[str, JsonValue]:
        """What is to be known of it, as JSON."""
        about: Mapping[str, JsonValue] = getattr(self._scorer, "about", {})
        return about

    @property
    def image_only(self) -> Sequence[str]:
        """Its rewards that look at the images alone."""
        named: Sequence[str] = getattr(self._scorer, "image_only", ())
        return named

    @property
    def legacy_rows(self) -> ServesRows | None:
        """How it serves requests with rows of metadata; None where it does not."""
        serves: ServesRows | None = getattr(self._scorer, "legacy_rows", None)
        return serves

    @property
    def samples(self) -> Mapping[str, Sample]:
        """Its samples, by reward."""
        samples: Mapping[str, Sample] = getattr(self._scorer, "samples", {})
        return samples

    @property
    def off_scale(self) -> Sequence[str]:
        """Its components that are no part of the score's range."""
        named: Sequence[str] = getattr(self._scorer, "off_scale", ())
        return named

    @property
    def form(self) -> Mapping[str, JsonValue] | None:
        """How its metadata is filled in on a page; None where it is written."""
        form: Mapping[str, JsonValue] | None = getattr(self._scorer, "form", None)
        return form
