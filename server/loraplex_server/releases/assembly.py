"""Builds a server's releases from its settings."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.errors import StorageError
from loraplex_adapters.package import PackageLimits
from loraplex_adapters.registry import AdapterRegistry, PinLimits, Quota
from loraplex_adapters.registry_database import check_url
from loraplex_adapters.store import PackageStore
from loraplex_server.admission.golden import DEFAULT_PROMPTS, GoldenPrompts
from loraplex_server.admission.jobs import AdmissionBudget, AdmissionJob
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.admission.signature_trust import SignatureTrust, check_signature_settings
from loraplex_server.admission.uploads import UploadStaging
from loraplex_server.admission.url_policy import UrlPolicy
from loraplex_server.base.fingerprint import template_hash, tokenizer_hash
from loraplex_server.config import ConfigError, ServerConfig
from loraplex_server.engine.messages import EngineReady
from loraplex_server.engine_client import EngineClient
from loraplex_server.metrics import Metrics
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.golden_engine import GoldenCompleter
from loraplex_server.releases.package_sources import PackageSources
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.releases.pins import PinnedVersions
from loraplex_server.releases.registration import Registrar
from loraplex_server.releases.registry_sync import RegistrySync
from loraplex_server.releases.residency_view import ResidencyView
from loraplex_server.releases.service import Releases
from loraplex_server.releases.shadowing import Shadows
from loraplex_server.tokenizer import BaseTokenizer


def check_settings(config: ServerConfig) -> None:
    """What is wrong however long one waits, told before anything is opened. Raises ConfigError."""
    try:
        check_signature_settings(config.signature_policy, _trust(config))
        check_url(config.resolved_registry_url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except StorageError as error:
        raise ConfigError(f"registry_url: {error}") from None


def open_storage(config: ServerConfig) -> tuple[AdapterRegistry, PackageStore]:
    """The registry, brought up to date, and the packages. Blocks. Raises StorageError."""
    quota = Quota(config.max_adapters_per_tenant, config.max_bytes_per_tenant)
    registry = AdapterRegistry(config.resolved_registry_url, quota)
    return registry, PackageStore(config.store_path, _limits(config), config.package_url)


def build_releases(
    config: ServerConfig,
    storage: tuple[AdapterRegistry, PackageStore],
    spec: BaseSpec,
    base_path: Path,
    engine: EngineClient,
    ready: EngineReady,
    tokenizer: BaseTokenizer,
    metrics: Metrics,
) -> Releases:
    """Everything joined, and nothing begun. Blocks for one look into the registry."""
    registry, store = storage
    # One slot stays for the adapters that are not pinned.
    registry.pin_limits = PinLimits(ready.adapter_slots - 1, ready.adapter_arena_elements)
    packages = ServerPackages(registry, store, config.images_path, is_shared=config.package_url is not None)
    pins = PinnedVersions(registry, packages, spec.fingerprint, engine.pin_adapters)

    def retire(digest: str) -> None:
        engine.forget_adapter(digest)
        pins.package_retired(digest)

    packages.on_retired = retire
    directory = AdapterDirectory(registry, packages, spec, owns_registry=config.registry_url is None)
    admission = AdmissionPool(_budget(config), checks_signatures=config.signature_policy != "off")
    base_template = template_hash(base_path)
    job_for = partial(_job, config, spec, ready, base_template, tokenizer_hash(base_path))
    registrar = Registrar(
        directory, packages, admission, job_for, _effect_proof(config, engine, tokenizer), base_template
    )
    return Releases(
        registry=registry,
        directory=directory,
        packages=packages,
        registrar=registrar,
        admission=admission,
        sources=PackageSources(
            roots=config.adapter_roots,
            urls=UrlPolicy(frozenset(config.adapter_url_schemes), config.adapter_url_prefixes),
            max_bytes=config.max_adapter_bytes,
            idle_timeout_s=config.upload_idle_timeout_s,
            allow_private_hosts=config.allow_private_hosts,
        ),
        staging=UploadStaging(config.data_dir / "uploads", config.max_adapter_bytes),
        residency=ResidencyView(),
        pins=pins,
        sync=RegistrySync(registry, directory),
        shadows=Shadows(engine, packages, metrics, lambda: engine.stats.num_waiting * 2 > config.max_waiting),
        engine=engine,
        spec=spec,
        max_lora_rank=config.max_lora_rank,
        fetching=asyncio.Semaphore(2),
        background=[],
    )


def _limits(config: ServerConfig) -> PackageLimits:
    return PackageLimits(max_bytes=config.max_adapter_bytes, max_rank=config.max_lora_rank)


def _budget(config: ServerConfig) -> AdmissionBudget:
    return AdmissionBudget(config.admission_timeout_s, config.admission_memory_bytes, _limits(config))


def _trust(config: ServerConfig) -> SignatureTrust:
    return SignatureTrust(config.signature_keys, config.signature_certificates)


def _job(
    config: ServerConfig,
    spec: BaseSpec,
    ready: EngineReady,
    base_template: str,
    base_tokenizer: str,
    folder: Path,
    expected_digest: str,
) -> AdmissionJob:
    return AdmissionJob(
        folder=folder,
        spec=spec,
        max_rank=config.max_lora_rank,
        expected_digest=expected_digest,
        template_hash=base_template,
        tokenizer_hash=base_tokenizer,
        max_elements=ready.adapter_arena_elements,
        must_have_effect=config.golden_prompts,
        signature_policy=config.signature_policy,
        trust=_trust(config),
        layout=ready.adapter_layout,
        images_root=config.images_path,
        store_root=config.store_path,
    )


def _effect_proof(
    config: ServerConfig, engine: EngineClient, tokenizer: BaseTokenizer
) -> Callable[[str], Awaitable[None]]:
    if not config.golden_prompts:
        return _no_proof
    prompts = [tokenizer.encode(prompt) for prompt in DEFAULT_PROMPTS]
    return GoldenPrompts(GoldenCompleter(engine, secrets.token_bytes(16)), prompts).prove_effect


async def _no_proof(digest: str) -> None:
    """Golden prompts are switched off."""
