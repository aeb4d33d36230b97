"""The process of a simulated provider: see `process.running_server`.

Its settings are the first line of standard input; it says where it listens on 127.0.0.1, and ends
when standard input does: with its parent, so that no server outlives its test run.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from tests.provider.app import make_app
from tests.provider.config import ServerConfig


async def _serve(config: ServerConfig) -> None:
    runner = web.AppRunner(make_app(config), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(ServerConfig.model_validate_json(sys.stdin.readline())))
