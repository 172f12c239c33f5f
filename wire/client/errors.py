"""What can go wrong with a call as a whole. What goes wrong with one row stands in that row."""

from __future__ import annotations


class RewardClientError(RuntimeError):
    """A call has no answer. The message says what was asked, what came back, and what to do; `code` names the kind."""

    code = "client_error"


class NoServiceError(RewardClientError):
    """Nothing listens at the address, or its name is not known."""

    code = "unreachable"


class NotAServiceError(RewardClientError):
    """Something answers there that is no reward service: the URL is another server's, or has a path too many."""

    code = "not_a_service"


class UnauthorizedError(RewardClientError):
    """The service wants a token, or does not know the one that was sent."""

    code = "unauthorized"


class NotReadyError(RewardClientError):
    """Until the deadline the service was loading, shutting down, or cut off from the server behind it."""

    code = "not_ready"


class OverloadedError(RewardClientError):
    """Until the deadline the service's queue was full, or this client was above its limit."""

    code = "overloaded"


class DeadlineError(RewardClientError):
    """The deadline passed without an answer."""

    code = "timeout"


class RefusedError(RewardClientError):
    """The service refuses the request, and would again. `status` and `field` are those of its answer."""

    code = "refused"

    def __init__(self, message: str, *, status: int, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


class InvalidAnswerError(RewardClientError):
    """The service has a bug: status 500, or an answer that breaks the contract. None of it is believed."""

    code = "invalid_response"
