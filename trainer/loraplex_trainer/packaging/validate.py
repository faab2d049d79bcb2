"""The check of a package, which is the one that the server's admission makes, and of what only the trainer's have."""

from __future__ import annotations

from pathlib import Path

from loraplex_adapters.errors import AdapterInvalidError
from loraplex_adapters.manifest import MANIFEST_FILE, unlisted_files
from loraplex_adapters.package import DEFAULT_LIMITS, PackageLimits
from loraplex_server.admission import validation
from loraplex_server.admission.jobs import AdmissionJob, AdmittedPackage
from loraplex_server.base.fingerprint import base_spec, template_hash, tokenizer_hash


def validate(package: Path, base_folder: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdmittedPackage:
    """Prove that a server with this base and these limits would take the package, and that the trainer wrote it whole.

    Raises AdapterInvalidError, AdapterIncompatibleError, AdapterTooLargeError.
    """
    job = AdmissionJob(
        folder=package,
        spec=base_spec(base_folder),
        max_rank=limits.max_rank,
        template_hash=template_hash(base_folder),
        tokenizer_hash=tokenizer_hash(base_folder),
    )
    admitted = validation.validate(job, limits)
    if admitted.manifest is None:
        raise AdapterInvalidError(
            f"the package has no {MANIFEST_FILE}, so nobody knows what it was made for; package the run again"
        )
    foreign = unlisted_files(admitted.manifest, package)
    if foreign:
        raise AdapterInvalidError(
            f"{foreign[0][:80]!r} is no part of the package: {MANIFEST_FILE} does not list it; package the run again"
        )
    return admitted
