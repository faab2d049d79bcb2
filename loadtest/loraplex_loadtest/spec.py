"""What every section of a scenario is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen; a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
