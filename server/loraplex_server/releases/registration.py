"""How a package becomes a version: fetched, proved, stored, asked golden prompts, and only then registered."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from loraplex_adapters.errors import AdapterError, StorageError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import Once
from loraplex_adapters.releases import Adapter, OnExisting, Version
from loraplex_server.admission.jobs import AdmissionJob, AdmittedPackage
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.packages import ServerPackages

log = logging.getLogger(__name__)

_ATTEMPTS = 5

GoldenProof = Callable[[str], Awaitable[None]]
"""Digest of a stored package -> nothing, or NoEffectError."""

JobFor = Callable[[Path, str], AdmissionJob]
"""(package folder, expected digest) -> the check against the resident base, within the server's budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRequest:
    """What to register, whatever way its package comes."""

    name: AdapterName
    on_existing: OnExisting = OnExisting.REFUSE
    alias: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    expected_digest: str = ""
    validate_only: bool = False
    source: str = "upload"
    once: Once | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The version, and its adapter afterwards; or as they would be."""

    adapter: Adapter
    version: Version


class Registrar:
    """Registers packages. Owned by the event loop; several may be on their way at once."""

    def __init__(
        self,
        directory: AdapterDirectory,
        packages: ServerPackages,
        admission: AdmissionPool,
        job_for: JobFor,
        prove_effect: GoldenProof,
        template_hash: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`template_hash` is that of the served chat template; empty where the base has none."""
        self._directory = directory
        self._packages = packages
        self._admission = admission
        self._job_for = job_for
        self._prove_effect = prove_effect
        self._template_hash = template_hash
        self._clock = clock

    async def register(self, request: RegistrationRequest, folder: Path) -> Registered:
        """Prove the package in `folder` and make it a version; the folder is not needed afterwards.

        Raises AdapterError, InvalidRequestError, StorageError, EngineUnavailableError.
        """
        for _ in range(_ATTEMPTS):
            admitted = await self._admission.check(self._job_for(folder, request.expected_digest))
            with self._packages.lease(admitted.digest):
                if await self._packages.hold_stored(admitted.digest):
                    return await self._register_stored(request, admitted)
        raise StorageError("an equal package is deleted all the time; register it again later")

    async def _register_stored(self, request: RegistrationRequest, admitted: AdmittedPackage) -> Registered:
        """With a lease on the package, which goes when that ends unless a version has it."""
        version = self._version(request, admitted)
        is_certain = True  # that no write is under way, or was lost with the database
        try:
            await self._trial(request, version)  # before seconds are spent on golden prompts
            await self._prove_effect(admitted.digest)
            if request.validate_only:
                return Registered(await self._trial(request, version), version)
            await self._packages.share(admitted.digest)
            is_certain = False
            adapter = await self._enter(request, version)
            is_certain = True
            await self._packages.share(admitted.digest)  # another server's deletion may have come between
        except AdapterError:
            is_certain = True  # the registry refused
            raise
        finally:
            if is_certain:  # else the sweep will tell
                await self._packages.retire_unreferenced({admitted.digest})
        registered = adapter.version(version.digest)
        is_new = registered.created_at == version.created_at  # else it was there, or was answered before
        if is_new:
            log.info(
                "version registered", extra={"adapter": str(request.name), "digest": version.digest[:12]}
            )
        return Registered(adapter, registered)

    def _version(self, request: RegistrationRequest, admitted: AdmittedPackage) -> Version:
        return Version(
            digest=admitted.digest,
            size_bytes=admitted.size_bytes,
            num_elements=admitted.num_elements,
            rank=admitted.rank,
            target_modules=admitted.target_modules,
            served_module_count=admitted.served_module_count,
            base_fingerprint=self._directory.base_fingerprint,
            template_hash=self._template_hash,
            source=request.source,
            signer=admitted.signer,
            created_at=self._clock(),
        )

    async def _trial(self, request: RegistrationRequest, version: Version) -> Adapter:
        """What would come of entering it. Raises what the registry would."""
        return await asyncio.to_thread(self._write(request, version), is_trial=True)

    async def _enter(self, request: RegistrationRequest, version: Version) -> Adapter:
        """Write it into the registry."""
        return await self._directory.change(self._write(request, version))

    def _write(self, request: RegistrationRequest, version: Version) -> partial[Adapter]:
        return partial(
            self._directory.registry.register,
            request.name,
            version,
            on_existing=request.on_existing,
            alias=request.alias,
            labels=request.labels,
            once=_once(request, version),
        )


def _once(request: RegistrationRequest, version: Version) -> Once | None:
    """The weights are part of what was asked for, whatever way they came."""
    if request.once is None:
        return None
    content = hashlib.sha256(f"{request.once.content} {version.digest}".encode()).hexdigest()
    return Once(request.once.request_id, content)
