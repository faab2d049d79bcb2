"""What an engine will hold, counted before anything is allocated: all of it on a GPU, a context on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_server.errors import BaseModelError

_MIB = 2**20
_CONTEXT_BYTES = 600 * _MIB  # CUDA context, libraries' workspaces, kernels
_GRAPH_BYTES = 4 * _MIB  # of one captured step; 3.4 MiB measured at the shape of Llama-3.1-8B


class InsufficientMemoryError(BaseModelError):
    """The device cannot hold what was asked for; the message has the numbers."""

    reason = "INSUFFICIENT_MEMORY"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each part."""

    base: int
    arena: int
    workspace: int
    graphs: int
    kv_cache: int
    free: int  # of the device before
    host_cache: int = 0  # of adapters, pinned memory of the host

    @property
    def total(self) -> int:
        return self.base + self.arena + self.workspace + self.graphs + self.kv_cache + _CONTEXT_BYTES

    def __str__(self) -> str:
        parts = {
            "base": self.base,
            "adapter arena": self.arena,
            "workspace": self.workspace,
            "graphs": self.graphs,
            "key-value cache": self.kv_cache,
            "context": _CONTEXT_BYTES,
        }
        listed = ", ".join(f"{name} {size / _MIB:,.0f} MiB" for name, size in parts.items())
        together = f"together {self.total / _MIB:,.0f} of {self.free / _MIB:,.0f} MiB free"
        return f"{listed}; {together}; on the host an adapter cache of {self.host_cache / _MIB:,.0f} MiB"


def check_holds_context(kv_cache: int, block_bytes: int, *, block_size: int, max_context_tokens: int) -> None:
    """Raises InsufficientMemoryError unless one sequence of the longest context fits a key-value cache.

    kv_cache     bytes
    block_bytes  of one block of `block_size` tokens
    """
    needed = -(-max_context_tokens // block_size) * block_bytes
    if kv_cache < needed:
        raise InsufficientMemoryError(
            f"a key-value cache of {kv_cache:,} bytes holds {kv_cache // block_bytes * block_size} tokens, and one "
            f"sequence of max_context_tokens={max_context_tokens} takes {needed:,} bytes. Raise kv_cache_bytes to "
            f"{needed}, or lower max_context_tokens"
        )


def plan_memory(
    *,
    free: int,
    share: float,
    base: int,
    arena: int,
    workspace: int,
    num_graphs: int,
    kv_cache: int | None,
    least_kv_cache: int,
    host_cache: int = 0,
) -> MemoryPlan:
    """Divide the device's memory.

    free            bytes that nobody uses
    share           of them that may be used, in (0, 1]
    kv_cache        None takes what the rest leaves
    least_kv_cache  bytes that one sequence of the longest context needs
    host_cache      bytes of the host, only to be listed

    Raises InsufficientMemoryError when the parts do not fit, or leave less than `least_kv_cache`.
    """
    graphs = num_graphs * _GRAPH_BYTES
    budget = int(free * share)
    rest = budget - base - arena - workspace - graphs - _CONTEXT_BYTES
    kv_cache = max(rest, 0) if kv_cache is None else kv_cache
    plan = MemoryPlan(base, arena, workspace, graphs, kv_cache, free, host_cache)
    if plan.total > budget or plan.kv_cache < least_kv_cache:
        raise InsufficientMemoryError(
            f"the device cannot hold this engine: {plan}, of which {share:.0%} may be used; the longest context "
            f"needs a key-value cache of {least_kv_cache / _MIB:,.0f} MiB. Choose a smaller quantization or base, or "
            "lower kv_cache_bytes, adapter_arena_bytes, max_batched_tokens, max_running or max_context_tokens"
        )
    return plan
