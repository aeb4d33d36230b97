"""The aiohttp application: routes, authorisation and the counting of answers."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ray_judge.demo.server.batch_routes import BatchRoutes
from ray_judge.demo.server.batches import BatchStore
from ray_judge.demo.server.chat import DROPPED, ChatRoutes
from ray_judge.demo.server.config import ServerConfig
from ray_judge.demo.server.control import ControlRoutes
from ray_judge.demo.server.fault_kinds import INVALID_API_KEY, HttpError
from ray_judge.demo.server.files import FileRoutes, FileStore
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import ApiFailure, error_answer

_MAX_BODY = 1 << 30
"""Bytes of a request body that are read at most; API limits below it answer API errors."""
_CRASHED = "crashed"
"""Key of the count of requests that met a defect of the simulator itself; must stay absent."""


def _authorised(request: web.Request, config: ServerConfig) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    key = config.api_key.get_secret_value()
    return scheme.lower() == "bearer" and hmac.compare_digest(
        token.strip().encode("utf-8", "surrogateescape"), key.encode()
    )


def _gate(sim: Simulator) -> Middleware:
    """Middleware of the paid API: check the key, turn failures into API errors, count."""

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        sim.requests += 1
        response: web.StreamResponse
        try:
            if _authorised(request, sim.config):
                response = await handler(request)
            else:
                response = error_answer(INVALID_API_KEY)
        except ApiFailure as failure:
            response = error_answer(failure.error, failure.headers)
        except web.HTTPException as failure:
            message = f"Invalid URL ({request.method} {request.path})"
            error = HttpError(failure.status, None, "invalid_request_error", message)
            response = error_answer(error)
        except Exception:
            sim.by_status[_CRASHED] += 1
            raise
        sim.by_status[DROPPED if response.status == 499 else str(response.status)] += 1
        return response

    return gate


def make_app(config: ServerConfig) -> web.Application:
    """The application of one simulated provider."""
    sim, files = Simulator(config), FileStore()
    batches = BatchStore(sim, files)
    chat, file_routes = ChatRoutes(sim), FileRoutes(sim, files)
    batch_routes = BatchRoutes(sim, files, batches)
    control = ControlRoutes(sim, files, batches)
    app = web.Application(middlewares=[_gate(sim)], client_max_size=_MAX_BODY)
    router = app.router
    router.add_post("/v1/chat/completions", chat.complete)
    router.add_get("/v1/models", chat.models)
    router.add_post("/v1/files", file_routes.upload)
    router.add_get("/v1/files", file_routes.list)
    router.add_get("/v1/files/{id}", file_routes.retrieve)
    router.add_get("/v1/files/{id}/content", file_routes.content)
    router.add_delete("/v1/files/{id}", file_routes.delete)
    router.add_post("/v1/batches", batch_routes.create)
    router.add_get("/v1/batches", batch_routes.list)
    router.add_get("/v1/batches/{id}", batch_routes.retrieve)
    router.add_post("/v1/batches/{id}/cancel", batch_routes.cancel)
    router.add_get("/control/stats", control.stats)
    router.add_get("/control/bills", control.bills)
    router.add_post("/control/reset", control.reset)
    router.add_get("/control/config", control.config)
    router.add_patch("/control/config", control.patch_config)
    router.add_get("/control/batches", batch_routes.all)
    router.add_post("/control/batches/{id}/advance", batch_routes.advance)
    return app
