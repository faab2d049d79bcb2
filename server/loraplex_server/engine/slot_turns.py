"""Whose turn it is where adapter slots are short: one that waits for nothing but a slot is passed, but not for ever."""

from __future__ import annotations

from loraplex_server.engine.residency_protocol import AdapterResidency
from loraplex_server.engine.sequence import Sequence

MAX_BYPASSES = 64
"""Admissions that may pass a sequence or a pinned adapter which waits for nothing but a slot; then it goes first."""


class SlotTurns:
    """Who waits for a slot, and how often it was passed. Owned by the engine's thread."""

    def __init__(self, residency: AdapterResidency) -> None:
        self._residency = residency
        self._blocked: Sequence | None = None  # oldest that waits for nothing but a slot
        self._num_bypasses = 0
        self._is_pin_waiting = False  # as of the last `begin`

    def begin(self) -> None:
        """A round of admissions begins."""
        self._is_pin_waiting = self._residency.is_pin_waiting
        if self._blocked is None and not self._is_pin_waiting:
            self._num_bypasses = 0

    def is_bypass(self, sequence: Sequence) -> bool:
        """Whether its adapter would keep a slot busy that an earlier sequence, or a pinned adapter, waits for."""
        digest = sequence.adapter_digest
        if digest is None or self._residency.is_pinned(digest):
            return False
        is_later = self._blocked is not None and sequence.order > self._blocked.order
        return is_later or self._is_pin_waiting

    @property
    def may_bypass(self) -> bool:
        """Whether another one may pass who waits."""
        return self._num_bypasses < MAX_BYPASSES

    def has_passed(self) -> None:
        """A bypass was admitted."""
        self._num_bypasses += 1

    def waits_for_slot(self, sequence: Sequence) -> None:
        """Its adapter is read, and no slot can be had for it."""
        if self._blocked is None or sequence.order < self._blocked.order:
            self._blocked = sequence

    def leave(self, sequence: Sequence) -> None:
        """It waits for a slot no more; whoever does next is passed anew."""
        if sequence is self._blocked:
            self._blocked = None
            if not self._is_pin_waiting:
                self._num_bypasses = 0
