#!/bin/sh
# Prints a Python of at least 3.11: $PYTHON if set, else the first on PATH that runs. The tested version comes first.
for python in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        command -v "$python"
        exit 0
    fi
done
echo "Loraplex needs Python 3.11 or newer on PATH (or PYTHON=/path/to/python3.11 make ...)." >&2
exit 1
