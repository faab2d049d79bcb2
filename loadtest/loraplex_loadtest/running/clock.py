"""The one clock of a run: monotonic, and the same for all processes of this machine."""

from __future__ import annotations

import time

now_s = time.monotonic
"""Seconds; comparable between processes of one boot, never between machines."""
