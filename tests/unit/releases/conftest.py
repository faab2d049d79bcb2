"""A front end's releases without an engine: real registry, real store, real packages of a tiny base."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.names import AdapterName, AdapterReference
from loraplex_adapters.package import read_package
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import Adapter, OnExisting, Version
from loraplex_adapters.store import PackageStore
from loraplex_server.releases.directory import AdapterDirectory, Resolved
from loraplex_server.releases.packages import ServerPackages
from tests.support.tiny_peft import FFN, HIDDEN, KV, NUM_LAYERS, tiny_llama

SPEC = BaseSpec(
    "LlamaForCausalLM",
    "f" * 64,
    NUM_LAYERS,
    {
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (HIDDEN, KV),
        "v_proj": (HIDDEN, KV),
        "o_proj": (HIDDEN, HIDDEN),
        "gate_proj": (HIDDEN, FFN),
        "up_proj": (HIDDEN, FFN),
        "down_proj": (FFN, HIDDEN),
    },
)


@dataclass
class FrontEnd:
    """What one server has of releases."""

    data: Path
    registry: AdapterRegistry
    store: PackageStore
    packages: ServerPackages
    directory: AdapterDirectory
    retired: list[str] = field(default_factory=list)

    async def register(
        self, name: str, folder: Path, how: OnExisting = OnExisting.REFUSE, alias: str = ""
    ) -> Adapter:
        """Store and enter a package that needs no proof."""
        version = version_of(self.store, folder)
        with self.packages.lease(version.digest):
            return await self.directory.change(
                lambda: self.registry.register(AdapterName.parse(name), version, on_existing=how, alias=alias)
            )

    async def resolve(self, reference: str, key: str = "") -> Resolved:
        return await self.directory.resolve(AdapterReference.parse(reference), key)

    async def delete(self, name: str) -> None:
        parsed = AdapterName.parse(name)
        await self.directory.delete(parsed, partial(self.registry.delete, parsed))

    async def follow(self) -> None:
        """Take in what another front end did."""
        await self.directory.follow(self.registry.events(0, 1000))

    def stored(self) -> list[str]:
        return self.store.digests()


OpenFrontEnd = Callable[..., FrontEnd]


def version_of(store: PackageStore, folder: Path) -> Version:
    """Put a package into the store and describe it."""
    package = store.put(folder)
    plan = match_to_base(package, SPEC, 64)
    return Version(
        digest=package.digest,
        size_bytes=package.size_bytes,
        num_elements=plan.num_elements(SPEC),
        rank=plan.max_rank,
        target_modules=plan.target_modules,
        served_module_count=len(plan.modules),
        base_fingerprint=SPEC.fingerprint,
        created_at=datetime.now(UTC),
    )


@pytest.fixture
def open_front_end(tmp_path: Path) -> Iterator[OpenFrontEnd]:
    """`open_front_end("a")`: all on one database; with `shared=True`, packages have a common home."""
    opened: list[FrontEnd] = []

    def open_one(name: str = "a", *, shared: bool = False) -> FrontEnd:
        data = tmp_path / name
        registry = AdapterRegistry(f"sqlite:///{tmp_path / 'registry.sqlite3'}")
        store = PackageStore(data / "adapters", shared_url=(tmp_path / "home").as_uri() if shared else None)
        packages = ServerPackages(registry, store, data / "images", is_shared=shared)
        front_end = FrontEnd(
            data,
            registry,
            store,
            packages,
            AdapterDirectory(registry, packages, SPEC, owns_registry=not shared),
        )
        packages.on_retired = front_end.retired.append
        opened.append(front_end)
        return front_end

    yield open_one
    for front_end in opened:
        front_end.registry.close()


@pytest.fixture(scope="session")
def package_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three PEFT folders with weights of their own."""
    import torch
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("packages")
    folders = []
    for seed in range(3):
        model = get_peft_model(
            tiny_llama(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_()
        model.save_pretrained(root / f"p{seed}")
        folders.append(root / f"p{seed}")
    return folders


@pytest.fixture(scope="session")
def digests(package_folders: list[Path]) -> list[str]:
    return [read_package(folder).digest for folder in package_folders]


async def settle() -> None:
    """Let deletions that wait for nothing come to their end."""
    for _ in range(100):
        await asyncio.sleep(0.002)
