"""HTTP answers, good and broken, as they go over the wire."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from typing import Any

from aiohttp import web

from tests.provider.faults import HttpError

JSON_TYPE = "application/json"
DROPPED = 499
"""Status of answers that were never sent."""


def encode(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def json_answer(
    value: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(body=encode(value), status=status, headers=headers, content_type=JSON_TYPE)


def error_answer(error: HttpError, headers: dict[str, str] | None = None) -> web.Response:
    return json_answer(error.body(), status=error.status, headers=headers)


def wait_headers(seconds: float) -> dict[str, str]:
    """Both Retry-After headers; none when waiting cannot help."""
    if math.isinf(seconds):
        return {}
    ms = max(1, math.ceil(seconds * 1000))
    return {"retry-after": str(math.ceil(ms / 1000)), "retry-after-ms": str(ms)}


def client_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def hang(request: web.Request) -> web.Response:
    while not client_left(request):
        await asyncio.sleep(0.02)
    return web.Response(status=DROPPED)


def reset_connection(request: web.Request) -> web.Response:
    """Close with a TCP reset instead of an orderly end."""
    if (transport := request.transport) is not None:
        raw: Any = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response(status=DROPPED)


def send_and_close(request: web.Request, body: bytes, sent: bytes) -> web.Response:
    """Announce a whole body, send this much of it, and close the connection."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    transport = request.transport
    if isinstance(transport, asyncio.Transport):
        transport.write(head.encode() + sent)
        transport.close()
    return web.Response(status=DROPPED)
