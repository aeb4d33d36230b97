"""A simulated OpenAI-compatible provider on loopback: the witness of the tests.

It stands in for the paid strong judge, and its own bills (how much, how often, when) are what the
promises of this project are held against. So it shares no code with the package. No model runs
here: answers come from a file of true verdicts, or from a hash of the request.
"""

from __future__ import annotations

from tests.provider.process import RunningServer, running_server

__all__ = ["RunningServer", "running_server"]
