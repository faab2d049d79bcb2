"""The published gRPC service config: which failures any client may retry by itself, and how."""

from __future__ import annotations

import json
from typing import Any

MAX_ATTEMPTS = 4
INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
BACKOFF_MULTIPLIER = 2

SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": "loraplex.v1.InferenceService"},
                {"service": "loraplex.v1.AdapterService"},
                {"service": "loraplex.v1.OpsService"},
                {"service": "loraplex.v1.TrainingService"},
            ],
            "retryPolicy": {
                "maxAttempts": MAX_ATTEMPTS,
                "initialBackoff": f"{INITIAL_BACKOFF_S:g}s",
                "maxBackoff": f"{MAX_BACKOFF_S:g}s",
                "backoffMultiplier": BACKOFF_MULTIPLIER,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        # Without a policy. gRPC would send a broken upload again from its first byte, which the server has already, and
        # begin a broken watch again where it began.
        {
            "name": [
                {"service": "loraplex.v1.AdapterService", "method": "UploadAdapter"},
                {"service": "loraplex.v1.AdapterService", "method": "WatchAdapters"},
                {"service": "loraplex.v1.TrainingService", "method": "StreamTrainingEvents"},
            ]
        },
    ],
    # Each failure costs one token, each success gives back a tenth; below half of them nothing is retried.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
"""UNAVAILABLE only. RESOURCE_EXHAUSTED is not in it: it is retried when the server says after how long."""

MAX_MESSAGE_BYTES = 8 * 2**20


def channel_options() -> list[tuple[str, Any]]:
    """Options of a channel to a Loraplex server."""
    return [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A server that is starting should be found soon after it listens; grpc's own limit is two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
