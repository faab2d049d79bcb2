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
    DOES_NOT_FIT = 6  # no way to train fits the memory; the nearest that does is printed
    PAUSED = 7  # a training paused because its answers are bad
    INCONCLUSIVE = 8  # too few questions to tell whether an adapter passes
    INTERRUPTED = 130  # Ctrl-C


EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 failure, 2 bad usage, configuration or input, 3 server unreachable, "
    "4 refused by the server, 5 wrong result, 6 does not fit, 7 paused, 8 inconclusive, 130 interrupted."
)
