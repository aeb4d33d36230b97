"""The strong judge's question: one canonical form, and no verdict that was not given."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_judge.config import parse
from ray_judge.escalation.question import (
    StrongQuestion,
    Unparseable,
    canonical_key,
    combine,
    in_words,
)
from ray_judge.records import Example
from tests.provider.requests import format_defect

pytestmark = pytest.mark.timeout(60)

PAIR = Example("Say hi.", ("hi", "hello"))


def question(task: str = "pairwise", **strong: Any) -> StrongQuestion:
    return StrongQuestion(
        parse(
            {
                "input": "i",
                "output": "o",
                "task": task,
                "judge": {"model": "m", "rubric": strong.pop("judge_rubric", None)},
                "route": {"fraction": 0.5},
                "strong": {"model": "gpt-4.1", "max_cost_usd": 1, **strong},
            }
        )
    )


def key(example: Example = PAIR, **strong: Any) -> str:
    return question(**strong).keys(example)[0]


def test_the_key_is_the_same_in_every_process() -> None:
    """The journal is read by other processes, on other days: no salted hash may get in."""
    code = (
        "from ray_judge.escalation.question import *; from ray_judge.records import Example;"
        "from ray_judge.config import parse;"
        "c = parse({'input': 'i', 'output': 'o', 'judge': {'model': 'm'}, 'route': {'fraction': "
        "0.5}, 'strong': {'model': 'gpt-4.1', 'max_cost_usd': 1}});"
        "print(StrongQuestion(c).keys(Example('Say hi.', ('hi', 'hello')))[0])"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        assert out.stdout.decode().strip() == key()


def test_what_the_key_depends_on() -> None:
    keys = {
        "plain": key(),
        "instruction": key(Example("Say ho.", ("hi", "hello"))),
        "swapped": key(PAIR.swapped()),
        "input": key(Example("Say hi.", ("hi", "hello"), input="x")),
        "reference": key(Example("Say hi.", ("hi", "hello"), reference="x")),
        "row's rubric": key(Example("Say hi.", ("hi", "hello"), rubric="x")),
        "rubric": key(rubric="Be strict."),
        "model": key(model="gpt-4o"),
        "ties": key(ties=False),
        "temperature": key(temperature=0),
        "length": key(max_output_tokens=10),
        "field": key(max_tokens_field="max_tokens"),
    }
    assert len(set(keys.values())) == len(keys)


def test_a_key_that_was_on_file_before_probabilities_were_asked_for() -> None:
    """Journals hold it: without `abstain_below` it is what it always was."""
    assert key() == "6cdb5c653e72677aabf6e839475ce933f69bb93b06a0635e391999b84d24189c"


def test_probabilities_are_part_of_the_question_and_how_sure_is_sure_is_not() -> None:
    assert "logprobs" not in question().body(PAIR)
    body = question(abstain_below=0.7).body(PAIR)
    assert body == {**question().body(PAIR), "logprobs": True, "top_logprobs": 20}
    assert in_words(body)["logprobs"] is True
    assert key(abstain_below=0.7) == key(abstain_below=0.8) != key()


def test_what_the_key_does_not_depend_on() -> None:
    assert key(max_cost_usd=7, concurrency=1, base_url="http://127.0.0.1:1/v1") == key()
    assert key(judge_rubric="Be kind.") == key(rubric="Be kind.")
    body = question().body(PAIR)
    assert canonical_key(dict(reversed(body.items()))) == canonical_key(body)


def test_text_that_is_no_unicode_has_a_key() -> None:
    assert canonical_key({"a": "\ud800"}) != canonical_key({"a": "\ud801"})


def test_both_orders_are_two_questions() -> None:
    asked = question(swap=True)
    assert asked.keys(PAIR) == asked.keys(PAIR.swapped())[::-1]
    assert len(set(asked.keys(PAIR))) == 2
    assert asked.keys(PAIR)[0] == key()


@pytest.mark.parametrize("task", ["pairwise", "pointwise"])
def test_the_schema_is_strict_as_providers_demand(task: str) -> None:
    example = PAIR if task == "pairwise" else Example("Say hi.", ("hi",))
    body = question(task).body(example)
    assert body["response_format"]["json_schema"]["strict"] is True
    assert format_defect(body["response_format"]) is None
    loose = json.loads(json.dumps(body["response_format"]))
    del loose["json_schema"]["schema"]["additionalProperties"]
    assert format_defect(loose) is not None  # the check does check


def test_every_text_is_in_the_question_under_its_heading() -> None:
    example = Example("do", ("one", "two"), input="given", reference="gold", rubric="crisp")
    text = question().body(example)["messages"][1]["content"]
    parts = ["[Instruction]\ndo", "[Input]\ngiven", "[Reference answer]\ngold",
             "[Criteria]\ncrisp", "[Answer A]\none", "[Answer B]\ntwo"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_in_words_is_the_same_without_the_format() -> None:
    body = question().body(PAIR)
    assert in_words(body) == {k: v for k, v in body.items() if k != "response_format"}
    assert '"verdict"' in body["messages"][1]["content"]  # so the words alone say what is wanted


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "A"}', "A"),
        (' \n{"verdict":"tie"}\n', "tie"),
        ('{"reason": "x", "verdict": "B"}', "B"),
        ('```json\n{"verdict": "B"}\n```', "B"),
        ('```\n{"verdict": "A"}```', "A"),
        ('{"verdict": "\\u0041"}', "A"),
    ],
)
def test_answers_that_are_verdicts(text: str, verdict: str) -> None:
    assert question().read(text) == verdict


NOT_VERDICTS = [
    None, "", "  \n", "A", '"A"', "null", "true", "[]", "{}", '["A"]', '{"verdict": null}',
    '{"verdict": ""}', '{"verdict": "a"}', '{"verdict": "A "}', '{"verdict": "A or B"}',
    '{"verdict": "C"}', '{"verdict": ["A"]}', '{"verdict": {"A": 1}}', '{"verdict": 1}',
    '{"verdict": true}', '{"Verdict": "A"}', '{"verdict ": "A"}', '{"score": 5}',
    '{"verdict": "A"', '{"verdict": "A"},,', '{"verdict": "A"}{"verdict": "B"}',
    '{"verdict": "A", "verdict": "B"}', '{"answer": {"verdict": "A"}}', "{'verdict': 'A'}",
    '{"verdict": A}', "The better answer is A.", '```json\n{"verdict": "A"}\n', "[" * 100_000,
    '{"verdict":' * 5000, '{"verdict": "\ud800"}', '{"verdict": "A\\u0000"}', "\x00",
    '{"verdict": ' + "9" * 5000 + "}",
    '```json\n{"verdict": "A"}\n```\n```json\n{"verdict": "B"}\n```',
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_VERDICTS, ids=lambda text: repr(text)[:30])
def test_answers_that_are_no_verdict(text: str | None) -> None:
    for task in ("pairwise", "pointwise"):
        if task == "pairwise" or text != '{"score": 5}':
            with pytest.raises(Unparseable) as caught:
                question(task).read(text)
            assert 0 < len(str(caught.value)) < 250


def test_a_tie_that_was_not_offered_is_no_verdict() -> None:
    with pytest.raises(Unparseable, match="tie"):
        question(ties=False).read('{"verdict": "tie"}')


@pytest.mark.parametrize(
    ("text", "score"),
    [('{"score": 5}', 5.0), ('{"score": 1}', 1.0), ('{"score": 10}', 10.0), ('{"score": 7.5}', 7.5),
     ('{"score": 1e1}', 10.0)],
)  # fmt: skip
def test_scores(text: str, score: float) -> None:
    value = question("pointwise").read(text)
    assert value == score and isinstance(value, float)


@pytest.mark.parametrize(
    "text",
    ['{"score": 0.99}', '{"score": 10.5}', '{"score": -3}', '{"score": NaN}', '{"score": Infinity}',
     '{"score": "5"}', '{"score": true}', '{"score": null}', '{"score": 1e999}', '{"score": [5]}',
     '{"score": ' + "9" * 400 + "}", '{"score": 5, "score": 6}', '{"verdict": "A"}', "5"],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_no_scores(text: str) -> None:
    with pytest.raises(Unparseable):
        question("pointwise").read(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.integers(0, 20), st.integers(0, 20))
def test_damage_never_turns_a_verdict_into_another(noise: str, cut: int, drop: int) -> None:
    whole = '{"verdict": "B"}'
    for text in (noise, whole[:cut], whole[cut:], whole[:cut] + noise + whole[cut + drop :]):
        try:
            verdict = question().read(text)
        except Unparseable:
            continue
        assert json.loads(text.strip().strip("`").removeprefix("json"))["verdict"] == verdict


# -- combining -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [("A", "B", "A"), ("B", "A", "B"), ("tie", "tie", "tie"), ("A", "A", "tie"), ("B", "B", "tie"),
     ("A", "tie", "tie"), ("tie", "B", "tie")],
)  # fmt: skip
def test_two_orders_that_disagree_are_a_tie(first: str, second: str, verdict: str) -> None:
    assert combine([first, second]) == verdict


def test_one_order_is_itself() -> None:
    assert combine(["B"]) == "B"
    assert combine([3.0]) == 3.0


# --- how probable the verdict was -----------------------------------------------------------------


def listed(*tokens: str, **others: float) -> list[dict[str, Any]]:
    """Tokens that were certain, but for the one that `others` lists."""
    found = []
    for token in tokens:
        here = others if token in others else {token: 1.0}
        top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in here.items()]
        found.append({"token": token, "logprob": math.log(here[token]), "top_logprobs": top})
    return found


def test_the_probability_of_a_verdict_and_of_a_tie() -> None:
    given_ = listed('{"verdict":"', "B", '"}', A=0.2, B=0.5, tie=0.3)
    asked = question(abstain_below=0.5)
    assert asked.probs('{"verdict":"B"}', given_, "B") == pytest.approx((0.5, 0.3))
    assert asked.probs('{"verdict":"B"}', None, "B") == (None, None)
    assert question().probs('{"verdict":"B"}', given_, "B") == (None, None)
    no_ties = question(abstain_below=0.5, ties=False)
    assert no_ties.probs('{"verdict":"B"}', given_, "B") == pytest.approx((5 / 7, 0))


def test_the_probability_of_a_score() -> None:
    given_ = listed('{"score":', "7", "}", **{"7": 0.25, "8": 0.75})
    asked = question("pointwise", abstain_below=0.5)
    assert asked.probs('{"score":7}', given_, 7.0) == (pytest.approx(0.25), None)


def test_several_local_judges_share_one_question() -> None:
    """Each judge's phase A names the question that phase B asks, whoever has the rubric."""
    judges = [
        {"model": "a", "route": {"policy": "threshold", "threshold": 0.9}},
        {"model": "b", "rubric": "Be brief."},
    ]
    run = {"input": "i", "output": "o", "route": {"fraction": 0.5}}
    config = parse({**run, "judges": judges, "strong": {"model": "gpt-4.1", "max_cost_usd": 1}})
    keys = {tuple(StrongQuestion(one).keys(PAIR)) for one in (config, *config.tiers())}
    assert keys == {(key(rubric="Be brief."),)}
