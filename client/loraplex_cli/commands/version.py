"""`loraplex version`."""

from __future__ import annotations

from loraplex_cli.options import JsonOption
from loraplex_cli.output import command


def version(as_json: JsonOption = False) -> None:
    """Show the versions of Loraplex and Python."""
    with command(as_json) as output:
        import platform
        from importlib.metadata import version as distribution_version

        ours = distribution_version("loraplex")
        document = {"loraplex": ours, "python": platform.python_version()}
        output.result(document, f"loraplex {ours} (Python {document['python']})")
