"""An engine's parts on a CPU: loads the base, allocates everything."""

from __future__ import annotations

import psutil
import torch

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.adapter_image import layout_name
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout
from loraplex_server.engine.backend import Backend, Progress, element_type
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.cores import usable_cores
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.kv_cache import allocate_kv_cache, block_bytes
from loraplex_server.engine.memory_plan import check_holds_context
from loraplex_server.engine.model_runner import ModelRunner
from loraplex_server.engine.sampler import Sampler
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.loader import context_tokens, load_decoder
from loraplex_server.model.numerics import Numerics

_BATCHED_TOKENS = 512
_KV_CACHE_BYTES = 512 * 2**20


def load_cpu_backend(
    config: EngineConfig, numerics: Numerics, spec: BaseSpec, on_progress: Progress
) -> Backend:
    """Raises BaseModelError: the base cannot be read, is none that can be served, or outgrows the key-value cache."""
    if config.must_hold_context:
        _check_kv_cache(config, numerics)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    loaded = load_decoder(
        config.base_path,
        numerics.quantization,
        config.max_context_tokens,
        lambda done, total: on_progress("load", done, total),
    )
    decoder = loaded.decoder
    kv_bytes = block_bytes(decoder.config, config.block_size, loaded.kv_dtype)
    num_blocks = max(1, _kv_cache_bytes(config) // kv_bytes)
    kv_cache = allocate_kv_cache(
        decoder.config, num_blocks, config.block_size, loaded.kv_dtype, loaded.device
    )
    layout = AdapterLayout(spec)
    dtype = loaded.compute_dtype
    arena = AdapterArena(config.adapter_arena_bytes // dtype.itemsize, dtype, layout)
    sizes = config.residency_sizes(
        is_gpu=False, memory_bytes=psutil.virtual_memory().total, num_cores=usable_cores()
    )
    sampler = Sampler(decoder.config.eos_token_ids, decoder.ops.argmax_rows)
    return Backend(
        config=decoder.config,
        runner=ModelRunner(decoder, kv_cache, arena, sampler, loaded.device),
        adapter_memory=arena,
        adapter_cache=HostCache(sizes.host_cache_bytes // dtype.itemsize, dtype, pin_memory=False),
        adapter_layout=layout_name("cpu", element_type(dtype), spec),
        residency_sizes=sizes,
        pack_adapter=lambda weights: layout.pack(weights, dtype),
        num_blocks=num_blocks,
        max_batched_tokens=config.max_batched_tokens or max(_BATCHED_TOKENS, config.max_running),
        max_context_tokens=loaded.max_context_tokens,
        quantization=loaded.quantization,
        quantization_reason=numerics.reason,
        device_type=loaded.device.type,
        weight_bytes=loaded.weight_bytes,
        parameter_count=loaded.parameter_count,
        memory_plan="",
    )


def _kv_cache_bytes(config: EngineConfig) -> int:
    return config.kv_cache_bytes or _KV_CACHE_BYTES


def _check_kv_cache(config: EngineConfig, numerics: Numerics) -> None:
    """Before the base is read, which can take minutes. Raises InsufficientMemoryError."""
    decoder = DecoderConfig.from_folder(config.base_path)
    check_holds_context(
        _kv_cache_bytes(config),
        block_bytes(decoder, config.block_size, numerics.kv_dtype),
        block_size=config.block_size,
        max_context_tokens=context_tokens(decoder, config.max_context_tokens),
    )
