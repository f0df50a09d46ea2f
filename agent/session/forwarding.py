"""For whose sake a server asks: finds the lookup that waits where an upstream query is sent, and ties the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.session import proxies, stages, upstream
from agent.session.model import Background
from agent.session.node_state import Servers
from agent.session.outcome import REFRESH_NS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.hop.record import Hop
    from agent.session.deadlines import Deadlines
    from agent.session.index import Index
    from agent.session.model import Message, Session, Settings
    from agent.session.node_state import NodeState


class Forwarding:
    """Upstream exchanges and the lookups they belong to."""

    def __init__(self, index: Index, deadlines: Deadlines, node_state: NodeState, settings: Settings) -> None:
        self._index = index
        self._deadlines = deadlines
        self._node_state = node_state
        self._settings = settings
        self._parents: dict[Session, Session] = {}
        self._upstream_connects: dict[tuple[int, tuple[bytes, int]], Session] = {}

    def parent_of(self, session: Session) -> Session | None:
        """The lookup that this exchange belongs to."""
        return self._parents.get(session)

    def detach(self, connecting: Session) -> None:
        """The connection carries messages, which tell more than that it was asked for."""
        parent = self._parents.get(connecting)
        if parent is not None and connecting in parent.upstream:
            parent.upstream.remove(connecting)

    def forget(self, session: Session) -> None:
        """It was closed."""
        parent = self._parents.pop(session, None)
        if parent is not None and parent.inner is session:
            parent.inner = None
        for connect in session.upstream_connects:
            if self._upstream_connects.get(connect) is session:
                del self._upstream_connects[connect]

    def note_proxy(self, asked: Hop) -> None:
        """Take note that what sent this query is a proxy."""
        self._node_state.serving.setdefault(asked.netns, Servers())
        self._node_state.takers.note_proxy(asked, asked.detail)

    def join(self, session: Session, hop: Hop, message: Message) -> None:
        """If a server asks this, find out for whom."""
        kind = upstream.background_of(session)
        if kind is Background.LOOP_PROBE and hop.netns in self._node_state.serving:
            session.background = kind
        elif not self._node_state.may_be_server(hop):
            return
        elif session.connecting:
            self._join_connect(session, hop)
        elif not self._join_same_question(session, hop, message) and hop.netns in self._node_state.serving:
            session.background = kind
            if kind is None:
                self._join_rewritten(session, hop)

    def _join_same_question(self, session: Session, hop: Hop, message: Message) -> bool:
        """Whether somebody waits for the answer to this question, or to the one that it was asked for before."""
        if self._index.is_alone(session):
            return False
        oldest = self._index.alike(session)
        match = upstream.find_parent(session, hop, message, oldest, self._node_state)
        if match is not None:
            session.guessed = upstream.is_guess(match.session, hop, self._node_state)
            self.attach(match.session, session, ambiguous=match.ambiguous)
            self._node_state.serving.setdefault(hop.netns, Servers())
            self._set_apart(session, match.session, hop)
            return True
        parents = (self._parents.get(sibling) for sibling in upstream.siblings(session, hop, oldest))
        waiting = (
            parent
            for parent in parents
            if parent is not None and parent in self._index.open and upstream.is_waiting(parent, hop, self._node_state)
        )
        parent = next(waiting, None)
        if parent is None:
            return False
        self.attach(parent, session, ambiguous=True)
        return True

    def _set_apart(self, session: Session, parent: Session, hop: Hop) -> None:
        """A proxy that asks with its client's address is another client in all that goes by the address."""
        if proxies.poses(hop, self._node_state):
            session.key = session.key._replace(scope=hop.netns)
            self.note_proxy(hop)
        elif proxies.asks_what_it_took(parent, hop) and not session.guessed:
            self.note_proxy(hop)

    def _join_rewritten(self, session: Session, hop: Hop) -> None:
        """Asked under another name, or to renew an answer that was given already."""
        if self._refreshes(session, hop, self._index.asking_the_same(session)):
            session.background = Background.REFRESH
            return
        rewritten = upstream.find_rewritten(session, hop, self._index.recent(), self._node_state)
        if rewritten is not None:
            self.attach(rewritten, session, ambiguous=True)

    def _join_connect(self, session: Session, hop: Hop) -> None:
        """A request for a connection has no question: it is the youngest query's, and its repetitions are too.

        At a tap a namespace is one address, so the query that waits there was sent to who asks now.
        """
        connect_key = hop.netns, upstream.destination(hop)
        parent = upstream.find_rewritten(session, hop, self._index.recent(), self._node_state)
        if hop.netns not in self._node_state.serving and not self._node_state.is_tapped(hop.netns):
            # Nobody has replied from there yet: only a proxy that is known to have taken the query asks for its sake.
            if parent is None or not proxies.was_taken(parent, hop, self._node_state):
                return
            parent.ambiguous = True
        known = self._upstream_connects.get(connect_key)
        if parent is None and known is not None and upstream.is_waiting(known, hop, self._node_state):
            parent = known
        if parent is not None:
            if parent is not known:
                self._upstream_connects[connect_key] = parent
                parent.upstream_connects.append(connect_key)
            session.guessed = upstream.is_guess(parent, hop, self._node_state)
            self.attach(parent, session, ambiguous=False)
        elif self._refreshes(session, hop, self._index.recent()):
            session.background = Background.REFRESH

    def find_asked_meanwhile(self, session: Session, reply: Hop, same: list[Session]) -> None:
        """Who replies has asked for it: what looked like a client's own lookup before is known now."""
        confirmed = stages.confirm_guesses(session, reply)
        asked = stages.asked_meanwhile(session, reply, same)
        for exchange in (*confirmed, *asked):
            first = exchange.queries.transmissions[0].hops[0]
            if proxies.asks_what_it_took(session, first):
                self.note_proxy(first)
        if not asked:
            return
        others = any(
            other is not session and other not in asked and upstream.is_waiting(other, reply, self._node_state)
            for other in same
        )
        for exchange in asked[:1] if others else asked:
            self.attach(session, exchange, ambiguous=others)

    def mend_guess(self, session: Session, hop: Hop, reply: Message, same: list[Session]) -> None:
        """If the reply shows that a lookup alike has this one's exchanges, swap them."""
        other = upstream.swap_upstream(session, same, hop, reply, self._node_state)
        if other is None:
            return
        for parent in (session, other):
            for child in parent.upstream:
                if child in self._parents:
                    self._parents[child] = parent

    def attach(self, parent: Session, child: Session, *, ambiguous: bool) -> None:
        """Make the exchange one of the lookup's, and let it wait as long as servers do.

        What looks like asked for a background lookup is one itself: servers check each other at the same time, by the
        same question, and no client waits for either.
        """
        child.background = child.background or parent.background
        if upstream.attach(parent, child, ambiguous=ambiguous):
            self._parents[child] = parent
            if child.replies.transmissions:
                return
            wait_ns = max(self._settings.timeout_ns, self._settings.upstream_timeout_ns)
            self._deadlines.wait_until(child, child.first_ns + wait_ns)

    @staticmethod
    def _refreshes(session: Session, hop: Hop, same: Iterable[Session]) -> bool:
        """Whether this server has just answered this very question, and asks another server."""
        return any(
            other is not session
            and other.replies.transmissions
            and (reply := other.replies.transmissions[-1].hops[0]).netns == hop.netns
            and 0 <= hop.ts_ns - reply.ts_ns <= REFRESH_NS
            and not upstream.went_to(other, hop)
            for other in same
        )
