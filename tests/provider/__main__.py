"""A simulated provider on 127.0.0.1: `python -m tests.provider --port 8000 --config FILE.json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from tests.provider.app import make_app
from tests.provider.config import ServerConfig


async def _serve(config: ServerConfig, port: int, *, watches_stdin: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if watches_stdin:
        # Nothing follows the configuration, so the pipe is readable when its other end is closed:
        # the parent has died. No server outlives its test run.
        loop.add_reader(sys.stdin.fileno(), stopped.set)
    runner = web.AppRunner(make_app(config), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    ready = {"base_url": f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    try:
        await stopped.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Run the provider until it is stopped; 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="python -m tests.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--config", help='JSON file; "-": the first line of standard input')
    options = parser.parse_args()
    file = options.config
    try:
        text = sys.stdin.readline() if file == "-" else Path(file).read_text() if file else "{}"
        config = ServerConfig.model_validate_json(text)
    except (ValueError, OSError) as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    asyncio.run(_serve(config, options.port, watches_stdin=options.config == "-"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
