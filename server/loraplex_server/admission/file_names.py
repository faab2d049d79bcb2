"""The files of a package that the server takes in, from wherever; no others are ever read."""

from __future__ import annotations

from loraplex_adapters.manifest import MANIFEST_FILE
from loraplex_adapters.package import WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE

SIGNATURE_FILE = "model.sig"
OPTIONAL_FILES = (MANIFEST_FILE, SIGNATURE_FILE)
PACKAGE_FILES = (CONFIG_FILE, WEIGHTS_FILE, *OPTIONAL_FILES)
