"""What the exit status of `loraplex` means. Documented in docs/cli.md and in every --help."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Stable: scripts may rely on them."""

    OK = 0
    FAILURE = 1  # something here or in the server broke
    BAD_INPUT = 2  # usage, configuration, or a file that is not what it should be
    UNREACHABLE = 3  # no server answers at the address
    REFUSED = 4  # the server answered with an error; its reason is printed
    WRONG_RESULT = 5  # everything ran, and the result is not what it must be
    DOES_NOT_FIT = 6
    PAUSED = 7
    INCONCLUSIVE = 8
    INTERRUPTED = 130  # Ctrl-C


EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 failure, 2 bad usage, configuration or input, 3 server unreachable, "
    "4 refused by the server, 5 wrong result, 130 interrupted."
)
