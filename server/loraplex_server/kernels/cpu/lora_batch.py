"""The adapters of one batch on a CPU: decode rows through the kernel, prefill chunks through torch's products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loraplex_server.kernels.cpu.launch import address_of
from loraplex_server.kernels.cpu.lora import RECORD_FIELDS, lora
from loraplex_server.kernels.lora import LoraLayers, LoraProjection, LoraSegment, SegmentedLora

_PROJECTIONS = {"qkv": 0, "o": 1, "gate_up": 2, "down": 3}
_MAX_PARTS = 3  # modules of a projection

Records = npt.NDArray[np.int64]


class CpuLoraBatch:
    """Implements `loraplex_server.model.batch.LoraBatch`."""

    def __init__(self, segments: list[LoraSegment], num_decode_rows: int, threads: int) -> None:
        decodes = [segment for segment in segments if segment.row_stop <= num_decode_rows]
        chunks = [segment for segment in segments if segment.row_start >= num_decode_rows]
        assert len(decodes) + len(chunks) == len(segments), "a segment has decode rows and a prefill chunk"
        self._chunks = SegmentedLora(chunks) if chunks else None
        self._layers = [segment.layers for segment in decodes]  # keeps what the records point at
        self._records = _batch_records(decodes) if decodes else None
        self._num_records = len(decodes) * _MAX_PARTS
        self._threads = threads

    def add(self, layer: int, projection: str, x: Tensor, y: Tensor) -> None:
        if self._records is not None:
            records = self._records[layer, _PROJECTIONS[projection]].ctypes.data
            lora(
                address_of(x),
                x.shape[1],
                address_of(y),
                y.shape[1],
                records,
                self._num_records,
                self._threads,
            )
        if self._chunks is not None:
            self._chunks.add(layer, projection, x, y)


def _batch_records(segments: list[LoraSegment]) -> Records:
    """[layers, projections, segments · parts, RECORD_FIELDS]."""
    records = np.stack([_adapter_records(segment.layers) for segment in segments], axis=2)
    for index, segment in enumerate(segments):
        records[:, :, index, :, 0] = segment.row_start
        records[:, :, index, :, 1] = segment.row_stop
    layers, projections = records.shape[:2]
    return records.reshape(layers, projections, -1, RECORD_FIELDS)


def _adapter_records(layers: LoraLayers) -> Records:
    """[layers, projections, parts, RECORD_FIELDS] of one adapter, rows left open; computed once."""
    records: Records | None = layers.records
    if records is None:
        records = np.zeros((len(layers), len(_PROJECTIONS), _MAX_PARTS, RECORD_FIELDS), dtype=np.int64)
        for layer, projections in enumerate(layers):
            for name, weights in projections.items():
                _fill(records[layer, _PROJECTIONS[name]], weights)
        layers.records = records
    return records


def _fill(records: Records, weights: LoraProjection) -> None:
    for record, part in zip(records, weights.parts, strict=False):
        record[2:] = (
            address_of(weights.a),
            weights.a.shape[1],
            part.rank_start,
            part.rank_stop - part.rank_start,
            address_of(part.b),
            part.column_start,
            part.column_stop - part.column_start,
        )
