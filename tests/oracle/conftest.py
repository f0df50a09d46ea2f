"""Oracles: DNS servers that tell by dnstap what they did, and a dnstrail that watches them."""

from __future__ import annotations

from tests.kernel.conftest import watch

__all__ = ["watch"]
