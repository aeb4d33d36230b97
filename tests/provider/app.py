"""The aiohttp application: routes, authorisation, the counting of answers, and /control/*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tests.provider.batches import ENDPOINT
from tests.provider.chat import ChatRoute
from tests.provider.config import ServerConfig
from tests.provider.faults import HTTP_ERRORS, AnswerLost, ApiFailure, bad_request
from tests.provider.state import Provider
from tests.provider.wire import DROPPED, error_answer, json_answer, reset_connection


def _gate(provider: Provider) -> Middleware:
    """Middleware of the paid API: check the key, turn failures into API errors, count."""

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {provider.config.api_key}":
            return error_answer(HTTP_ERRORS["invalid_api_key"])
        try:
            return await handler(request)
        except AnswerLost:
            return reset_connection(request)
        except ApiFailure as failure:
            return error_answer(failure.error, failure.headers)
        except Exception:  # a defect of the provider itself: tests look that there is none
            provider.by_status["crashed"] += 1
            raise

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        provider.requests += 1
        response = await answer(request, handler)
        dropped = response.status == DROPPED
        provider.by_status["dropped" if dropped else str(response.status)] += 1
        return response

    return gate


class FileRoutes:
    """/v1/files and /v1/batches."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def upload(self, request: web.Request) -> web.Response:
        """POST /v1/files (multipart: purpose, file)."""
        form = await request.post()
        file = form.get("file")
        if not isinstance(file, web.FileField) or form.get("purpose") != "batch":
            raise bad_request("A 'file' with purpose 'batch' is required.", "file")
        file_id = self._provider.store.upload(file.file.read())
        return json_answer({"id": file_id, "object": "file", "purpose": "batch"})

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self._provider.store.content(request.match_info["id"]))

    async def delete(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        self._provider.store.delete(file_id)
        return json_answer({"id": file_id, "object": "file", "deleted": True})

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        for name, wanted in (("endpoint", ENDPOINT), ("completion_window", "24h")):
            if body.get(name) != wanted:
                raise bad_request(f"{name} must be {wanted}.", name)
        store = self._provider.store
        return json_answer(store.create(str(body.get("input_file_id")), body.get("metadata")))

    async def retrieve(self, request: web.Request) -> web.Response:
        return json_answer(self._provider.store.get(request.match_info["id"]).body())

    async def list(self, request: web.Request) -> web.Response:
        """GET /v1/batches, newest first; `after`, `limit`."""
        after, limit = request.query.get("after"), int(request.query.get("limit", "20"))
        data, more = self._provider.store.page(after, limit)
        return json_answer({"object": "list", "data": data, "has_more": more})


def _control(change: Callable[..., Any]) -> Handler:
    """A handler that calls this method with the request's body, and answers what it gives."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return json_answer(change(**(await request.json() if request.can_read_body else {})))
        except (ValueError, OSError) as error:  # pydantic's are ValueErrors too
            return json_answer({"error": {"message": str(error)}}, status=400)

    return handle


def make_app(config: ServerConfig) -> web.Application:
    """The application of one simulated provider; /control/ needs no key."""
    provider = Provider(config)
    chat, file = ChatRoute(provider), FileRoutes(provider)
    app = web.Application(middlewares=[_gate(provider)], client_max_size=1 << 30)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.complete),
            web.post("/v1/files", file.upload),
            web.get("/v1/files/{id}/content", file.content),
            web.delete("/v1/files/{id}", file.delete),
            web.post("/v1/batches", file.create),
            web.get("/v1/batches", file.list),
            web.get("/v1/batches/{id}", file.retrieve),
        ]
    )
    for name in ("stats", "bills", "reset", "clean", "configure", "batches", "advance_batch"):
        app.add_routes([web.post(f"/control/{name}", _control(getattr(provider, name)))])
    return app
