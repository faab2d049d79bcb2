"""`python -m loraplex_trainer.domains FOLDER` writes the data of the three domains under FOLDER."""

from __future__ import annotations

import argparse
from pathlib import Path

from loraplex_trainer.domains.files import DOMAINS, write_domain
from loraplex_trainer.domains.rows import SEED


def main() -> None:
    """Parse the command line and write each domain into a folder of its name."""
    parser = argparse.ArgumentParser(description="Writes facts, training rows and held-out questions.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("adapters"))
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    for domain in DOMAINS.values():
        write_domain(domain, arguments.folder / domain.name, arguments.seed)


if __name__ == "__main__":
    main()
