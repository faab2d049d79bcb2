"""Every method of the server, and messages that are well-formed but senseless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from loraplex.v1 import adapter_pb2, inference_pb2, ops_pb2, training_pb2

_FILES = (inference_pb2, adapter_pb2, ops_pb2, training_pb2, health_pb2, reflection_pb2)


@dataclass(frozen=True)
class Method:
    """One RPC of the server."""

    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def kind(self) -> str:
        """Name of the channel's method that makes such calls, e.g. "unary_stream"."""
        sides = (self.descriptor.client_streaming, self.descriptor.server_streaming)
        return "_".join("stream" if is_stream else "unary" for is_stream in sides)

    def __str__(self) -> str:
        return self.path


METHODS = [
    Method(method)
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]

_TEXT = st.text(max_size=20) | st.sampled_from(
    ["", "../x", "/etc/passwd", "a\0b", "x" * 300, "é" * 5000, "A" * 100_000, "\U0001f642", "loraplex.v1"]
)
_FLOATS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-45])
_BY_TYPE: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=100),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_FLOAT: _FLOATS,
    FieldDescriptor.TYPE_DOUBLE: st.floats() | _FLOATS,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 400) | st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 400) | st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 5),
}


def wild_messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of this type with any subset of fields, each with any value that its type can hold."""
    fields = {field.name: _values(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _message(descriptor, values))


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_values(key), _values(value), max_size=4)
    single = wild_messages(field.message_type) if field.message_type is not None else _BY_TYPE[field.type]
    return st.lists(single, max_size=4) if field.is_repeated else single


def _message(descriptor: Descriptor, values: dict[str, Any]) -> Message:
    message: Message = GetMessageClass(descriptor)()
    for name, value in values.items():  # of a oneof, the last one set holds
        field = descriptor.fields_by_name[name]
        if isinstance(value, dict):
            getattr(message, name).update(value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif isinstance(value, Message):
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message
