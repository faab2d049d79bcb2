"""The one check that every package passes before it is registered, whichever way it came."""

from __future__ import annotations

from loraplex_adapters.compatibility import LoraPlan, match_to_base
from loraplex_adapters.errors import (
    AdapterInvalidError,
    AdapterTooLargeError,
    AdapterUnavailableError,
    DigestMismatchError,
    NoEffectError,
)
from loraplex_adapters.manifest import Manifest, check_base, check_files, read_manifest
from loraplex_adapters.package import AdapterPackage, PackageLimits, read_package
from loraplex_adapters.store import PackageStore
from loraplex_server.admission.effect import is_negligible
from loraplex_server.admission.jobs import AdmissionJob, AdmittedPackage

_CHANGED = "the package was changed while it was read; send it again"


def validate(job: AdmissionJob, limits: PackageLimits) -> AdmittedPackage:
    """Prove a package: sound, within its budgets, the expected one, rightly signed, made for this base.

    Keeps it in the store, and writes its image, where the job names them. Blocks, and reads every byte of the weights.
    Raises AdapterInvalidError, AdapterIncompatibleError, AdapterTooLargeError, DigestMismatchError, NoEffectError,
    SignatureError, SignatureRequiredError; OSError where the disk fails.
    """
    package = read_package(job.folder, limits)
    _check_digest(package, job.expected_digest)
    signer, warning = _check_signature(job)
    manifest = _check_manifest(job)
    plan = match_to_base(package, job.spec, job.max_rank)
    _check_size(plan, job)
    _check_effect(package, plan, job)
    _store(package, job, limits)
    _write_image(package, plan, job)
    return AdmittedPackage(
        digest=package.digest,
        size_bytes=package.size_bytes,
        num_elements=plan.num_elements(job.spec),
        rank=plan.max_rank,
        target_modules=plan.target_modules,
        served_module_count=len(plan.modules),
        manifest=manifest,
        signer=signer,
        warning=warning,
    )


def _check_digest(package: AdapterPackage, expected: str) -> None:
    if expected and package.digest != expected.lower():
        raise DigestMismatchError(
            f"the package has digest {package.digest}, expected {expected}; it was changed on the way"
        )


def _check_effect(package: AdapterPackage, plan: LoraPlan, job: AdmissionJob) -> None:
    """What the weights alone can tell. The rest is for golden prompts, which an engine in use answers late."""
    try:
        is_idle = job.must_have_effect and is_negligible(package, plan)
    except AdapterUnavailableError as error:
        raise AdapterInvalidError(_CHANGED) from error
    if is_idle:
        raise NoEffectError(
            "each module of the adapter has an A or a B of zeros, or of numbers so small that it answers as the base "
            "does; it seems untrained"
        )


def _check_signature(job: AdmissionJob) -> tuple[str, str]:
    """(signer, warning). After `read_package`, which has shown that the files are regular and bounded."""
    if job.signature_policy == "off":
        return "", ""
    from loraplex_server.admission.signing import signer_under  # 0.3 s that most servers need not spend

    return signer_under(job.signature_policy, job.folder, job.trust)


def _check_manifest(job: AdmissionJob) -> Manifest | None:
    manifest = read_manifest(job.folder)
    if manifest is not None:
        check_files(manifest, job.folder)
        check_base(manifest, job.spec, job.template_hash, job.tokenizer_hash)
    return manifest


def _check_size(plan: LoraPlan, job: AdmissionJob) -> None:
    num_elements = plan.num_elements(job.spec)
    if job.max_elements is not None and num_elements > job.max_elements:
        raise AdapterTooLargeError(
            f"the adapter has {num_elements} weights, the whole adapter arena holds {job.max_elements}; "
            "raise adapter_arena_bytes"
        )


def _store(package: AdapterPackage, job: AdmissionJob, limits: PackageLimits) -> None:
    """The store checks its own copy, so that a folder that changes meanwhile is no way around the checks."""
    if job.store_root is None:
        return
    stored = PackageStore(job.store_root, limits).put(job.folder)
    if stored.digest != package.digest:
        raise AdapterInvalidError(_CHANGED)


def _write_image(package: AdapterPackage, plan: LoraPlan, job: AdmissionJob) -> None:
    if job.layout and job.images_root is not None:
        from loraplex_server.adapter_image import write_image

        write_image(package, plan, job.spec, job.layout, job.images_root)
