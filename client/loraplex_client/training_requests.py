"""Friendly arguments -> requests of TrainingService."""

from __future__ import annotations

from collections.abc import Mapping

from loraplex.v1 import training_pb2
from loraplex_client.adapter_requests import drawn_id


def create_job_request(
    recipe: str,
    tenant: str,
    files: Mapping[str, bytes] | None,
    data_folder: str,
    alias: str,
    validate_only: bool,
    request_id: str,
) -> training_pb2.CreateTrainingJobRequest:
    """The request gets an id of its own, so that it can be sent again."""
    return training_pb2.CreateTrainingJobRequest(
        parent=f"tenants/{tenant}",
        recipe=recipe,
        files=[
            training_pb2.TrainingFile(name=name, content=content)
            for name, content in sorted((files or {}).items())
        ],
        data_folder=data_folder,
        alias=alias,
        validate_only=validate_only,
        request_id=request_id or drawn_id(),
    )
