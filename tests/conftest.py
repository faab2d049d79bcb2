"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Hypothesis measures by the clock on the wall. On a shared machine any example may be paused for longer than its
# deadline of 200 ms, which says nothing about the code; a test that hangs meets pytest's own timeout.
settings.register_profile("loraplex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loraplex")
