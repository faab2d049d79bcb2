"""From an address to what speaks its protocol."""

from __future__ import annotations

from loraplex_loadtest.targets.target import Connection, Inspector, TargetAddress, TargetKind


def connect(address: TargetAddress) -> Connection:
    """A new connection, made inside the event loop that uses it."""
    if address.kind is TargetKind.VLLM:
        from loraplex_loadtest.targets.vllm_grpc import VllmConnection

        return VllmConnection(address)
    if address.kind is TargetKind.OPENAI:
        from loraplex_loadtest.targets.openai_http import OpenAiConnection

        return OpenAiConnection(address)
    from loraplex_loadtest.targets.loraplex_grpc import LoraplexConnection

    return LoraplexConnection(address)


def inspect(address: TargetAddress) -> Inspector:
    """What is asked beside the load."""
    if address.kind is TargetKind.VLLM:
        from loraplex_loadtest.targets.vllm_grpc import VllmInspector

        return VllmInspector(address)
    if address.kind is TargetKind.OPENAI:
        from loraplex_loadtest.targets.openai_http import OpenAiInspector

        return OpenAiInspector(address)
    from loraplex_loadtest.targets.loraplex_grpc import LoraplexInspector

    return LoraplexInspector(address)
