"""The process that reads strangers' packages: little memory, few files, low priority, no secrets.

Started by `pool`. The budget comes as the first line of its standard input, then one job a line; each gets one line
of answer. It ends at the end of its input, and when the process that started it dies.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress

import msgspec

from loraplex_adapters.errors import AdapterInvalidError, LoraplexError, StorageError
from loraplex_server.admission.jobs import Admission, AdmissionBudget, Answer, Refusal, decode_job, encode
from loraplex_server.admission.validation import validate
from loraplex_server.child_process import die_with_parent, private_stdout

READY = b"ready\n"
_NICENESS = 19
_MAX_OPEN_FILES = 64
_IMAGE_SHARE = 4  # an image takes at most as many times the bytes of its weights: bf16 widened, padded
_MAX_MESSAGE = 4000  # characters


def main() -> None:
    """Takes `preload` as its one argument where signatures are to be checked."""
    die_with_parent()
    os.nice(_NICENESS)
    answers = private_stdout()
    jobs = sys.stdin.buffer
    budget = msgspec.json.decode(jobs.readline(), type=AdmissionBudget)
    if "preload" in sys.argv[1:]:
        import loraplex_server.admission.signing  # noqa: F401  # now, not within the time of the first package
    _bound_resources(budget)
    with suppress(BrokenPipeError):  # whoever would be told has died, and in an instant this process does too
        answers.write(READY)
        for line in jobs:
            answer = _answer(line, budget)
            answers.write(encode(answer))
            if isinstance(answer, Refusal) and answer.is_worker_spent:
                break


def _answer(line: bytes, budget: AdmissionBudget) -> Answer:
    try:
        return Admission(validate(decode_job(line), budget.limits))
    except MemoryError:
        message = f"checking the package takes more than {budget.memory_bytes} bytes of memory, its budget"
        return Refusal(AdapterInvalidError.__name__, message, is_worker_spent=True)
    except OSError as error:  # of writing: what cannot be read is the package's fault
        name = error.strerror or type(error).__name__
        return Refusal(StorageError.__name__, f"the server's disk fails ({name}); try again later")
    except AdapterInvalidError as error:
        return Refusal(type(error).__name__, str(error)[:_MAX_MESSAGE], field=error.field)
    except LoraplexError as error:
        return Refusal(type(error).__name__, str(error)[:_MAX_MESSAGE])


def _bound_resources(budget: AdmissionBudget) -> None:
    """Limits of the operating system, from what the process has now, libraries loaded."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    max_image = _IMAGE_SHARE * budget.limits.max_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_image, max_image))
    if sys.platform == "linux":  # elsewhere these limits are not kept
        page_bytes = resource.getpagesize()
        with open("/proc/self/statm", encoding="ascii") as file:
            fields = [int(field) * page_bytes for field in file.read().split()]
        max_data = fields[5] + budget.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (max_data, max_data))
        # Mapped files are no memory of the process, but count here.
        max_mapped = fields[0] + budget.memory_bytes + budget.limits.max_bytes + max_image
        resource.setrlimit(resource.RLIMIT_AS, (max_mapped, max_mapped))


if __name__ == "__main__":
    main()
