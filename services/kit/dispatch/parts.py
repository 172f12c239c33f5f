"""The parts of a service. They are started together and stopped together."""

from __future__ import annotations


class Part:
    """One part. A method that a part does not override answers for a part that has nothing to do there."""

    async def start(self) -> None:
        """Get ready. Raises StartError with the reason."""

    async def stop(self) -> None:
        """Stop at once and free everything; also called when `start` failed or never ran."""

    def drain(self) -> None:
        """Take no new work; what is in flight goes on."""

    def abandon(self) -> None:
        """Give up what is in flight."""

    @property
    def lost(self) -> str | None:
        """Why nothing can be scored at present, or None."""
        return None

    @property
    def upstream_lost(self) -> str | None:
        """Why the server behind the scorer cannot be asked at present, where there is one. Then this is `lost`, too."""
        return None

    async def recover(self) -> None:
        """Try to come back after `lost`. Called now and then while it lasts."""

    @property
    def in_flight(self) -> int:
        """Items (or jobs of other processes) accepted and not yet answered."""
        return 0

    @property
    def restarts(self) -> int:
        """Worker processes replaced so far."""
        return 0
