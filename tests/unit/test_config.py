"""One YAML is a whole run: what is refused, how it is said, and what may change later."""

import math
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_judge.config import (
    OPERATIONAL,
    RunConfig,
    api_key,
    differences,
    load,
    parse,
    with_variables,
)
from ray_judge.errors import ConfigError
from ray_judge.escalation.escalate import check_strong

from . import builders
from .builders import document


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        builders.config(**changes)
    assert caught.value.exit_code == 2
    return str(caught.value)


ADDRESSES = ["127.0.0.1:8000/v1", "localhost/v1", "", "ftp://h/v1", "http://h:x/v1"]
SECRETS = [
    *(("strong__base_url", url) for url in ("https://u:hunter2@h/v1", "https://u:x/hunter2@h/v1",
      "u:hunter2@h", "h/v1?key=hunter2", "ftp://h/v1?a=b&key=hunter2")),
    *((key, "s3://AK:hunter2@bucket/x") for key in ("input", "output", "strong__books")),
    ("strong__headers", "hunter2"), ("strong__query", {"key": ["hunter2"]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("stron", "strong"),
        ("strong__max_cost", "strong.max_cost_usd"),
        ("strong__modell", "strong.model"),
        ("route__fracton", "route.fraction"),
        ("judge__replica", "judge.replicas"),
        ("fraction", "route.fraction"),
        ("max_cost_usd", "strong.max_cost_usd"),
        ("strong__price__input", "strong.price.input_usd_per_mtok"),
    ],
)
def test_an_unknown_key_names_the_nearest(path: str, nearest: str) -> None:
    message = refusal(**{path: 1})
    assert f"unknown key {path.replace('__', '.')} " in message
    assert f"did you mean {nearest}?" in message


VOTES = {"decode": "full", "confidence": "votes", "samples": 3, "temperature": 0.7}
REWARD, AB = {"format": "reward"}, {"A": "a", "B": "b"}
JUDGES: list[tuple[dict[str, Any], str]] = [
    ({"thinking": True}, "thinking: on needs decode: full"),
    ({"thinking": False, "chat": False}, "for a judge with a chat template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "ray_judge itself says tokenize"),
    ({**VOTES, "decode": "verdict"}, "votes counts answers: it needs decode: full"),
    ({**VOTES, "temperature": 0}, "a temperature above 0"),
    ({**VOTES, "samples": 1}, "samples of 2 or more"),
    ({"samples": 3}, "samples goes with confidence: votes"),
    ({"temperature": 1}, "temperature goes with decode: full"),
    ({"rewards": [0, 1]}, "rewards goes with format: reward"),
    ({**REWARD, "swap": True}, "format: reward goes without swap"),
    ({**REWARD, "decode": "full"}, "format: reward goes without decode"),
    ({**REWARD, "adapter": "a"}, "format: reward goes without adapter"),
    ({**REWARD, "confidence": "entropy"}, "goes with confidence: margin"),
    ({**REWARD, "rewards": [2, 1]}, "the lower first"),
    ({**REWARD, "engine": "http", "http": {"base_url": "http://h"}}, "needs engine: vllm, trans"),
    ({**REWARD, "engine": "columns", "prob_columns": AB, "reward_columns": AB},
     "format: reward goes without prob_columns"),
    ({**REWARD, "engine": "columns"}, "needs reward_columns"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"route__fraction": 1.01}, "route.fraction"),
        ({"route__fraction": -1}, "route.fraction"),
        ({"route__fraction": float("nan")}, "route.fraction"),
        ({"route__fraction": "30%"}, "route.fraction"),
        ({"route__fraction": ...}, "policy: fraction needs the key fraction"),
        ({"route__threshold": 0.5}, "threshold goes with policy: threshold"),
        ({"route": {"policy": "threshold"}}, "policy: threshold needs the key threshold"),
        ({"route": {"policy": "threshold", "threshold": float("inf")}}, "route.threshold"),
        ({"route__policy": "frction"}, "route.policy"),
        ({"route": {"policy": "budget"}}, "policy: budget needs the key budget_usd"),
        ({"route__budget_usd": 3}, "budget_usd goes with policy: budget"),
        ({"route": {"policy": "budget", "budget_usd": -1}}, "route.budget_usd"),
        ({"route": {"policy": "guarantee"}}, "policy: guarantee needs the key calibration"),
        ({"route__alpha": 0.1}, "alpha and delta go with policy: guarantee"),
        ({"route": {"policy": "guarantee", "calibration": "c", "alpha": 1}}, "route.alpha"),
        ({"route__audit": 1.5}, "route.audit"),
        ({"route__audit_by": "scenario"}, "audit_by goes with audit"),
        ({"judge": {"engine": "vllm"}}, "engine: vllm needs a model"),
        ({"judge__engine": "vllm", "judge__model": "m"}, "prob_columns goes with"),
        ({"judge__prob_columns": {"A": "p_a"}}, "needs prob_columns"),
        ({"judge__prob_columns": {"A": "a", "B": "b", "C": "c"}}, "judge.prob_columns"),
        ({"judge__swap": True}, "cannot swap"),
        ({"judge__replicas": 0}, "judge.replicas"),
        *[({"judge": {"model": "m", **keys}}, said) for keys, said in JUDGES],
        ({"judge__scores": [5, 1]}, "scores"),
        ({"judge__scores": [-1, 5]}, "whole numbers"),
        ({"judge__min_mass": 1.5}, "judge.min_mass"),
        *[({f"strong__{key}": cap}, f"strong.{key}")
          for key in ("max_cost_usd", "max_cost_usd_per_month")
          for cap in (float("nan"), float("inf"), -0.01, "abc", "NaN", [1])],
        ({"strong__max_cost_usd": None}, "strong.max_cost_usd"),
        *[({f"strong__{key}": rate}, f"strong.{key}")
          for key in ("requests_per_minute", "tokens_per_minute", "concurrency")
          for rate in (0, -1, None, float("nan"), 2.5)],
        *(({"strong__base_url": url}, "strong.base_url") for url in ADDRESSES),
        ({"strong__timeout_s": 0}, "strong.timeout_s"),
        ({"strong__samples": 0}, "strong.samples"),
        ({"strong__samples": 3, "strong__abstain_below": 0}, "strong.abstain_below"),
        ({"strong__abstain_below": 0.7}, "set strong.samples to 2 or more"),
        ({"strong__reasoning_effort": False}, "quote it if it is text"),
        ({"strong__extra_body": {"n": 2, "model": "x"}}, "ray_judge itself says model, n"),
        ({"strong__extra_body": {"since": date(2026, 1, 1)}}, "strong.extra_body.since"),
        ({"strong__extra_body": {"top_p": math.nan}}, "strong.extra_body: NaN and infinity"),
        ({"preset": ["arena-55k"]}, "preset: there is none"),
        ({"strong__headers": {"a b": "x"}}, "'a b' is no name of a header"),
        ({"strong__headers": {"X": "${a-b}"}}, "an environment variable is named as in ${MY_KEY}"),
        ({"strong__query": {"x": 1.50}}, "strong.query.x"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"task": "tripwise"}, "task"),
        ({"task": "pointwise"}, "columns and by_scores are for task: pairwise"),
        ({"columns": {"response_c": "x"}}, "response_c (did you mean response"),
        ({"input": ...}, "missing key input"),
        ({"output": ...}, "missing key output"),
        ({"judge": ...}, "missing key judge"),
        ({"strong__max_cost_usd": ...}, "strong.max_cost_usd: there is no run without a cap"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(**changes)


def test_a_reward_model_that_scores_has_a_scale_and_yaml_says_on_and_off(path: Path) -> None:
    judge = {"model": "m", "format": "reward"}
    found = builders.config(task="pointwise", judge={**judge, "rewards": [-1, 2.5]}).judge
    assert (found.rewards, found.confidence) == ((-1, 2.5), "margin")
    off = load(path, ["judge={model: m, thinking: off}"])
    assert off.judge.thinking is False and parse(off.document()) == off


@pytest.mark.parametrize(("key", "url"), SECRETS)
def test_what_an_address_must_not_tell_is_not_told(key: str, url: str) -> None:
    said = refusal(**{key: url})
    assert key.replace("__", ".") in said and "hunter2" not in said


def test_the_query_of_an_address_is_kept_and_not_written_down() -> None:
    url = "https://h/v1?api-version=2024-10-21&key=hunter2"
    config = builders.config(strong__base_url=url)
    assert config.strong.base_url == url
    written = config.document()["strong"]["base_url"]
    assert written == "https://h/v1?api-version=2024-10-21&key=…"
    assert builders.config(strong__base_url=written).document() == config.document()


def test_headers_and_query_are_filled_in_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a document shows is the name of a variable, and nothing else."""
    headers = {"api-key": "${MY_KEY}", "X-Two": "Bearer ${MY_KEY}", "X-Id": 7}
    query = {"api-version": date(2024, 10, 21), "sig": "hunter2"}
    config = builders.config(strong__headers=headers, strong__query=query)
    for good in ("hunter3", "a b!"):
        monkeypatch.setenv("MY_KEY", good)
        strong = with_variables(config.strong)
        found = {k: v.get_secret_value() for k, v in {**strong.headers, **strong.query}.items()}
        assert found == {
            "api-key": good, "X-Two": f"Bearer {good}", "X-Id": "7",
            "api-version": "2024-10-21", "sig": "hunter2",
        }  # fmt: skip
        assert "hunter" not in f"{strong!r} {strong} {strong.model_dump_json()} {config!r}"
    written = config.document()
    assert written["strong"]["headers"] == {"api-key": "${MY_KEY}", "X-Two": "…", "X-Id": "…"}
    assert parse(written).document() == written
    for bad in ("hunter3\n", "", "clé", None):
        monkeypatch.setenv("MY_KEY", bad) if bad is not None else monkeypatch.delenv("MY_KEY")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
        with pytest.raises(ConfigError, match=r"strong\.headers\.api-key: ") as caught:
            check_strong(config)
        assert "hunter3" not in str(caught.value)
    check_strong(builders.config(strong__headers=headers, strong__max_cost_usd=0))


@pytest.mark.parametrize(
    ("strong", "limit"),
    [
        ({}, 300), ({"max_output_tokens": None}, 300), ({"reasoning_effort": "none"}, 300),
        ({"reasoning_effort": "low"}, 4000), ({"model": "gpt-5-mini"}, 4000),
        ({"model": "openai/gpt-6.1-sol"}, 4000), ({"model": "o3"}, 4000),
        ({"model": "openai/gpt-oss-20b", "max_output_tokens": 90}, 90),
        ({"model": "gpt-5-mini", "reasoning_effort": "none"}, 300), ({"model": "gpt-4o"}, 300),
    ],
)  # fmt: skip
def test_an_answers_limit_fits_the_model(strong: dict[str, Any], limit: int) -> None:
    config = builders.config(**{f"strong__{key}": value for key, value in strong.items()})
    assert config.strong.max_output_tokens == limit


def test_every_problem_is_told_at_once() -> None:
    message = refusal(route__fraction=2, strong__max_cost_usd=-1, inptu="x")
    assert all(key in message for key in ("route.fraction", "strong.max_cost_usd", "inptu"))


GOOD = yaml.safe_dump(document()).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a good configuration."""
    path = tmp_path / "run.yaml"
    path.write_bytes(GOOD)
    return path


def test_set_overrides_single_keys(path: Path) -> None:
    prices = [f"strong.price.{way}_usd_per_mtok={n}" for n, way in enumerate(["input", "output"])]
    amounts = ["route.fraction=0.2", "strong.max_cost_usd=0.1", *prices]
    config = load(path, [*amounts, "columns.label=human"])
    assert (config.route.fraction, config.strong.max_cost_usd) == (Decimal("0.2"), Decimal("0.1"))
    assert config.strong.price is not None and config.strong.price.output_usd_per_mtok == 1
    assert config.columns == {"label": "human"}


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (GOOD, "route.fraction", "key=value"),
        (GOOD, "route.fracton=1", "did you mean route.fraction?"),
        (GOOD, "input.deep=1", "input is a value"),
        (GOOD, "strong.max_cost_usd=[", "not YAML"),
        (GOOD, "strong={model: a, model: b}", "the key model is given twice"),
        (GOOD, "strong.max_cost_usd=lots", "strong.max_cost_usd"),
        (GOOD + b"strong.model: x", None, "keys with a dot are for --set"),
        (GOOD + b"route: {}", None, "the key route is given twice, in line 8 and in line 14"),
        (b"labels: {1: A, 1.0: B}", None, "the key 1.0 is given twice"),
        (GOOD + b"labels: {null: tie}", None, "a row whose label is null has none"),
        (GOOD, "strong.headers={Content-Length: 3}", "ray_judge itself says Content-Length"),
    ],
)
def test_bad_overrides_are_named(path: Path, text: bytes, override: str | None, said: str) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(path, [override] if override else [])
    assert said in str(caught.value) and (override or str(path) in str(caught.value))


@pytest.mark.parametrize("value", [None, "", " ", "\t\n", "sk-a b", "sk-a\n", "\tsk-a", "clé"])
def test_a_spoilt_key_is_refused_without_showing_it_and_a_good_one_taken(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    strong = builders.config(strong__api_key_env="MY_KEY").strong
    with pytest.raises(ConfigError) as caught:
        api_key(strong)
    assert "MY_KEY" in str(caught.value) and caught.value.exit_code == 2
    assert not (value or "").strip() or value not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-good")
    assert api_key(strong) == "sk-good"
    assert api_key(builders.config(strong__api_key_env=None).strong)  # a server without keys


def test_a_cap_needs_a_price_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with pytest.raises(ConfigError, match="no price is known"):
        check_strong(builders.config(strong__model="somebody/llama-9"))
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": "2.5"}
    check_strong(builders.config(strong__model="somebody/llama-9", strong__price=price))
    monkeypatch.delenv("OPENAI_API_KEY")
    check_strong(builders.config(strong__max_cost_usd=0))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        check_strong(builders.config(strong__max_cost_usd="0.01"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"route__fraction": 0.4}, "route.fraction"),
        ({"strong__model": "gpt-4o"}, "strong.model"),
        ({"strong__swap": True}, "strong.swap"),
        ({"judge__prob_columns": {"A": "p_b", "B": "p_a"}}, "judge.prob_columns.A"),
        ({"judge__confidence": "margin"}, "judge.confidence"),
        ({"columns": {"label": "human"}}, "columns.label"),
        ({"input": "elsewhere"}, "input"),
        ({"chunk_rows": 10}, "chunk_rows"),
        ({"strong__temperature": 0}, "strong.temperature"),
        ({"strong__max_cost_usd": "0.99"}, "strong.max_cost_usd"),
    ],
)
def test_what_could_change_a_verdict_is_named(changes: dict[str, Any], key: str) -> None:
    before, now = builders.config(), builders.config(**changes)
    found = differences(before.document(), now.document())
    assert key in found and found[key].startswith(f"{key}:")
    assert (now.digest() == before.digest()) == (key == "strong.max_cost_usd")


NUMBERS = """
    judge.replicas judge.gpus_per_replica judge.cpus_per_replica judge.http.concurrency
    judge.http.timeout_s strong.concurrency strong.requests_per_minute strong.tokens_per_minute
    strong.timeout_s strong.max_cost_usd strong.max_cost_usd_per_month strong.give_up_after_s
    strong.max_output_tokens strong.reasks
""".split()
OPERATIONAL_CHANGES = {
    **dict.fromkeys(NUMBERS, 3),
    "output": "x",
    "judge.engine_options": {"max_num_seqs": 8},
    "judge.share_gpu": True,
    "judge.templates": "/templates",
    "judge.http.base_url": "http://127.0.0.1:1/v1",
    "judge.http.api_key_env": "OTHER",
    "strong.base_url": "http://127.0.0.1:1/v1",
    "strong.api_key_env": "OTHER",
    "strong.price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    "strong.batch": {"wait_s": 0},
    "strong.tolerate_failed": 1,
    "strong.max_tokens_field": "max_tokens",
    "strong.headers": {"X": "y"},
    "strong.query": {"x": "y"},
}


@pytest.mark.parametrize("key", sorted({*OPERATIONAL, *OPERATIONAL_CHANGES}))
def test_operational_keys_may_change_and_leave_the_digest_alone(key: str) -> None:
    served = {"engine": "http", "model": "m", "http": {"base_url": "http://127.0.0.1:2/v1"}}
    base = {"judge": served} if key.startswith("judge.http") else {}
    before = builders.config(**base)
    now = builders.config(**base, **{key.replace(".", "__"): OPERATIONAL_CHANGES[key]})
    assert now != before
    assert differences(before.document(), now.document()) == {}
    assert now.digest() == before.digest()


def test_a_key_of_one_of_several_judges() -> None:
    """Named by its place; operational there, too."""
    judges = [
        {"model": "a", "route": {"policy": "threshold", "threshold": 0.9}},
        {"model": "b", "replicas": 1},
    ]

    def made(**changes: Any) -> RunConfig:
        second = {**judges[1], **changes}
        return builders.config(judge=..., judges=[judges[0], second])

    before = made()
    assert [tier.judge.model for tier in before.tiers()] == ["a", "b"]
    assert [tier.route.policy for tier in before.tiers()] == ["threshold", "fraction"]
    assert differences(before.document(), made(replicas=4).document()) == {}
    assert made(replicas=4).digest() == before.digest()
    found = differences(before.document(), made(model="c").document())
    assert found == {"judges.1.model": "judges.1.model: 'b' → 'c'"}


SURE = {"policy": "threshold", "threshold": 0.9}
GUARANTEE = {"policy": "guarantee", "calibration": "c.json"}


@pytest.mark.parametrize(
    ("first", "last", "route", "said"),
    [
        ({}, {}, {}, "needs its own route"),
        ({"route": GUARANTEE}, {}, {}, "policy: guarantee needs route.calibration"),
        ({"route": {"policy": "budget", "budget_usd": 1}}, {}, {}, "last judge only"),
        ({"modle": "a"}, {}, {}, "unknown key judges.0.modle (did you mean judges.model?)"),
        ({"route": SURE}, {"route": SURE}, {}, "the last judge has no route of its own"),
        ({"route": SURE}, {}, GUARANTEE, "each of several judges needs it"),
        ({"route": {**SURE, "calibration": "c.json"}}, {}, {}, "route.calibration is one"),
    ],
)
def test_several_judges_that_do_not_fit(first: Any, last: Any, route: Any, said: str) -> None:
    judges = [{"model": "a", **first}, {"model": "b", **last}]
    assert said in refusal(judge=..., judges=judges, **({"route": route} if route else {}))


def test_the_quickstarts_run_can_be_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    _, run, _ = re.split(r"```yaml\n# run.yaml\n(.*?)```", text, flags=re.DOTALL)
    check_strong(parse(yaml.safe_load(run)))


def test_one_judge_is_a_list_of_one(path: Path) -> None:
    single = document(judge={"model": "m", "replicas": 2})
    config = parse(single)
    assert config == builders.config(judge=..., judges=[single["judge"]]) == config.tiers()[0]
    assert parse(config.document()) == config
    path.write_text(yaml.safe_dump(single))
    assert load(path, ["judge.model=n"]).judge.model == "n"
    assert "judge and judges exclude each other" in refusal(judges=[single["judge"]])
    assert "judges: name at least one" in refusal(judge=..., judges=[])


@pytest.mark.parametrize(
    ("given", "place"),
    [("runs/a", "{cwd}/runs/a"), ("~/a", "{home}/a"), ("/x/a/", "/x/a"), ("file:///x/a", "/x/a"),
     ("/x/b/../a", "/x/a"), ("file:///x%20y", "/x y"),
     ("s3://bucket/a/", "s3://bucket/a"), ("gs://bucket/a", "gs://bucket/a")],
)  # fmt: skip
def test_a_place_has_one_spelling(given: str, place: str) -> None:
    """The actors have other working directories, and the ledger keeps a run's cap by its name."""
    wanted = place.format(cwd=Path.cwd(), home=Path.home())
    config = builders.config(output=given, strong__books=given)
    assert (config.output, config.strong.books) == (wanted,) * 2
