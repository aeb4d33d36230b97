"""The aiohttp application: routes, authorisation, the counting of answers, and /control/*."""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tests.provider.batches import BatchRoutes, BatchStore
from tests.provider.chat import DROPPED, ChatRoutes
from tests.provider.config import ServerConfig
from tests.provider.faults import INVALID_API_KEY, HttpError
from tests.provider.files import FileRoutes, FileStore
from tests.provider.state import Provider
from tests.provider.wire import ApiFailure, error_answer, json_answer

_MAX_BODY = 1 << 30


def _authorised(request: web.Request, config: ServerConfig) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    key = config.api_key.get_secret_value()
    return scheme.lower() == "bearer" and hmac.compare_digest(
        token.strip().encode("utf-8", "surrogateescape"), key.encode()
    )


def _gate(provider: Provider) -> Middleware:
    """Middleware of the paid API: check the key, turn failures into API errors, count."""

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        provider.requests += 1
        response: web.StreamResponse
        try:
            if _authorised(request, provider.config):
                response = await handler(request)
            else:
                response = error_answer(INVALID_API_KEY)
        except ApiFailure as failure:
            response = error_answer(failure.error, failure.headers)
        except web.HTTPException as failure:
            message = f"Invalid URL ({request.method} {request.path})"
            error = HttpError(failure.status, None, "invalid_request_error", message)
            response = error_answer(error)
        except Exception:  # a defect of the provider itself: tests look that there is none
            provider.by_status["crashed"] += 1
            raise
        dropped = response.status == DROPPED
        provider.by_status["dropped" if dropped else str(response.status)] += 1
        return response

    return gate


def make_app(config: ServerConfig) -> web.Application:
    """The application of one simulated provider; /control/ needs no key."""
    provider, files = Provider(config), FileStore()
    store = BatchStore(provider, files)
    chat, file = ChatRoutes(provider), FileRoutes(provider, files)
    batch = BatchRoutes(provider, files, store)

    async def stats(_request: web.Request) -> web.Response:
        counts = {"uploads": files.uploads, "batch_creations": store.creations}
        return json_answer({**provider.stats(), **counts})

    async def bills(_request: web.Request) -> web.Response:
        return json_answer({"bills": [asdict(bill) for bill in provider.bills.rows]})

    async def reset(_request: web.Request) -> web.Response:
        for part in (store, files, provider):
            part.reset()
        return json_answer({"ok": True})

    async def configure(request: web.Request) -> web.Response:
        try:
            provider.reconfigure(json.loads(await request.read()))
        except (ValueError, OSError) as error:  # pydantic's are ValueErrors too
            return json_answer({"error": {"message": str(error)}}, status=400)
        return json_answer(provider.config.public())

    app = web.Application(middlewares=[_gate(provider)], client_max_size=_MAX_BODY)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.complete),
            web.post("/v1/files", file.upload),
            web.get("/v1/files/{id}/content", file.content),
            web.delete("/v1/files/{id}", file.delete),
            web.post("/v1/batches", batch.create),
            web.get("/v1/batches", batch.list),
            web.get("/v1/batches/{id}", batch.retrieve),
            web.post("/v1/batches/{id}/cancel", batch.cancel),
            web.get("/control/stats", stats),
            web.get("/control/bills", bills),
            web.post("/control/reset", reset),
            web.patch("/control/config", configure),
            web.get("/control/batches", batch.all),
            web.post("/control/batches/{id}/advance", batch.advance),
        ]
    )
    return app
