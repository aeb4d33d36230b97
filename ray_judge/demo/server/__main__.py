"""Command: `python -m ray_judge.demo.server --port 0 --config FILE.json`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys

from aiohttp import web
from pydantic import ValidationError

from ray_judge.demo.server.app import make_app
from ray_judge.demo.server.config import ServerConfig
from ray_judge.demo.server.parent import ParentWatch

_PARENT_POLL_S = 0.25


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ray_judge.demo.server",
        description="A SIMULATED OpenAI-compatible provider on 127.0.0.1. No model runs here.",
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--config", default=None, help='JSON file, "-" for standard input')
    parser.add_argument("--parent-pid", type=int, default=None, help="stop when it is gone")
    return parser.parse_args(argv)


async def _serve(config: ServerConfig, port: int, parent_pid: int | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(make_app(config), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    bound = runner.addresses[0][1]
    gc.freeze()  # the answer index lives as long as the process
    print("ray_judge simulator: answers are simulated, no model runs here.", file=sys.stderr)
    ready = {"base_url": f"http://127.0.0.1:{bound}/v1", "pid": os.getpid(), "simulator": True}
    print(json.dumps(ready), flush=True)
    watch = ParentWatch(parent_pid) if parent_pid is not None else None
    try:
        while not stopped.is_set():
            if watch is not None and not watch.alive():
                break
            try:
                await asyncio.wait_for(stopped.wait(), _PARENT_POLL_S if watch else None)
            except TimeoutError:
                continue
    finally:
        await runner.cleanup()


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is stopped; 2 for a wrong configuration."""
    arguments = _arguments(argv)
    try:
        config = ServerConfig.load(arguments.config) if arguments.config else ServerConfig()
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            place = ".".join(str(part) for part in item["loc"])
            print(f"configuration: {place}: {item['msg']}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    asyncio.run(_serve(config, arguments.port, arguments.parent_pid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
