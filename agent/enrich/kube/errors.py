"""What can go wrong between us and the API server."""

from __future__ import annotations


class KubeError(Exception):
    """Something did; the text says what, for people."""

    reason = "Failed"
    """One word, for metrics."""


class NotConfiguredError(KubeError):
    """Where the API server is, or who we are, cannot be found out."""

    reason = "NotConfigured"


class UnreachableError(KubeError):
    """No answer, half an answer, or none that is HTTP."""

    reason = "Unreachable"


class SilentError(UnreachableError):
    """The connection is there, and nothing came for too long."""

    reason = "Silent"


class UntrustedError(UnreachableError):
    """One side does not take the other's certificate."""

    reason = "Untrusted"


class GarbledError(KubeError):
    """What came is not what the API promises."""

    reason = "Garbled"


class RefusedError(KubeError):
    """The API server says no."""

    def __init__(self, code: int, reason: str, message: str, retry_after_seconds: float = 0) -> None:
        """Describe it.

        Args:
            code: HTTP status.
            reason: metav1.StatusReason, such as `Forbidden` or `Expired`.
            message: For people.
            retry_after_seconds: How long the API server wants to be left alone.
        """
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
