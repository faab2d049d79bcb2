"""An engine's parts on a GPU: plans the memory, loads the base, allocates everything, captures the graphs."""

from __future__ import annotations

from dataclasses import replace

import psutil
import torch

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.adapter_image import layout_name
from loraplex_server.engine.backend import Backend, Progress, element_type
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.cores import usable_cores
from loraplex_server.engine.gpu_adapters import GpuAdapterArena, GpuAdapterLayout
from loraplex_server.engine.gpu_logit_changes import GpuLogitChanges
from loraplex_server.engine.gpu_runner import GpuRunner
from loraplex_server.engine.gpu_step_inputs import aligned
from loraplex_server.engine.graph_shapes import GraphShapes
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.kv_cache import allocate_kv_cache, block_bytes
from loraplex_server.engine.memory_plan import plan_memory
from loraplex_server.engine.pinned_reads import PinnedReads
from loraplex_server.kernels.cuda_driver import prefer_shared_memory
from loraplex_server.kernels.product_kernels import compile_products, has_cuda_products
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.footprint import decoder_bytes, scratch_bytes
from loraplex_server.model.gpu_decoder import projection_shapes
from loraplex_server.model.gpu_loader import build_gpu_decoder
from loraplex_server.model.gpu_workspace import GpuWorkspace
from loraplex_server.model.loader import context_tokens, open_checkpoint
from loraplex_server.model.numerics import Numerics
from loraplex_server.model.tensor_names import parameter_count
from loraplex_server.model.weight_source import WeightSource

_BATCHED_TOKENS = 4096


def load_gpu_backend(
    config: EngineConfig, numerics: Numerics, spec: BaseSpec, on_progress: Progress
) -> Backend:
    """From the base's folder. Raises BaseModelError."""
    decoder_config = DecoderConfig.from_folder(config.base_path)
    source = open_checkpoint(config.base_path, decoder_config)
    return build_gpu_backend(source, decoder_config, config, numerics, spec, on_progress)


def build_gpu_backend(
    source: WeightSource,
    decoder_config: DecoderConfig,
    config: EngineConfig,
    numerics: Numerics,
    spec: BaseSpec,
    on_progress: Progress,
) -> Backend:
    """Raises InsufficientMemoryError before anything is allocated that would not fit."""
    if numerics.device.type == "cuda":  # kernels are kept by device, so it needs its number
        numerics = replace(numerics, device=torch.device("cuda", torch.cuda.current_device()))
    device, dtype = numerics.device, numerics.compute_dtype
    context = context_tokens(decoder_config, config.max_context_tokens)
    batched_tokens = config.max_batched_tokens or max(_BATCHED_TOKENS, config.max_running)
    max_rows = aligned(batched_tokens)
    shapes = GraphShapes(
        max_rows=max_rows,
        max_running=config.max_running,
        max_context=context,
        block_size=config.block_size,
    )

    def workspace_on(place: torch.device) -> GpuWorkspace:
        return GpuWorkspace(
            decoder_config,
            max_rows=max_rows,
            max_decodes=shapes.decodes.max_rows,
            max_running=config.max_running,
            max_context=context,
            max_lora_rank=config.max_lora_rank,
            dtype=dtype,
            device=place,
        )

    kv_bytes = block_bytes(decoder_config, config.block_size, numerics.kv_dtype)
    is_cuda = device.type == "cuda"
    sizes = config.residency_sizes(
        is_gpu=is_cuda, memory_bytes=psutil.virtual_memory().total, num_cores=usable_cores()
    )
    plan = plan_memory(
        free=torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available,
        share=config.gpu_memory_share,
        base=decoder_bytes(decoder_config, numerics, int8_head=config.int8_head),
        arena=config.adapter_arena_bytes,
        workspace=workspace_on(torch.device("meta")).nbytes + scratch_bytes(decoder_config, numerics),
        num_graphs=len(shapes.all_shapes()) if is_cuda else 0,
        kv_cache=config.kv_cache_bytes,
        least_kv_cache=-(-context // config.block_size) * kv_bytes,
        host_cache=sizes.host_cache_bytes,
    )
    if has_cuda_products(device):
        prefer_shared_memory(device)
        _compile_products(decoder_config, numerics, on_progress, int8_head=config.int8_head)
    decoder, weight_bytes = build_gpu_decoder(
        source,
        decoder_config,
        numerics,
        context,
        int8_head=config.int8_head,
        on_layer=lambda done, total: on_progress("load", done, total),
    )
    layout = GpuAdapterLayout(spec)
    arena = GpuAdapterArena(
        config.adapter_arena_bytes // dtype.itemsize, config.adapter_slots, dtype, device, layout, spec
    )
    num_blocks = plan.kv_cache // kv_bytes
    workspace = workspace_on(device)
    reads = PinnedReads()
    runner = GpuRunner(
        decoder,
        allocate_kv_cache(decoder_config, num_blocks, config.block_size, numerics.kv_dtype, device),
        workspace,
        arena.tables,
        GpuLogitChanges(workspace.token_counts, decoder_config.eos_token_ids, reads),
        shapes,
        reads,
    )
    return Backend(
        config=decoder_config,
        runner=runner,
        adapter_memory=arena,
        adapter_cache=HostCache(sizes.host_cache_bytes // dtype.itemsize, dtype, pin_memory=is_cuda),
        adapter_layout=layout_name("gpu", element_type(dtype), spec),
        residency_sizes=sizes,
        pack_adapter=lambda weights: layout.pack(weights, dtype),
        num_blocks=num_blocks,
        max_batched_tokens=batched_tokens,
        max_context_tokens=context,
        quantization=numerics.quantization,
        quantization_reason=numerics.reason,
        device_type=device.type,
        weight_bytes=weight_bytes,
        parameter_count=parameter_count(decoder_config),
        memory_plan=str(plan),
        padded_rows=shapes.decodes.padded_rows,
    )


def _compile_products(
    config: DecoderConfig, numerics: Numerics, on_progress: Progress, *, int8_head: bool
) -> None:
    """All at once, before the first of them is wanted."""
    shapes = [(sum(shape.widths), shape.in_features) for shape in projection_shapes(config).values()]
    is_int8 = numerics.quantization == "int8"
    head = [(config.vocab_size, config.hidden_size)] if is_int8 or int8_head else []
    nf4_outputs = [outputs for outputs, _ in shapes] if numerics.quantization == "nf4" else []
    compile_products(
        nf4_outputs,
        [*(shapes if is_int8 else []), *head],
        numerics.device,
        lambda done, total: on_progress("compile", done, total),
    )
