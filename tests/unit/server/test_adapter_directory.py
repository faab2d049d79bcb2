"""Names and packages: what is admitted, who may still use it, and what a restart finds."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    AdapterUnavailableError,
    InvalidRequestError,
)
from loraplex_adapters.package import WEIGHTS_FILE, PackageLimits, read_package
from loraplex_adapters.registry import AdapterRegistry, AdapterState
from loraplex_adapters.store import PackageStore
from loraplex_server.adapter_directory import AdapterDirectory, remove_staging
from tests.support.tiny_peft import FFN, HIDDEN, KV, NUM_LAYERS, tiny_llama

INNER, OUTER = {"down_proj": FFN}, {"k_proj": KV, "v_proj": KV, "gate_proj": FFN, "up_proj": FFN}
SPEC = BaseSpec(
    "LlamaForCausalLM",
    "f" * 64,
    NUM_LAYERS,
    {module: (INNER.get(module, HIDDEN), OUTER.get(module, HIDDEN)) for module in LORA_MODULES},
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "a" and "b": two adapters of rank 4. Read-only."""
    root: Path = tmp_path_factory.mktemp("packages")
    for seed, name in enumerate("ab"):
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
        model = get_peft_model(tiny_llama(), config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_()
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def open_directory(packages: Path, tmp_path: Path) -> Callable[..., AdapterDirectory]:
    """The same data folder each time, as after a restart."""

    def build(spec: BaseSpec = SPEC, max_rank: int = 8) -> AdapterDirectory:
        limits = PackageLimits(max_rank=max_rank)
        return AdapterDirectory(
            AdapterRegistry(f"sqlite:///{tmp_path / 'registry.sqlite3'}"),
            PackageStore(tmp_path / "store", limits),
            spec,
            limits,
            (packages,),
            tmp_path / "uploads",
        )

    return build


@pytest.fixture
def directory(open_directory: Callable[..., AdapterDirectory]) -> AdapterDirectory:
    return open_directory()


def stored(tmp_path: Path) -> list[str]:
    """Digests of the packages on disk."""
    return PackageStore(tmp_path / "store").digests()


async def settle() -> None:
    """Let deletions that wait for nothing come to their end."""
    for _ in range(50):
        await asyncio.sleep(0.002)


async def test_an_adapter_is_admitted_with_what_it_is(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    adapter = await directory.create("finance/faq", packages / "a")

    assert adapter == directory.get("finance/faq")
    assert adapter.digest == read_package(packages / "a").digest
    assert adapter.state is AdapterState.READY
    assert (adapter.rank, adapter.target_modules) == (4, ("q_proj", "v_proj"))
    assert (adapter.served_module_count, adapter.base_fingerprint) == (2 * NUM_LAYERS, "f" * 64)
    assert stored(tmp_path) == [adapter.digest]
    assert directory.num_adapters == 1


async def test_the_same_name_and_weights_again_are_what_is_there(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    first = await directory.create("faq", packages / "a")

    assert await directory.create("faq", packages / "a") == first
    assert directory.num_adapters == len(stored(tmp_path)) == 1


async def test_a_name_in_use_by_other_weights_is_refused_and_kept(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    first = await directory.create("faq", packages / "a")

    with pytest.raises(AdapterExistsError, match="'faq' is in use by other weights"):
        await directory.create("faq", packages / "b")

    assert directory.get("faq") == first
    assert stored(tmp_path) == [first.digest]


async def test_of_two_at_once_under_one_name_one_is_registered(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    results = await asyncio.gather(
        *(directory.create("faq", packages / name) for name in "ab"), return_exceptions=True
    )

    assert [type(result) for result in results].count(AdapterExistsError) == 1
    assert stored(tmp_path) == [directory.get("faq").digest]


async def test_a_trial_registers_and_stores_nothing(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    adapter = await directory.create("faq", packages / "a", validate_only=True)

    assert adapter.digest == read_package(packages / "a").digest
    assert directory.num_adapters == 0
    assert not directory.is_registered("faq")
    assert stored(tmp_path) == []


async def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    open_directory: Callable[..., AdapterDirectory], packages: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterIncompatibleError, match="does not fit this base"):
        await open_directory(spec=replace(SPEC, num_layers=1)).create("faq", packages / "a")
    with pytest.raises(AdapterInvalidError, match="rank 4 is above"):
        await open_directory(max_rank=3).create("faq", packages / "a")
    with pytest.raises(AdapterInvalidError, match="changed on the way"):
        await open_directory().create("faq", packages / "a", expected_digest="0" * 64)
    with pytest.raises(InvalidRequestError, match="name"):
        await open_directory().create("Not A Name", packages / "a")

    assert stored(tmp_path) == []
    assert open_directory().num_adapters == 0


async def test_only_folders_under_the_roots_can_be_named(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(packages / "a", outside)
    (packages / "link").unlink(missing_ok=True)
    (packages / "link").symlink_to(outside)
    try:
        for path in (
            str(outside),
            str(packages / "link"),
            str(packages / "a" / ".." / ".." / outside.name),
            str(packages / "missing"),
            str(packages / "a" / WEIGHTS_FILE),
            "a",
            "",
        ):
            with pytest.raises(InvalidRequestError, match="adapter_roots"):
                await directory.create_from_folder("faq", path)
    finally:
        (packages / "link").unlink()

    await directory.create_from_folder("faq", str(packages / "b" / ".." / "a"))
    assert directory.get("faq").digest == read_package(packages / "a").digest


async def test_an_unknown_name_is_not_found(directory: AdapterDirectory) -> None:
    with pytest.raises(AdapterNotFoundError, match="'faq'"):
        directory.get("faq")
    with pytest.raises(AdapterNotFoundError, match="'faq'"):
        await directory.delete("faq")
    with ExitStack() as leases, pytest.raises(AdapterNotFoundError, match="'faq'"):
        leases.enter_context(directory.lease("faq"))


async def test_a_deleted_adapter_goes_at_once_if_nobody_uses_it(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    retired: list[str] = []
    deleted: list[str] = []
    directory.on_retired, directory.on_name_deleted = retired.append, deleted.append
    digest = (await directory.create("faq", packages / "a")).digest

    await directory.delete("faq")
    await directory.close()

    assert (retired, deleted) == ([digest], ["faq"])
    assert stored(tmp_path) == []
    assert not directory.is_registered("faq")


async def test_a_lease_keeps_a_deleted_package_until_its_request_ends(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    retired: list[str] = []
    directory.on_retired = retired.append
    digest = (await directory.create("faq", packages / "a")).digest

    with directory.lease("faq") as adapter:
        await directory.delete("faq")
        await settle()
        assert adapter.digest == digest
        assert stored(tmp_path) == [digest]
        assert retired == []
        with ExitStack() as leases, pytest.raises(AdapterNotFoundError):
            leases.enter_context(directory.lease("faq"))

    await directory.close()
    assert stored(tmp_path) == []
    assert retired == [digest]


async def test_weights_under_two_names_stay_while_one_of_them_does(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    retired: list[str] = []
    directory.on_retired = retired.append
    digest = (await directory.create("first", packages / "a")).digest
    await directory.create("second", packages / "a")

    await directory.delete("first")
    await settle()
    assert (stored(tmp_path), retired) == ([digest], [])

    await directory.delete("second")
    await directory.close()
    assert (stored(tmp_path), retired) == ([], [digest])


async def test_weights_registered_again_while_their_last_request_runs_stay(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    digest = (await directory.create("faq", packages / "a")).digest
    with directory.lease("faq"):
        await directory.delete("faq")
        await directory.create("again", packages / "a")

    await settle()

    assert stored(tmp_path) == [digest]
    with directory.lease("again") as adapter:
        assert adapter.digest == digest


async def test_a_name_can_be_given_to_other_weights_while_its_old_ones_are_still_used(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    old = (await directory.create("faq", packages / "a")).digest
    with directory.lease("faq") as adapter:
        await directory.delete("faq")
        new = (await directory.create("faq", packages / "b")).digest
        assert adapter.digest == old
        assert stored(tmp_path) == sorted([old, new])

    await settle()

    assert stored(tmp_path) == [new]


async def test_a_restart_finds_every_adapter_again(
    open_directory: Callable[..., AdapterDirectory], packages: Path
) -> None:
    before = open_directory()
    adapters = [await before.create(name, packages / "a") for name in ("x", "y/z")]
    await before.create("gone", packages / "b")
    await before.delete("gone")
    await before.close()

    after = open_directory()

    assert after.list_page(10) == adapters
    with after.lease("y/z") as adapter:
        assert adapter == adapters[1]


async def test_a_restart_clears_away_half_an_upload(
    open_directory: Callable[..., AdapterDirectory], tmp_path: Path
) -> None:
    folder = open_directory().staging_folder()
    (folder / WEIGHTS_FILE).write_bytes(b"half")

    staging = open_directory().staging_folder()

    assert list((tmp_path / "uploads").iterdir()) == [staging]
    remove_staging(staging)
    remove_staging(staging)  # whatever state it is in
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_an_adapter_of_another_base_is_listed_but_not_served(
    open_directory: Callable[..., AdapterDirectory], packages: Path
) -> None:
    before = open_directory()
    await before.create("faq", packages / "a")
    await before.close()

    after = open_directory(spec=replace(SPEC, fingerprint="e" * 64))

    assert [adapter.name for adapter in after.list_page(10)] == ["faq"]
    with ExitStack() as leases, pytest.raises(AdapterIncompatibleError, match="another base"):
        leases.enter_context(after.lease("faq"))
    await after.create("faq", packages / "a")  # it fits this one too: now it is bound to it
    with after.lease("faq") as adapter:
        assert adapter.base_fingerprint == "e" * 64


async def test_an_adapter_whose_package_is_damaged_is_refused_until_it_is_registered_again(
    open_directory: Callable[..., AdapterDirectory], packages: Path, tmp_path: Path
) -> None:
    before = open_directory()
    digest = (await before.create("faq", packages / "a")).digest
    (tmp_path / "store" / digest / WEIGHTS_FILE).write_bytes(b"damaged")
    await before.mark_failed("faq")
    await before.mark_failed("never-there")
    await before.close()

    after = open_directory()
    with ExitStack() as leases, pytest.raises(AdapterUnavailableError, match="register it again"):
        leases.enter_context(after.lease("faq"))
    assert after.get("faq").state is AdapterState.FAILED
    await after.create("faq", packages / "a")

    with after.lease("faq") as adapter:
        assert adapter.state is AdapterState.READY
    assert PackageStore(tmp_path / "store").verify(digest).digest == digest


async def test_pages_come_in_order_of_name_and_miss_nothing(
    directory: AdapterDirectory, packages: Path
) -> None:
    names = [f"adapter-{index:02}" for index in range(7)]
    for name in reversed(names):
        await directory.create(name, packages / "a")

    pages, after = [], ""
    while page := directory.list_page(3, after):
        pages.append([adapter.name for adapter in page])
        after = page[-1].name

    assert pages == [names[:3], names[3:6], names[6:]]


async def test_an_adapter_that_could_never_be_resident_is_refused_and_nothing_is_stored(
    directory: AdapterDirectory, packages: Path, tmp_path: Path
) -> None:
    needed = NUM_LAYERS * 4 * (2 * HIDDEN + HIDDEN + KV)  # q_proj and v_proj at rank 4
    directory.arena_elements = needed - 1

    with pytest.raises(AdapterTooLargeError, match=f"{needed} weights.*raise adapter_arena_bytes"):
        await directory.create("a", packages / "a")

    assert directory.num_adapters == 0
    assert not any((tmp_path / "store").glob("*/*"))
    directory.arena_elements = needed
    await directory.create("a", packages / "a")
