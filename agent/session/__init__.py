"""Joining the hops of one lookup into a session. Pure: time and state are parameters."""
