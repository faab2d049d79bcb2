"""A training job, where the server has the call."""

from __future__ import annotations

import base64
from importlib import import_module
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict, ParseError

from loraplex_client.errors import api_error
from loraplex_loadtest.disturbances.schedule import StartTraining
from loraplex_loadtest.errors import ScenarioInvalidError, TargetFeatureError
from loraplex_loadtest.targets.loraplex_grpc import open_channel
from loraplex_loadtest.targets.target import TargetAddress

_PLACES = (("training", "TrainingService"), ("trainer", "TrainerService"), ("ops", "OpsService"))
_CALL = "CreateTrainingJob"
_TIMEOUT_S = 60.0


def find_call() -> tuple[Any, Any, str]:
    """Stub class, request class and name of the call, from the generated stubs.

    Raises TargetFeatureError where this version has none.
    """
    for module, service in _PLACES:
        try:
            messages = import_module(f"loraplex.v1.{module}_pb2")
            stubs = import_module(f"loraplex.v1.{module}_pb2_grpc")
        except ModuleNotFoundError:
            continue
        methods = messages.DESCRIPTOR.services_by_name.get(service)
        if methods is not None and _CALL in methods.methods_by_name:
            return getattr(stubs, f"{service}Stub"), getattr(messages, f"{_CALL}Request"), _CALL
    raise TargetFeatureError(
        "this version of Loraplex cannot start training jobs through the server: "
        "take the `train` disturbance out, or use `loraplex train run`"
    )


def job_of(what: StartTraining) -> dict[str, Any]:
    """CreateTrainingJobRequest as protobuf writes it in JSON. Raises ScenarioInvalidError if a file is missing."""
    if what.recipe is None:
        return what.job
    try:
        files = [(name, (what.recipe.parent / name).read_bytes()) for name in what.files]
        recipe = what.recipe.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioInvalidError(f"the recipe of a `train` disturbance: {error.strerror}") from None
    sent = [{"name": name, "content": base64.b64encode(content).decode()} for name, content in files]
    return {"parent": "tenants/default", "recipe": recipe, "files": sent, **what.job}


async def start_training(address: TargetAddress, what: StartTraining) -> str:
    """Ask for a job; returns what the server says of it, on one line."""
    stub, request_class, call = find_call()
    try:
        request = ParseDict(job_of(what), request_class())
    except ParseError as error:
        raise ScenarioInvalidError(f"the job of a `train` disturbance: {error}") from None
    async with open_channel(address) as channel:
        try:
            answer = await getattr(stub(channel), call)(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise api_error(error) from None
    return " ".join(str(answer).split())[:200]
