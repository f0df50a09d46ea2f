"""Faults, data planes and servers for the lab of `agent.lab`, which only tests and the bench need."""
