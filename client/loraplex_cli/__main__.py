"""`python -m loraplex_cli`."""

from __future__ import annotations

from loraplex_cli.main import main

if __name__ == "__main__":
    main()
