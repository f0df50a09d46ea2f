"""Which reply the client takes.

A resolver takes the first reply that it can use. After an error it may go on: musl repeats the query at once after
SERVFAIL and ignores every other code but NOERROR and NXDOMAIN (src/network/res_msend.c), glibc asks the next server
after SERVFAIL, NOTIMP and REFUSED (resolv/res_send.c). That it went on shows in its queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.message import extended_rcode
from agent.wire.rcodes import ANSWERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.session.model import Session, Transmission


def rcode_of(reply: Transmission) -> int:
    """Its response code, extended where EDNS carries it."""
    return extended_rcode(reply.message.payload, reply.message.summary)


def is_good(reply: Transmission) -> bool:
    """Whether every resolver takes it for an answer."""
    return rcode_of(reply) in ANSWERED


def choose(session: Session, delivered: Sequence[Transmission]) -> Transmission | None:
    """The reply that counts among those that were delivered; None if there are none.

    The first good one, if the client went on asking after an error, or had asked several servers to begin with. Of
    errors alone the last: after that one it gave up.
    """
    if len(delivered) < 2:  # noqa: PLR2004  there is nothing to choose
        return next(iter(delivered), None)
    in_time = sorted(delivered, key=lambda reply: reply.hops[-1].ts_ns)
    if len(session.sent) < 2:  # noqa: PLR2004  who asks once takes what comes first
        return in_time[0]
    return next((reply for reply in in_time if is_good(reply)), in_time[-1])


def refused_attempts(session: Session, reply: Transmission | None) -> list[Transmission]:
    """Errors that the client did not content itself with: it sent the query again after them, and got another reply."""
    replies = session.replies.transmissions
    if reply is None or len(replies) < 2 or len(session.sent) < 2:  # noqa: PLR2004
        return []
    newest_ns = session.sent[-1].hops[0].ts_ns
    return [
        received
        for received in replies
        if received is not reply
        and not is_good(received)
        and received.hops[-1].ts_ns < min(newest_ns, reply.hops[-1].ts_ns)
    ]
