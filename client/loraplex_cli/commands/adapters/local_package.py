"""What is seen of a package before it is sent."""

from __future__ import annotations

import re
from pathlib import Path

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError

# As in loraplex_adapters.package, which needs more than the light installation has. The server sees only what is sent:
# without this, a pickle would be refused in a folder of the server's machine, and pass unseen in one of this machine.
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_TRAINER_LEFTOVER = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth"
)


def refuse_pickles(folder: Path) -> None:
    """Raises CommandError naming a file of the folder whose loading would run code, but for what trainers leave.

    What is no folder is left to whoever reads it. Raises OSError where a folder cannot be listed.
    """
    if not folder.is_dir():
        return
    for name in sorted(path.name for path in folder.iterdir()):
        if Path(name).suffix.lower() in _PICKLE_SUFFIXES and not _TRAINER_LEFTOVER.fullmatch(name):
            raise CommandError(
                f"'{name[:80]}' is a pickle file, which can run code when it is loaded, and pickles are refused; save "
                "the adapter as adapter_model.safetensors and remove it",
                ExitCode.BAD_INPUT,
                "UNSUPPORTED_FORMAT",
            )
