"""What commands that change one adapter have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loraplex_cli.commands.adapters.text import adapter_document
from loraplex_cli.output import Output

if TYPE_CHECKING:
    from loraplex_client import Adapter
    from loraplex_client.adapter_calls import AdapterCalls


def change(
    output: Output,
    server: str,
    timeout_s: float,
    call: Callable[[AdapterCalls], Adapter],
    text: Callable[[Adapter], str],
) -> None:
    """Do one change and print the adapter afterwards: whole as JSON, else what `text` says of it."""
    from loraplex_client import LoraplexClient

    with LoraplexClient(server, timeout_s=timeout_s) as client:
        adapter = call(client.adapters)
    output.result({"adapter": adapter_document(adapter)}, text(adapter))
