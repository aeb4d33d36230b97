"""/control/*: the counts of the provider, and changes in mid-run. Not part of the paid API."""

from __future__ import annotations

import json
from collections import Counter

from aiohttp import web
from pydantic import ValidationError

from ray_judge.demo.server.batches import BatchStore
from ray_judge.demo.server.files import FileStore
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import json_answer


class ControlRoutes:
    """Statistics, bills, reset and configuration; needs no key, listens on loopback only."""

    def __init__(self, sim: Simulator, files: FileStore, batches: BatchStore) -> None:
        self._sim = sim
        self._files = files
        self._batches = batches

    async def stats(self, _request: web.Request) -> web.Response:
        """GET /control/stats."""
        counts = {
            "uploads": self._files.uploads,
            "files": len(self._files.files),
            "batch_creations": self._batches.creations,
            "batches": dict(Counter(b.status for b in self._batches.batches.values())),
        }
        return json_answer({**self._sim.stats(), **counts})

    async def bills(self, _request: web.Request) -> web.Response:
        """GET /control/bills: every bill, oldest first."""
        return json_answer({"bills": [bill.body() for bill in self._sim.ledger.bills]})

    async def reset(self, _request: web.Request) -> web.Response:
        """POST /control/reset: forget counts, bills, files and batches; keep the settings."""
        self._batches.clear()
        self._files.clear()
        self._sim.reset()
        return json_answer({"ok": True})

    async def config(self, _request: web.Request) -> web.Response:
        """GET /control/config, with the key masked."""
        return json_answer(self._sim.config.public())

    async def patch_config(self, request: web.Request) -> web.Response:
        """PATCH /control/config: merge the settings of the body."""
        try:
            patch = json.loads(await request.read())
            self._sim.reconfigure(patch)
        except ValidationError as error:
            message = "; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors())
            return json_answer({"error": {"message": message}}, status=400)
        except (ValueError, AttributeError, OSError) as error:
            return json_answer({"error": {"message": str(error)}}, status=400)
        return json_answer(self._sim.config.public())
