"""The messages of `vllm.Inference` that a load test needs, made at run time in a pool of their own.

Only names, numbers and types of the public interface are stated here; fields that are left out are skipped by protobuf.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
    "bool": _Field.TYPE_BOOL,
}
GENERATE_STREAM = "/vllm.Inference/GenerateStream"

# (number, name, type); "?" behind a type: explicit presence; "*": repeated; a type with a capital is a message.
_MESSAGES: dict[str, list[tuple[int, str, str]]] = {
    "TokenIds": [(1, "ids", "uint32*")],
    "RandomSampling": [
        (1, "num_sequences", "uint32"),
        (2, "top_k", "uint32?"),
        (3, "top_p", "float?"),
        (4, "min_p", "float?"),
        (5, "seed", "int64?"),
    ],
    "StoppingCriteria": [
        (1, "max_new_tokens", "uint32"),
        (2, "min_new_tokens", "uint32"),
        (6, "ignore_eos", "bool"),
    ],
    "GenerateRequest": [
        (1, "request_id", "string"),
        (2, "model", "string"),
        (3, "text", "string?"),
        (4, "token_ids", "TokenIds"),
        (5, "temperature", "float?"),
        (6, "sampling", "RandomSampling"),
        (8, "stopping", "StoppingCriteria"),
        (15, "lora_name", "string"),
    ],
    "PromptInfo": [(1, "num_prompt_tokens", "uint32")],
    "FinishInfo": [(1, "num_output_tokens", "uint32")],
    "SequenceOutput": [
        (1, "index", "uint32"),
        (2, "text", "string"),
        (3, "num_tokens", "uint32"),
        (8, "finish_info", "FinishInfo"),
    ],
    "GenerateResponse": [(1, "prompt_info", "PromptInfo"), (2, "outputs", "SequenceOutput")],
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="loraplex_loadtest/vllm_inference.proto", package="vllm", syntax="proto3"
    )
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, name, kind in fields:
            added = message.field.add(number=number, name=name, label=_Field.LABEL_OPTIONAL)
            plain = kind.rstrip("?*")
            if plain in _TYPES:
                added.type = _TYPES[plain]
            else:
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".vllm.{plain}"
            if kind.endswith("*"):
                added.label = _Field.LABEL_REPEATED
            if kind.endswith("?"):  # proto3 writes presence as a oneof of one
                added.proto3_optional = True
                added.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{name}")
    return file


def message_classes() -> dict[str, Any]:
    """Message classes by name. A pool of their own: another package may declare the same names."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"vllm.{name}"))
        for name in _MESSAGES
    }
