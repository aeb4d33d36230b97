"""Addresses as docs/strong-judges.md has them; servers that cannot be reached, or answer nothing
that can be read: told in their own words."""

import asyncio
import os
import re
import ssl
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ray_judge.config import StrongConfig, with_variables
from ray_judge.errors import ProviderDown
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.governor import WallClock
from ray_judge.failures import RequestFailed
from tests.unit.builders import documented

from .one_process import ask, configuration
from .plain import Said, completion, error, plain_server

NO_NAME = r"(Name or service not known|Temporary failure in name resolution|No address .*)"


def good(body: dict[str, Any], number: int) -> Said:
    return Said(completion())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, here = datetime.now(UTC), x509.IPAddress(ip_address("127.0.0.1"))
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1)
    )
    made = made.add_extension(x509.SubjectAlternativeName([here]), critical=True)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(secret + made.sign(key, hashes.SHA256()).public_bytes(pem))
    return path


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def send(base_url: str) -> str:
    """What comes back of one request, or why it was never sent (which costs nothing)."""

    async def go() -> str:
        strong = StrongConfig(model="gpt-4.1", max_cost_usd=Decimal(1), base_url=base_url)
        client = StrongClient(strong, "sk-not-to-be-told")
        try:
            return str((await client.send({"model": "m", "messages": []})).text)
        except RequestFailed as failure:
            return failure.reason if failure.unreachable else "it may have been sent"
        finally:
            await client.close()

    said = asyncio.run(go())
    assert "sk-not" not in said and "secret" not in said
    return said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9/v1", r"http://127.0.0.1:9 .*d: Connection refused"),
        ("http://localhost:9/v1", r"http://localhost:9 .*d: Connection refused"),
        ("http://no-such-host.invalid/v1", rf"http://no-such-host.invalid .*d: {NO_NAME}"),
    ],
)
def test_an_address_where_nobody_is(address: str, said: str) -> None:
    assert re.fullmatch(said, send(address))


def test_a_certificate_nobody_trusts(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the error says to do helps."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with plain_server(good, tls) as server:
        assert "verify failed: self-signed certificate (SSL_CERT_FILE" in send(server.base_url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert send(server.base_url) == '{"verdict": "A"}'


def test_a_proxy_that_is_not_there_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with plain_server(good) as server:
        place = server.base_url.removeprefix("http://").removesuffix("/v1")
        for there, said in (("127.0.0.1:9", "Connection refused"), (place, "Unsupported method")):
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{there}")
            found = send("https://judge.example/v1")
            via = f"https://judge.example cannot be reached through the proxy http://{there}: "
            assert found.startswith(via) and said in found


class Hurried(WallClock):
    """A hundred seconds pass in one."""

    def __init__(self) -> None:
        self.begun = time.time()

    def now(self) -> float:
        return self.begun + 100 * (time.time() - self.begun)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 100)


PAGE = "<html><style>p {}</style><body><h1>Back\nsoon</h1> Bearer sk-12345678</body></html>"
NOTHING: dict[str, tuple[Said, str, int]] = {
    "a page": (Said(text=PAGE), "not a chat completion: Back soon Bearer …", 16),
    "an empty body": (Said(text=""), "not a chat completion: it is empty", 16),
    "other JSON": (Said({"status": "ok"}), 'not a chat completion: {"status": "ok"}', 16),
    "nothing but 429": (error(429, "no capacity", code="rate_limit_exceeded"),
                        "HTTP 429 rate_limit_exceeded: no capacity", 0),
    "nothing but 429, for long": (error(429, "no capacity", {"retry-after": "3600"}),
                                  "HTTP 429: no capacity", 0),
    "nothing but 503": (Said(text="<h1>503</h1> try later", status=503), "503 try later", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_a_provider_that_answers_nothing_pauses_the_run(tmp_path: Path, name: str) -> None:
    """What may have been billed counts in full, 16 times at most."""
    said, words, leases = NOTHING[name]
    with plain_server(lambda body, number: said) as server:
        patience = {"give_up_after_s": 1e6 if leases else 20, "temperature": None}
        config = configuration(tmp_path, server, "5", **patience)  # type: ignore[arg-type]
        rows = [f"row {number}" for number in range(100)]
        phase = ask(config, server, rows, clock=Hurried())  # type: ignore[arg-type]
    assert isinstance(phase.error, ProviderDown) and words in str(phase.error)
    assert phase.error.exit_code == 4 and "sk-1" not in str(phase.error)
    counted = [answer for answer in phase.journal.rows if answer.cost_usd]
    assert len(counted) == leases and not any(answer.final for answer in counted)
    assert phase.state["spent_usd"] == sum(answer.cost_usd for answer in counted)
    assert leases == 0 or len(server.requests) == leases
    assert "no answer for" in phase.state["waits"] and words in phase.state["waits"]
    with plain_server(good) as server:
        config = configuration(tmp_path, server, "5", temperature=None)  # type: ignore[arg-type]
        assert ask(config, server, rows).outcomes == {"resolved": 100}  # type: ignore[arg-type]


EXAMPLES = [section["strong"] for section in documented("docs/strong-judges.md")]
SECRETS = ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "AZURE_OPENAI_API_KEY")
BEARER = {"authorization": "Bearer secret"}
SEEN: dict[str | None, tuple[str, dict[str, str | None], dict[str, Any]]] = {
    None: ("/v1/chat/completions", BEARER, {}),
    "/api/v1": (
        "/api/v1/chat/completions",
        {**BEARER, "http-referer": "https://example.com", "x-title": "nightly"},
        {"provider": {"require_parameters": True, "data_collection": "deny"}},
    ),
    "/openai/deployments/judge": (
        "/openai/deployments/judge/chat/completions?api-version=2025-04-01-preview",
        {"api-key": "secret", "authorization": None},
        {"reasoning_effort": "low", "max_completion_tokens": 4000},
    ),
    "/openai/v1": ("/openai/v1/chat/completions", BEARER, {}),
    "/v1": (
        "/v1/chat/completions",
        {"authorization": None},
        {"chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": 300},
    ),
}
"""Path of the address → what a server there must see."""


@pytest.mark.parametrize("strong", EXAMPLES, ids=lambda strong: strong.get("base_url", "OpenAI"))
def test_the_documented_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strong: dict[str, Any]
) -> None:
    """Each against a server of its form: OpenRouter puts errors into a 200, and says its bill."""
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    path, rows = urlsplit(strong.get("base_url", "")).path or None, [f"{n}" for n in range(20)]
    gateway = path == "/api/v1"

    def reply(body: dict[str, Any], number: int) -> Said:
        if gateway and number == 3:
            return Said({"error": {"message": "provider returned error", "code": 429}})
        document = completion()
        document["usage"]["cost"] = 0.0123
        return Said(document)

    with plain_server(reply) as server:
        server.api_key = "secret"
        address = f"{server.base_url.removesuffix('/v1')}{path or '/v1'}"
        if gateway:  # its host is another one here
            strong = {**strong, "extra_body": {**strong["extra_body"], "usage": {"include": True}}}
        changes = {**strong, "base_url": address}
        cap = str(changes.pop("max_cost_usd"))
        config = configuration(tmp_path, server, cap, **changes)  # type: ignore[arg-type]
        filled = config.model_copy(update={"strong": with_variables(config.strong)})
        phase = ask(filled, server, rows)  # type: ignore[arg-type]
        assert (phase.error, phase.outcomes) == (None, {"resolved": 20})
        wanted, headers, fields = SEEN[path]
        assert server.paths == {wanted} and len(server.requests) == 20 + gateway
        for seen, body in zip(server.headers, server.requests, strict=True):
            assert {name: seen.get(name) for name in headers} == headers
            assert {name: body[name] for name in fields} == fields
        billed = 20 * Decimal("0.0123")
        assert phase.state["spent_usd"] == billed if gateway else phase.state["spent_usd"] < billed
