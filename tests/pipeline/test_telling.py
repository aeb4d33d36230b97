"""What a run waits for, and what it was billed beyond its limits, is told wherever people look."""

import json
from typing import Any

import pytest

from ray_judge.cli import main
from ray_judge.config import load
from ray_judge.errors import ProviderDown
from ray_judge.pipeline import score
from tests.fault.plain import Said, completion, plain_server
from tests.provider import RunningServer

from .conftest import Run, Runs, command, pairs


def status(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("status", str(run.output)))
    return found


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("https://127.0.0.1:{port}/v1", "(does it speak plain http://?)"),
        ("http://no-such-host.invalid/v1", "http://no-such-host.invalid cannot be reached: "),
    ],
)
def test_an_address_where_nobody_is_is_told(
    runs: Runs, server: RunningServer, address: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    port = server.base_url.rpartition(":")[2].partition("/")[0]
    url = address.format(port=port)
    run = runs(pairs(20), strong__base_url=url, strong__give_up_after_s=3)
    seen: list[Any] = []
    with pytest.raises(ProviderDown) as caught:
        score(load(run.yaml), lambda phase, document: seen.append(document))
    assert cause in str(caught.value) and caught.value.exit_code == 4
    assert any(cause in said for document in seen for said in document["waits"])
    told = status(run)
    assert told["now"].startswith("nobody works here: paused") and cause in told["now"]
    assert told["spent_usd"] == 0 and told["progress"]["questions"] == 10
    assert run.score("strong.base_url=" + server.base_url) == 0
    assert status(run)["now"].startswith("nobody works here: done")


def test_bills_beyond_the_limits_are_told(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    with plain_server(lambda body, number: Said(completion(tokens=(200, 5000)))) as plain:
        run = runs(pairs(20), strong__base_url=plain.base_url, strong__max_cost_usd=0.2)
        assert main(["score", str(run.yaml), "--quiet"]) == 0
    said = [record.message for record in caplog.records if "beyond" in record.message]
    told, summary = status(run), run.summary()
    assert 0 < summary["excess_usd"] == told["excess_usd"] < 0.0404
    assert run.outcomes()["denied_budget"] == 10 - len(plain.requests) > 0
    assert said == [summary["excess_said"]] == [told["excess_said"]]
    assert f"${summary['excess_usd']:.6f} beyond" in said[0] and "1 of its answers" in said[0]
    assert said[0].replace("'", "&#39;") in (run.output / "report.html").read_text()
    assert summary["spent_usd"] == float(plain.usd) <= 0.2 + summary["excess_usd"]
