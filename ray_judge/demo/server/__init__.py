"""A simulated OpenAI-compatible provider on loopback.

It stands in for the paid strong judge in the demo and in all tests, and its own books (what it
billed, how often, when) are the judge of the promises of this project. No model runs here: the
answers come from a file or from a hash, and every answer says `system_fingerprint: "simulator"`.

    with running_server(ServerConfig(limits=Limits(rpm=600))) as server:
        client = OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0)
        ...
        assert server.stats()["billed_twice"] == 0
"""

from __future__ import annotations

from ray_judge.demo.server.config import (
    BatchSettings,
    CallFault,
    Certainty,
    FaultRule,
    HashAnswers,
    Latency,
    Limits,
    LookupAnswers,
    Prices,
    ServerConfig,
    StrongAnswers,
)
from ray_judge.demo.server.process import RunningServer, running_server, start_server

__all__ = [
    "BatchSettings",
    "CallFault",
    "Certainty",
    "FaultRule",
    "HashAnswers",
    "Latency",
    "Limits",
    "LookupAnswers",
    "Prices",
    "RunningServer",
    "ServerConfig",
    "StrongAnswers",
    "running_server",
    "start_server",
]
