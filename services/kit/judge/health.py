"""Tells from the last calls whether a judge's server can be asked."""

from __future__ import annotations

LOST_AFTER = 3  # calls in a row that failed, before the server counts as lost


class Health:
    """Counts failures in a row. Two kinds, because each ends differently.

    A server that cannot be reached is back with any answer. One that is reached and breaks every call is back with a
    whole answer only: vLLM's API server goes on listing its models when the engine behind it is dead.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._unreached = 0
        self._broken = 0
        self._how = ""
        self.last = ""

    @property
    def failure(self) -> str | None:
        """A sentence while the server is lost, else None. It is shown to everybody, so it repeats no answer."""
        if self._unreached >= LOST_AFTER:
            return self.last
        if self.breaks:
            return (
                f"the judge at {self._url} is up and answers no call: {self._broken} failed in a row, the last with "
                f"{self._how}; its engine may be dead, see its log"
            )
        return None

    @property
    def unreached(self) -> bool:
        """The last call did not reach the server."""
        return self._unreached > 0

    @property
    def breaks(self) -> bool:
        """It is reached, and the last calls were all broken."""
        return self._broken >= LOST_AFTER

    def note_answer(self) -> None:
        """A call was answered in whole."""
        self._unreached = self._broken = 0

    def note_contact(self) -> None:
        """The server said something that tells nothing of its engine: a refusal, or its list of models."""
        self._unreached = 0

    def note_broken(self, how: str) -> None:
        """A call ended with 5xx, a refusal of every call, an answer that was broken off, or none until its deadline."""
        self._unreached = 0
        self._broken += 1
        self._how = how

    def note_unreached(self, reason: str) -> None:
        """No connection, or one that ended without an answer."""
        self._unreached += 1
        self.last = f"the judge at {self._url} does not answer ({reason})"

    def note_lost(self, reason: str) -> None:
        """It was looked whether the server is back, and it is not there."""
        self._unreached = max(self._unreached, LOST_AFTER)
        self.last = reason
