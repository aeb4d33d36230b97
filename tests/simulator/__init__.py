"""A deterministic simulator of the money system: one seed is one night.

The real ledger, journal, limiter, governor, asker and retry policy run as many simulated
processes in one thread. Time, the order of events, the disk, the provider and every fault come
from one seed, so a night that broke a promise is replayed exactly:

    python -m tests.simulator --seed 4711          one night, with its trace
    python -m tests.simulator --nights 10000       many, until the first broken promise

In the manner of FoundationDB's and TigerBeetle's simulators. `docs/decisions/0013` says what it
can show and what it cannot.
"""
