"""Runs scheduled batches on a GPU without waiting for it: a step is launched while the one ahead of it still runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from loraplex_server.engine.gpu_logit_changes import GpuLogitChanges
from loraplex_server.engine.gpu_logprobs import HostLogprobs, take_logprobs
from loraplex_server.engine.gpu_step_inputs import StepInputs, StepPlan, StepShape, aligned
from loraplex_server.engine.graph_shapes import GraphShapes
from loraplex_server.engine.host_copy import to_host
from loraplex_server.engine.messages import MAX_TOP_LOGPROBS
from loraplex_server.engine.pinned_reads import PinnedReads
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch
from loraplex_server.engine.single_rows import as_single_rows, is_worth_single_rows
from loraplex_server.engine.staging import Staging
from loraplex_server.engine.step_graphs import StepGraphs
from loraplex_server.kernels.lora_tables import LoraTables
from loraplex_server.kernels.sampling import sample
from loraplex_server.model.gpu_decoder import GpuDecoder
from loraplex_server.model.gpu_workspace import GpuWorkspace

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

# That a step brings at once: 43,000 different tokens of a prompt, or 300 biases of 145 rows.
_RESERVED_WORDS = 2**17


class GpuStep:
    """A step in flight. What it gives is copied to the host before its end, so that reading it never waits for more."""

    def __init__(
        self,
        host_tokens: Tensor,
        logprobs: list[HostLogprobs],
        start: torch.cuda.Event | None,
        end: torch.cuda.Event | None,
        previous_end: torch.cuda.Event | None,
        late_seconds: float,
    ) -> None:
        """`late_seconds`: that the device may have waited at `start` for its graph to be launched."""
        self._host_tokens = host_tokens
        self._logprobs = logprobs
        self._start, self._end, self._previous_end = start, end, previous_end
        self._late_seconds = late_seconds

    def tokens(self) -> list[SampledToken]:
        """Wait for the device."""
        if self._end is not None:
            self._end.synchronize()
        ids: list[int] = self._host_tokens.tolist()
        logprobs = dict(entry for part in self._logprobs for entry in part.read(ids))
        return [SampledToken(token_id, logprobs.get(row)) for row, token_id in enumerate(ids)]

    @property
    def is_over(self) -> bool:
        """Whether the device is done with it."""
        return self._end is None or bool(self._end.query())  # type: ignore[no-untyped-call]

    @property
    def device_seconds(self) -> float:
        """From where the pass is launched, its inputs there, until its tokens are copied; known once `tokens` returned.

        So the device's waiting for a host that launches the pass kernel by kernel counts as work.
        """
        if self._start is None or self._end is None:
            return 0.0
        return max(0.0, float(self._start.elapsed_time(self._end)) / 1e3 - self._late_seconds)

    @property
    def idle_seconds(self) -> float | None:
        """From the end of the step before until this pass is launched, inputs included; None unless a continuation.

        Rather too much than too little: a launch that the device may have waited for counts whole.
        """
        if self._start is None or self._previous_end is None:
            return None
        return max(0.0, float(self._previous_end.elapsed_time(self._start)) / 1e3) + self._late_seconds


@dataclass(frozen=True, slots=True)
class _Launched:
    """A pass on the device's queue."""

    inputs: StepInputs
    logits: Tensor
    start: torch.cuda.Event | None
    late_seconds: float  # as `GpuStep` has it


class GpuRunner:
    """ScheduledBatch -> step in flight. Owns KV tensors, buffers and graphs; takes no locks."""

    overlaps = True

    def __init__(
        self,
        decoder: GpuDecoder,
        kv_cache: list[Tensor],
        workspace: GpuWorkspace,
        tables: LoraTables,
        changes: GpuLogitChanges,
        shapes: GraphShapes,
        reads: PinnedReads,
    ) -> None:
        """`shapes`: to be captured; the largest step is among what they are made for."""
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._workspace = workspace
        self._tables = tables
        self._changes = changes
        self._device = kv_cache[0].device
        self._is_cuda = self._device.type == "cuda"
        self._block_size = kv_cache[0].shape[1]
        self._shapes = shapes
        self._reads = reads
        self._graphs = StepGraphs()
        self._staging = Staging(self._largest_shape().layout().nbytes, self._device)
        self._sampled = torch.zeros(shapes.max_running, dtype=torch.int64, device=self._device)
        self._newest_row_of: dict[int, int] = {}  # of the step launched last: sequence id -> row sampled
        self._last_end: torch.cuda.Event | None = None

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def warm_up(self, on_progress: Progress = lambda done, total: None) -> None:
        """Compile every kernel and capture every graph, so that no live request meets a compiler."""
        if self._is_cuda:
            self._reads.reserve(_RESERVED_WORDS)
            self._launch_everything(on_progress)
            torch.cuda.synchronize()

    @torch.inference_mode()
    def _launch_everything(self, on_progress: Progress) -> None:
        self._staging.begin()[:] = 0
        self._staging.upload(self._largest_shape().layout().nbytes)  # compiles what reads the inputs
        shapes, prefills = self._shapes.all_shapes(), list(self._prefill_shapes())
        total = len(shapes) + len(prefills)
        for done, shape in enumerate(shapes):
            on_progress(done, total)
            self._graphs.capture(StepInputs(shape, self._staging, self._tables), self._forward)
        for done, shape in enumerate(prefills, start=len(shapes)):
            on_progress(done, total)
            self._compile(shape)
        self._warm_up_requests()
        on_progress(total, total)

    def _compile(self, shape: StepShape) -> None:
        """What a step of this shape launches without a graph, by launching it on inputs of zeros."""
        inputs = StepInputs(shape, self._staging, self._tables)
        logits = self._forward(inputs)
        for sampling in (None, inputs.sampling):
            sample(logits[: shape.sequences], sampling, self._workspace.sampling, self._sampled)

    def _warm_up_requests(self) -> None:
        """What single requests ask for."""
        logits = self._workspace.logits
        self._changes.warm_up(logits, self._sampled)
        for wanted in ([0], [MAX_TOP_LOGPROBS], [MAX_TOP_LOGPROBS] * min(8, self._shapes.max_running)):
            take_logprobs(wanted, logits, self._sampled, self._reads.bring)

    def _prefill_shapes(self) -> Iterator[StepShape]:
        """Every way in which steps with prefills too long for a graph can differ for a compiler."""
        max_rows, contexts = self._shapes.max_rows, self._shapes.decodes.contexts
        if max_rows <= self._shapes.mixed.max_rows:
            return
        for decodes in range(min(3, self._shapes.max_running)):
            for has_adapters, sole_slot in ((False, None), (True, None), (True, 0)):
                for max_context in contexts if decodes else contexts[:1]:
                    yield StepShape(
                        rows=max_rows,
                        decodes=decodes,
                        sequences=decodes + 1,
                        row_tiles=decodes + 1 if has_adapters else 0,
                        query_tiles=1,
                        max_context=max_context,
                        max_blocks=aligned(-(-max_context // self._block_size)),
                        logit_rows=self._logit_rows(decodes + 1),
                        sole_slot=sole_slot,
                    )

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch, *, is_continuation: bool = False) -> GpuStep:
        """Put a step on the device's queue. `is_continuation`: the step before is still in flight."""
        plan = self._plan(batch)
        launched = self._run(plan)
        inputs, logits = launched.inputs, launched.logits
        logprobs: list[HostLogprobs] = []
        if plan.sampled:
            self._choose(plan, inputs, logits[: len(plan.sampled)])
            wanted = [row.sequence.sampling.top_logprobs for row in plan.sampled]
            logprobs = take_logprobs(wanted, logits, self._sampled, self._reads.bring)
        self._newest_row_of = {row.sequence.sequence_id: index for index, row in enumerate(plan.sampled)}
        host_tokens = to_host(self._sampled[: len(plan.sampled)])
        end = self._mark()
        previous, self._last_end = (self._last_end if is_continuation else None), end
        return GpuStep(host_tokens, logprobs, launched.start, end, previous, launched.late_seconds)

    def _plan(self, batch: ScheduledBatch) -> StepPlan:
        """The batch as it stands, or in single rows where a decode graph is there for them."""
        if (
            len(self._graphs)
            and batch.prefills
            and is_worth_single_rows(batch, self._shapes.decodes.max_rows)
        ):
            batch = as_single_rows(batch)
        return StepPlan(batch, self._block_size)

    def _run(self, plan: StepPlan) -> _Launched:
        """One pass, a graph if one holds it, else kernel by kernel.

        It starts behind its inputs: while the host writes them, the device may have nothing to do.
        """
        shape = self._graph_shape(plan)
        if shape is not None:
            inputs = self._graphs.inputs(shape)
        else:
            inputs = StepInputs(self._exact_shape(plan), self._staging, self._tables)
        inputs.write(plan, self._newest_row_of)
        start = self._mark()
        if shape is None:
            return _Launched(inputs, self._forward(inputs), start, 0.0)
        before = perf_counter()
        logits = self._graphs.replay(shape)
        is_late = start is not None and start.query()  # type: ignore[no-untyped-call]
        return _Launched(inputs, logits, start, perf_counter() - before if is_late else 0.0)

    def _graph_shape(self, plan: StepPlan) -> StepShape | None:
        if not len(self._graphs):
            return None
        return self._shapes.shape_of(plan)

    def _forward(self, inputs: StepInputs) -> Tensor:
        return self._decoder.forward(inputs.batch, self._workspace, self._kv_cache, self._sampled)

    def _choose(self, plan: StepPlan, inputs: StepInputs, logits: Tensor) -> None:
        """Change the logits of the rows that ask for it, then sample all rows into `_sampled`."""
        self._changes.apply(logits, plan.sampled)
        sample(
            logits,
            None if plan.is_greedy else inputs.sampling,
            self._workspace.sampling,
            self._sampled,
        )
        self._changes.count(self._sampled)

    def _exact_shape(self, plan: StepPlan) -> StepShape:
        max_context = self._shapes.decodes.context_of(plan)
        return StepShape(
            rows=aligned(plan.num_rows),
            decodes=len(plan.decodes),
            sequences=len(plan.decodes) + len(plan.prefills),
            row_tiles=len(plan.row_tiles),
            query_tiles=len(plan.query_tiles),
            max_context=max_context,
            max_blocks=aligned(-(-max(plan.max_stop, max_context) // self._block_size)),
            logit_rows=self._logit_rows(len(plan.sampled)),
            sole_slot=plan.sole_slot,
        )

    def _logit_rows(self, sampled: int) -> int:
        """Places for so many rows whose logits are wanted, few different numbers of them; row 0 fills the others."""
        return min(aligned(sampled), self._shapes.decodes.max_rows)

    def _largest_shape(self) -> StepShape:
        shapes = self._shapes
        return StepShape(
            rows=shapes.max_rows,
            decodes=shapes.decodes.max_rows,
            sequences=shapes.decodes.max_rows,
            row_tiles=shapes.max_rows,
            query_tiles=shapes.max_rows,
            max_context=shapes.max_context,
            max_blocks=aligned(-(-shapes.max_context // self._block_size)),
            logit_rows=shapes.decodes.max_rows,
        )

    def _mark(self) -> torch.cuda.Event | None:
        """A moment on the device's clock."""
        if not self._is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
