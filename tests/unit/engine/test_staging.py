from __future__ import annotations

import torch

from loraplex_server.engine.gpu_step_inputs import StepShape
from loraplex_server.engine.staging import Staging, StagingLayout

FIELDS = {
    "a": ((3,), torch.int32),
    "b": ((2, 5), torch.int64),
    "none": ((0, 4), torch.int32),
    "c": ((1,), torch.float32),
}


def test_what_is_written_on_the_host_is_read_on_the_device_field_by_field() -> None:
    layout = StagingLayout(FIELDS)
    staging = Staging(layout.nbytes, torch.device("cpu"))
    on_device = layout.device_views(staging.device_buffer)
    for value in range(1, 6):  # more often than there are host buffers
        on_host = layout.host_views(staging.begin())
        for number, view in enumerate(on_host.values()):
            view[...] = value * 10 + number
        staging.upload(layout.nbytes)

        for number, (name, (shape, dtype)) in enumerate(FIELDS.items()):
            assert torch.equal(on_device[name], torch.full(shape, value * 10 + number, dtype=dtype))


def test_a_shape_without_adapters_or_prefills_needs_no_room_for_them() -> None:
    decodes = StepShape(4, 4, 4, 0, 0, 256, 16, None)
    with_adapters = StepShape(4, 4, 4, 4, 0, 256, 16, None)

    assert decodes.layout().nbytes < with_adapters.layout().nbytes
