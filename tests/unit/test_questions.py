"""The strong judge's questions: canonical, made again alike, priced exactly; no guessed verdict."""

import json
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_judge.config import RunConfig
from ray_judge.config.strong import PriceConfig
from ray_judge.errors import ConfigError, InputChangedError
from ray_judge.escalation.pricing import (
    cache_saving,
    cost,
    input_token_bound,
    input_token_estimate,
    max_cost,
    price_of,
    price_table,
)
from ray_judge.escalation.questions import (
    QuestionMaker,
    Unparseable,
    asked_tier,
    billable_tiers,
    canonical_key,
    in_words,
)
from ray_judge.judging.formats.families import GENERIC_RUBRIC
from ray_judge.records import Chunk, Example, Usage
from ray_judge.run.columns import Columns

from . import builders

PAIR = Example("Say hi.", ("hi", "hello"))
ROLES = ("instruction", "response_a", "response_b")
STRONG = {"model": "gpt-4.1", "max_cost_usd": 1}


def config(task: str = "pairwise", **strong: Any) -> RunConfig:
    judge = {"model": "m", "rubric": strong.pop("judge_rubric", None)}
    return builders.config(task=task, judge=judge, strong={**STRONG, **strong})


def maker(task: str = "pairwise", **strong: Any) -> QuestionMaker:
    return QuestionMaker(config(task, **strong), Columns({role: role for role in ROLES}))


def key(example: Example = PAIR, **strong: Any) -> str:
    return maker(**strong).of_example(example)[0].key


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_cost_usd": 7, "concurrency": 1, "base_url": "http://127.0.0.1:1/v1", "mode": "batch"},
        {"headers": {"api-key": "secret"}, "query": {"api-version": "2024-10-21"}},
        {"max_output_tokens": 10, "max_tokens_field": "max_tokens"},
        {"samples": 3, "abstain_below": 0.7},
    ],
)
def test_a_key_on_file(change: dict[str, Any]) -> None:
    """Journals hold it, and other processes read them on other days.

    A limit that was too low is raised, and no answer on file is asked for again.
    """
    asked = key(**change)
    assert asked == "415570e4cfcd6d76dce39a7518acfbd048909ff768da87cf405640f39e5a0b9b"


def test_what_the_key_depends_on() -> None:
    keys = {
        "plain": key(),
        "instruction": key(Example("Say ho.", ("hi", "hello"))),
        "swapped": key(PAIR.swapped()),
        "input": key(replace(PAIR, input="x")),
        "reference": key(replace(PAIR, reference="x")),
        "row's rubric": key(replace(PAIR, rubric="x")),
        "rubric": key(rubric="Be strict."),
        "model": key(model="gpt-4o"),
        "ties": key(ties=False),
        "temperature": key(temperature=0),
        "reasoning_effort": key(reasoning_effort="low"),
        "extra_body": key(extra_body={"provider": {"order": ["a"]}}),
        "in it": key(extra_body={"provider": {"order": ["b"]}}),
    }
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("rubric", [None, "Be strict."])
@pytest.mark.parametrize("task", ["pairwise", "pointwise"])
def test_all_that_questions_have_in_common_comes_first(task: str, rubric: str | None) -> None:
    """So a provider's cache of beginnings can work; a row's own criteria come with the row."""
    asked = maker(task, rubric=rubric)
    example = PAIR if task == "pairwise" else PAIR.single("hi")
    plain, other, own = (
        asked.of_example(one)[0].body
        for one in (example, replace(example, input="more"), replace(example, rubric="Be kind."))
    )
    assert plain and other and own
    assert [message["role"] for message in plain["messages"]] == ["system", "user"]
    assert plain["messages"][0] == other["messages"][0]
    common, alone = (body["messages"][0]["content"] for body in (plain, own))
    criteria = f"\n\n[Criteria]\n{rubric or GENERIC_RUBRIC}"
    assert common.replace(criteria, "") == alone != common and "[Criteria]" not in alone
    assert plain["messages"][1]["content"].startswith("[Instruction]\nSay hi.\n\n[Answer")
    assert "\n\n[Criteria]\nBe kind.\n\n[Answer" in own["messages"][1]["content"]


def test_what_a_server_makes_of_the_rest_of_the_body_is_bounded() -> None:
    """It may put it in front of the model, as it does with tools."""
    (plain,), (more,) = (
        maker(extra_body=extra).of_example(PAIR) for extra in ({}, {"tools": [{"name": "x" * 99}]})
    )
    assert more.input_bound > plain.input_bound + 99 and more.max_cost_usd > plain.max_cost_usd


def test_a_key_is_that_of_the_body_whatever_its_order_and_text() -> None:
    asked = maker().of_example(PAIR)[0].body
    assert asked is not None
    assert canonical_key(dict(reversed(asked.items()))) == canonical_key(asked) == key()
    assert canonical_key({"a": "\ud800"}) != canonical_key({"a": "\ud801"})
    assert key(judge_rubric="Be kind.") == key(rubric="Be kind.")  # it stands in for a missing one


def test_samples_and_orders_are_questions_of_their_own() -> None:
    both = maker(swap=True, samples=2).of_example(PAIR)
    assert len({question.key for question in both}) == 4
    assert both[0].body == both[1].body != both[2].body == both[3].body
    assert [question.key for question in both[::2]] == [key(), key(PAIR.swapped())]
    more = maker(samples=3).of_example(PAIR)
    assert [question.key for question in more[:2]] == [question.key for question in both[:2]]


GATEWAY, EUROPE = "https://api.openai.com.example/v1", "https://eu.api.openai.com/v1"


@pytest.mark.parametrize(
    ("mode", "base_url", "told", "billed"),
    [
        ("online", None, "default", "default"),  # a project may be set to a dearer one
        ("online", EUROPE, "default", "default"),
        ("online", GATEWAY, None, "priority"),
        ("flex", GATEWAY, "flex", "default"),
        ("batch", None, "default", "batch"),
    ],
)
def test_a_question_knows_its_tokens_and_the_dearest_tier_that_may_be_billed(
    mode: Any, base_url: str | None, told: str | None, billed: str
) -> None:
    asked = maker(mode=mode, base_url=base_url, max_output_tokens=50)
    assert asked_tier(asked.strong) == told
    (question,) = asked.of_example(PAIR)
    assert question.body is not None
    bound = input_token_bound(question.body["messages"], question.body["response_format"])
    assert question.input_bound == bound > question.tokens > 0
    assert question.max_cost_usd == cost(asked.price, Usage(bound, 50, tier=billed)) > Decimal(0)


@pytest.mark.parametrize(
    ("task", "field", "values"),
    [
        ("pairwise", "verdict", {"type": "string", "enum": ["A", "B", "tie"]}),
        ("pointwise", "score", {"type": "integer", "minimum": 1, "maximum": 5}),
    ],
)
def test_the_schema_is_strict_as_providers_demand(task: str, field: str, values: Any) -> None:
    example = PAIR if task == "pairwise" else PAIR.single("hi")
    asked: Any = maker(task).of_example(example)[0].body
    schema = {
        "type": "object", "properties": {field: values}, "required": [field],
        "additionalProperties": False,
    }  # fmt: skip
    strict = {"name": field, "strict": True, "schema": schema}
    assert asked["response_format"] == {"type": "json_schema", "json_schema": strict}
    assert f'"{field}"' in asked["messages"][0]["content"]  # words alone say what is wanted
    assert in_words(asked) == {k: v for k, v in asked.items() if k != "response_format"}
    assert not any("logprobs" in name for name in asked)


def shard(folder: Path, *instructions: str | None) -> Chunk:
    """Rows 10 and following of a shard ask these."""
    texts = [*["before"] * 10, *instructions]
    table = pa.table({"other": texts, **dict.fromkeys(ROLES, texts)})
    pq.write_table(table, folder / "a.parquet", row_group_size=4)
    return Chunk("00000-00001", str(folder / "a.parquet"), "a.parquet", 10, len(instructions))


def test_rows_have_the_questions_of_their_examples(tmp_path: Path) -> None:
    chunk = shard(tmp_path, "x", None, "y", " ", "z")
    asked = maker(swap=True)
    made = asked.of_rows(chunk, [14, 11, 13, 10])
    assert list(made) == [14, 11, 13, 10] and made[11] == made[13] == []
    example = Example("z", ("z", "z"))
    assert [question.row for question in made[14]] == [(chunk.name, 14, 0), (chunk.name, 14, 1)]
    assert [replace(question, row=None) for question in made[14]] == asked.of_example(example)
    assert asked.of_rows(chunk, []) == {}


def test_bodies_are_made_again(tmp_path: Path) -> None:
    chunk = shard(tmp_path, "x", "y", "z")
    asked, chunks = maker(samples=2), {chunk.name: chunk}
    questions = [q for row in asked.of_rows(chunk, [10, 11, 12]).values() for q in row][::-1]
    bare = [replace(question, body=None) for question in questions]
    assert asked.bodies(bare, chunks) == questions and asked.bodies([], chunks) == []


@pytest.mark.parametrize("now", [("x", "Y", "z"), ("x", None, "z"), ("x",)])
def test_a_row_that_changed_is_not_asked(tmp_path: Path, now: tuple[str | None, ...]) -> None:
    """Its answer would lie under the key of the question before it."""
    chunk, asked = shard(tmp_path, "x", "y", "z"), maker()
    questions = asked.of_rows(chunk, [10, 11])
    shard(tmp_path, *now)
    with pytest.raises(InputChangedError, match=r"a\.parquet"):
        asked.bodies([*questions[10], *questions[11]], {chunk.name: chunk})
    assert asked.bodies(questions[10], {chunk.name: chunk}) == questions[10]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "A"}', "A"), (' \n{"verdict":"tie"}\n', "tie"), ('{"score": 0.5e1}', 5.0),
        ('{"reason": "x", "verdict": "B"}', "B"), ('```json\n{"verdict": "B"}\n```', "B"),
        ('```\n{"verdict": "A"}```', "A"), ('{"verdict": "\\u0041"}', "A"),
        ('<think>\nOne might say {"verdict": "tie"}.\n</think>\n\n{"verdict": "A"}', "A"),
        ('Here it is:\n```json\n{"verdict": "A"}\n```\nA is shorter.', "A"),
        ('[THINK]B?[/THINK]{"verdict": "B"} As I said: {"verdict": "B"}', "B"),
        ('> {"verdict": "A"}\n{"verdict": "B"}', "B"), ('{"score": 5}, of 10', 5.0),
        ('{"score": 5}', 5.0), ('{"score": 1}', 1.0), ('{"score": 4.5}', 4.5),
        ('◁think▷{"verdict": "A"}?◁/think▷{"verdict": "B"}', "B"),
        ('<seed:think>{"verdict": "A"}?</seed:think>{"verdict": "B"}', "B"),
        ('{"verdict": "A"}?<|channel|>final <|constrain|>json<|message|>{"verdict": "B"}', "B"),
        ('{"verdict": "A"}\n' * 3 + '{"verd', "A"), ('In {x}: {"verdict": "A"}', "A"),
        ('{"verdict": " TIE"}', "tie"), ('{"verdict": "b"}', "B"), ('{"score": "4"}', 4.0),
    ],
)  # fmt: skip
def test_answers_that_are_verdicts(text: str, verdict: str | float) -> None:
    value = maker("pairwise" if isinstance(verdict, str) else "pointwise").read(text)
    assert value == verdict and type(value) is type(verdict)


NEITHER = [
    None, "", "  \n", "A", '"A"', "5", "null", "true", "[]", "{}", '["A"]', '{"Verdict": "A"}',
    '{"verdict ": "A"}', '{"verdict": "A"', '{"verdict": "A"}{"verdict": 1}',
    '{"verdict": "A", "verdict": "B"}', '{"answer": {"verdict": "A"}}', "{'verdict': 'A'}",
    '{"verdict": A}', "The better answer is A.", "[" * 100_000,
    '{"verdict":' * 5000, "\x00", '{"verdict": ' + "9" * 5000 + "}", '{"score": 5, "score": 6}',
    '```json\n{"verdict": "A"}\n```\n```json\n{"verdict": "B"}\n```',
    '<think>{"verdict": "A"}', '[THINK] Hm. {"verdict": "A"}', "<think>A</think>",
    '> {"verdict": "A"}', 'It may say "{"verdict": "A"}" to all.',
    '{"verdict": "A"} or {"verdict": "tie"}', '{"verdict": "A"} or {"verdict": B}',
    '<|channel|>analysis<|message|>{"verdict": "A"}',
]  # fmt: skip
NO_VERDICTS = [
    "null", '""', '"A or B"', '"C"', '["A"]', '{"A": 1}', "1", "true",
    '"\ud800"', '"A\\u0000"',
]  # fmt: skip
NO_SCORES = [
    "0.99", "10.5", "-3", "NaN", "Infinity", '"4/5"', "true", "null", "1e999", "[5]", "9" * 400,
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "text"),
    [
        *((task, text) for task in ("pairwise", "pointwise") for text in NEITHER),
        *(("pairwise", f'{{"verdict": {value}}}') for value in NO_VERDICTS),
        *(("pointwise", f'{{"score": {value}}}') for value in NO_SCORES),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_answers_that_are_no_verdict(task: str, text: str | None) -> None:
    with pytest.raises(Unparseable) as caught:
        maker(task).read(text)
    assert 0 < len(str(caught.value)) < 250
    with pytest.raises(Unparseable, match="tie"):
        maker(ties=False).read('{"verdict": "tie"}')  # it was not offered


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.integers(0, 20), st.integers(0, 20))
def test_damage_never_turns_a_verdict_into_another(noise: str, cut: int, drop: int) -> None:
    whole = '{"verdict": "B"}'
    for text in (noise, whole[:cut], whole[cut:], whole[:cut] + noise + whole[cut + drop :]):
        try:
            verdict = maker().read(text)
        except Unparseable:
            continue
        assert verdict == "B"


def test_several_local_judges_share_one_question() -> None:
    judges = [
        {"model": "a", "route": {"policy": "threshold", "threshold": 0.9}},
        {"model": "b", "rubric": "Be brief."},
    ]
    both = builders.config(judge=..., judges=judges)
    keys = {QuestionMaker(one).of_example(PAIR)[0].key for one in (both, *both.tiers())}
    assert keys == {key(rubric="Be brief.")}


def test_the_table_is_dated_and_every_line_is_a_price() -> None:
    head = json.loads(resources.files("ray_judge.escalation").joinpath("prices.json").read_text())
    assert head["source"].startswith("genai-prices ")
    assert head["as_of"] >= "2026-11-28"
    assert len(price_table()) > 2500
    for name in price_table():
        price = price_of(name)
        assert price.output >= 0
        assert 0 <= (price.batch_factor or 0) <= 1
        assert price.long_context is None or price.long_context.input_factor >= 1


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("GPT-4.1-2025-04-14", "gpt-4.1"), ("gpt-4-1106-preview", "gpt-4-turbo"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("azure/gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("some-proxy/ft:gpt-4.1-mini-2025-04-14:acme::abc", "ft:gpt-4.1-mini"),
        ("ft:gpt-4o-2024-08-06:acme:judge:abc", "ft:gpt-4o"),
    ],
)  # fmt: skip
def test_a_model_has_many_names(name: str, listed: str) -> None:
    assert price_of(name) == price_of(listed)


OVERRIDE = {
    "input_usd_per_mtok": 0.1,
    "output_usd_per_mtok": "0.3",
    "batch_factor": Decimal("0.25"),
}


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("gpt-4.1", "2 0.5 8"),
        ("gpt-4o-2024-05-13", "5 5 15"),  # its family became cheaper
        ("ft:gpt-4.1:acme::abc", "3 0.75 12"),  # dearer than what it was tuned from
        ("deepseek-chat", "0.27 0.07 1.1"),  # by day; less at night
        ("command-r", "0.15 0.15 0.6"),
        ("cohere/command-r", "0.5 0.5 1.5"),  # a gateway's name, and that one is dearer
        ("groq/openai/gpt-oss-120b", "0.15 0.075 0.6"),
        ("gpt-oss-120b", "0.35 0.35 0.75"),  # the dearest of many sellers
        ("my-llama", "0.1 0.1 0.3"),
    ],
)
def test_rates(model: str, rates: str) -> None:
    price = price_of(model, OVERRIDE if model == "my-llama" else None)
    found = [price.input, price.cached_input, price.output]
    assert found == [Decimal(rate) for rate in rates.split()]
    assert model != "my-llama" or price.batch_factor == Decimal("0.25")


@pytest.mark.parametrize(
    ("model", "nearest"),
    [("my-llama", ""), ("gpt-4.1-turbo", "gpt-4-turbo"), ("gpt-99", "gpt-5"), ("", ""),
     ("gpt-4.1-2025", "gpt-4.1"), ("ft:gpt-5:acme::abc", ""), ("sonar", "")],
)  # fmt: skip
def test_an_unknown_model_names_the_way_out(model: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"strong\.price.*{nearest}"):
        price_of(model)


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "cheap", None])
def test_what_is_no_price(bad: Any) -> None:
    with pytest.raises(ValidationError):
        PriceConfig.model_validate({"input_usd_per_mtok": bad, "output_usd_per_mtok": 1})


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        ("gpt-4.1", Usage(1_000_000, 0), "2"),
        ("gpt-4.1", Usage(1000, 100, cached_input_tokens=400), "0.0022"),
        ("gpt-4.1", Usage(1000, 100, reasoning_tokens=90), "0.0028"),
        ("gpt-4.1", Usage(1000, 100, tier="priority"), "0.0049"),
        ("gpt-4.1", Usage(1000, 100, tier="batch"), "0.0014"),
        ("gpt-5", Usage(1000, 100, tier="flex"), "0.001125"),
        # The batch table of this family lists no price for cached input.
        ("gpt-4.1", Usage(1000, 0, 1000, tier="batch"), "0.001"),
        ("gpt-5", Usage(1000, 0, 1000, tier="batch"), "0.0000625"),
        ("gpt-6-sol", Usage(1000, 0, cache_write_tokens=1000), "0.0025"),
        ("gpt-6-sol", Usage(272_000, 1000), "0.554"),
        ("gpt-6-sol", Usage(272_001, 1000), "1.103004"),  # a long context
        ("tiny", Usage(1, 0), "0.000000001"),  # rounded up to a nano-dollar
        ("tiny", Usage(0, 0), "0"),
    ],
)
def test_costs_by_hand(model: str, usage: Usage, usd: str) -> None:
    tiny = {"input_usd_per_mtok": "0.0001", "output_usd_per_mtok": 0}
    assert cost(price_of(model, tiny if model == "tiny" else None), usage) == Decimal(usd)


@pytest.mark.parametrize(
    ("model", "tier", "read", "written", "usd"),
    [
        ("gpt-4.1", "default", 1000, 0, "0.0015"),
        ("gpt-4.1", "batch", 1000, 0, "0"),
        ("gpt-4.1", "priority", 1000, 1000, "0.002625"),
        ("gpt-6-sol", "default", 0, 1000, "-0.0005"),  # writing costs a quarter more than input
    ],
)
def test_what_a_cache_saved(model: str, tier: str, read: int, written: int, usd: str) -> None:
    price = price_of(model)
    assert cache_saving(price, tier, read, written) == Decimal(usd)
    plain, cached = (Usage(2000, 0, *n, tier=tier) for n in ((0, 0), (read, written)))
    assert cost(price, plain) - cost(price, cached) == Decimal(usd)


def test_flex_may_be_served_at_the_standard_price_but_a_batch_never() -> None:
    sizes = {"input_tokens": 1000, "output_tokens": 100}
    asked = [maker(model="gpt-5", mode=mode).strong for mode in ("flex", "online", "batch")]
    flex, full, batch = (
        max_cost(price_of("gpt-5"), **sizes, tiers=billable_tiers(strong)) for strong in asked
    )
    assert flex == full == batch * 2
    sizes = {"input_tokens": 272_001, "output_tokens": 1000}
    assert max_cost(price_of("gpt-6-sol"), **sizes, tiers=["default"]) == Decimal("1.375005")


DEAR_CACHE = "~deepseek/deepseek-pro-latest"
"""Reading from its cache costs more than its input."""
MODELS = ["gpt-4.1", "gpt-5", "gpt-6-sol", "o3", "gpt-4", "claude-sonnet-4-5", DEAR_CACHE]
TOKENS = st.integers(0, 400_000)


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 1000))
def test_the_lease_covers_every_bill(
    model: str, tokens: int, cached: int, written: int, output: int, slack: int
) -> None:
    price = price_of(model)
    bounds = {"input_tokens": tokens + slack, "output_tokens": output + slack}
    assert (price.cached_input > price.input) == (model == DEAR_CACHE)
    for mode, base_url in (("online", None), ("online", GATEWAY), ("flex", None), ("batch", None)):
        tiers = billable_tiers(maker(mode=mode, base_url=base_url).strong)
        for served in {*tiers, mode} - {"online"}:
            usage = Usage(tokens, output, min(cached, tokens), min(written, tokens), 0, tier=served)
            assert cost(price, usage) <= max_cost(price, **bounds, tiers=tiers)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_bound_is_at_least_the_bytes(texts: list[str]) -> None:
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    messages = [{"role": "user", "content": text} for text in texts]
    assert input_token_bound(messages) > size + 4 * len(texts)
    assert input_token_bound(messages, {"type": "json_schema"}) > input_token_bound(messages)
    assert input_token_estimate(messages) <= input_token_bound(messages)
