"""The part of a server that registers, in a process of its own that can be killed.

Everything is the server's own but the engine, which only golden prompts need.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import OnExisting
from loraplex_adapters.store import PackageStore
from loraplex_server.admission.jobs import AdmissionBudget, AdmissionJob
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.releases.registration import Registrar, RegistrationRequest

NAMES = ("one", "two", "three")


def open_directory(data: Path, spec: BaseSpec) -> tuple[AdapterDirectory, ServerPackages]:
    """As a server opens it."""
    registry = AdapterRegistry(f"sqlite:///{data / 'registry.sqlite3'}")
    packages = ServerPackages(registry, PackageStore(data / "adapters"), data / "images", is_shared=False)
    return AdapterDirectory(registry, packages, spec), packages


def run(words: Connection, data: Path, base: Path, folders: list[Path], seed: int) -> None:
    """Entry of the process. Says what it begins and, once that was acknowledged, that it is done."""
    asyncio.run(_register_for_ever(words, data, base, folders, seed))


async def _register_for_ever(
    words: Connection, data: Path, base: Path, folders: list[Path], seed: int
) -> None:
    """Register, promote and delete at random."""
    spec = base_spec(base)
    directory, packages = open_directory(data, spec)
    admission = AdmissionPool(AdmissionBudget())
    await admission.start()

    async def no_proof(digest: str) -> None:
        """There is no engine to ask."""

    def job_for(folder: Path, expected_digest: str) -> AdmissionJob:
        return AdmissionJob(
            folder=folder,
            spec=spec,
            max_rank=64,
            expected_digest=expected_digest,
            store_root=data / "adapters",
        )

    registrar = Registrar(directory, packages, admission, job_for, no_proof, "")
    choice = random.Random(seed)
    while True:
        name = AdapterName.parse(choice.choice(NAMES))
        folder = choice.choice(folders)
        if choice.random() < 0.75 or not await _is_there(directory, name):
            words.send(("begin", "register", str(name), folder.name))
            request = RegistrationRequest(name=name, on_existing=OnExisting.PROMOTE)
            registered = await registrar.register(request, folder)
            words.send(("done", "register", str(name), registered.version.digest))
        else:
            words.send(("begin", "delete", str(name), ""))
            await directory.delete(name, partial(directory.registry.delete, name))
            words.send(("done", "delete", str(name), ""))


async def _is_there(directory: AdapterDirectory, name: AdapterName) -> bool:
    return name in [adapter.name for adapter in await asyncio.to_thread(directory.registry.list_page, 10)]
