"""Builds a server's releases from its settings."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.package import PackageLimits
from loraplex_adapters.registry import AdapterRegistry, Quota
from loraplex_adapters.store import PackageStore
from loraplex_server.admission.golden import DEFAULT_PROMPTS, EffectProof
from loraplex_server.admission.pool import AdmissionBudget, AdmissionPool
from loraplex_server.admission.signing import SignatureTrust, verify_signature
from loraplex_server.admission.sources import SourceReader
from loraplex_server.admission.uploads import UploadStaging
from loraplex_server.admission.validate import AdmissionJob
from loraplex_server.base.fingerprint import template_hash, tokenizer_hash
from loraplex_server.config import ServerConfig
from loraplex_server.engine.messages import EngineReady
from loraplex_server.engine_client import EngineClient
from loraplex_server.metrics import Metrics
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.golden_engine import GoldenCompleter
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.releases.pins import PinnedVersions
from loraplex_server.releases.registration import Registrar
from loraplex_server.releases.registry_sync import RegistrySync
from loraplex_server.releases.residency_view import ResidencyView
from loraplex_server.releases.service import Releases
from loraplex_server.shadowing import Shadows
from loraplex_server.tokenizer import BaseTokenizer
