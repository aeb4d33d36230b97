"""How probable a verdict was: read off the tokens, whatever the way they cut the answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray_judge.demo.server.logprobs import logprobs_for

from ray_judge.escalation.verdict_prob import (
    OTHER,
    SAID,
    Numbers,
    Reading,
    Words,
    value_span,
    verdict_probs,
)

pytestmark = pytest.mark.timeout(60)

PAIR = Words(("A", "B", "tie"))
TEN = Numbers(1, 10)
Step = tuple[str, dict[str, float]]
"""A token that was taken, and the probability of every token listed in its place."""


def entry(token: str, prob: float, *, as_bytes: bool = True) -> dict[str, Any]:
    logprob = math.log(prob) if prob > 0 else -9999.0
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if as_bytes else None}


def shown(*steps: Step | str, as_bytes: bool = True) -> list[dict[str, Any]]:
    """The server's list; a bare token was certain."""
    listed = []
    for step in steps:
        token, others = step if isinstance(step, tuple) else (step, {step: 1.0})
        top = [entry(t, p, as_bytes=as_bytes) for t, p in others.items()]
        here = entry(token, others.get(token, 0.0), as_bytes=as_bytes)
        listed.append({**here, "top_logprobs": top})
    return listed


def probs(*steps: Step | str, reading: Reading = PAIR, text: str | None = None) -> Any:
    """Probabilities by verdict, of an answer made of these tokens."""
    whole = "".join(step[0] if isinstance(step, tuple) else step for step in steps)
    field = "verdict" if isinstance(reading, Words) else "score"
    return verdict_probs(text or whole, shown(*steps), field, reading)


def near(**wanted: float) -> Any:
    return pytest.approx(wanted)


# --- verdicts in words --------------------------------------------------------------------------


def test_a_verdict_of_one_token() -> None:
    step = ("A", {"A": 0.6, "B": 0.3, "tie": 0.1})
    assert probs('{"', "verdict", '":"', step, '"}') == near(A=0.6, B=0.3, tie=0.1)


def test_the_rest_is_normalised_so_a_mask_makes_no_difference() -> None:
    """No verdicts are left out: a server that masks them and one that does not say the same."""
    unmasked = ("A", {"A": 0.48, "B": 0.24, "tie": 0.08, "C": 0.15, "a": 0.05})
    assert probs('{"verdict":"', unmasked, '"}') == near(A=0.6, B=0.3, tie=0.1)


def test_spellings_of_one_verdict_are_summed() -> None:
    step = ("A", {"A": 0.3, 'A"': 0.2, 'A"}': 0.1, "B": 0.3, "t": 0.04, "tie": 0.06})
    assert probs('{"verdict":"', step, '"}') == near(A=0.6, B=0.3, tie=0.1)


@pytest.mark.parametrize("opening", ['"', '":"', '": "', '"verdict":"', '{"verdict":"'])
def test_a_token_that_opens_the_value_and_has_it(opening: str) -> None:
    """The quote, and what stands before it, may be in one token with the verdict."""
    before = '{"verdict":'[: -len(opening) + 1] if opening[-2:] == ':"' else '{"verdict":'
    before = '{"verdict' if opening == '": "' else before
    step = (f"{opening}B", {f"{opening}A": 0.3, f"{opening}B": 0.6, f"{opening}tie": 0.1})
    steps = [part for part in (before, step, '"}') if part]
    assert probs(*steps) == near(A=0.3, B=0.6, tie=0.1)


def test_white_space_before_the_value_is_not_the_verdicts() -> None:
    """An opening that all verdicts share tells nothing; in another spacing the verdict counts."""
    step = ('":"A', {'":"A': 0.3, '":"B': 0.15, '": "': 0.4, '":': 0.1, '": "B': 0.05})
    assert probs('{"verdict', step, '"}') == near(A=0.6, B=0.4)
    opened = ('":"', {'":"': 0.6, '":': 0.3, '": "': 0.1})
    letter = ("A", {"A": 0.7, "B": 0.3})
    assert probs('{"verdict', opened, letter, '"}') == near(A=0.7, B=0.3)


def test_a_verdict_of_several_tokens() -> None:
    """What was listed in the first place counts there, and only what was taken divides further."""
    quote = ('"', {'"': 0.8, '"A': 0.2})
    first = ("t", {"t": 0.5, "A": 0.25, "tie": 0.25})
    rest = ("ie", {"ie": 0.9, "oo": 0.1})
    assert probs('{"verdict":', quote, first, rest, '"}') == near(
        A=0.2 + 0.8 * 0.25, tie=0.8 * 0.75
    )


def test_what_follows_the_verdict_does_not_matter() -> None:
    step = ("A", {"A": 0.6, "B": 0.4})
    after = ('"}', {'"}': 0.5, '" }': 0.3, '"\n}': 0.2})
    assert probs('{"verdict":"', step, after) == near(A=0.6, B=0.4)
    assert probs('{"verdict":"', step, '","more":', ('"B"', {'"B"': 1.0}), "}") == near(
        A=0.6, B=0.4
    )


def test_what_is_not_listed_is_nobodys() -> None:
    """A short list makes no answer surer than it shows."""
    assert probs('{"verdict":"', ("A", {"A": 0.5, "B": 0.2}), '"}') == near(A=0.5, B=0.2)
    lonely = shown('{"verdict":"', ("A", {"A": 0.4}), '"}')
    for one in lonely:
        one["top_logprobs"] = []
    assert verdict_probs('{"verdict":"A"}', lonely, "verdict", PAIR) == near(A=0.4)


def test_the_token_taken_counts_though_it_is_not_listed() -> None:
    listed = shown('{"verdict":"', ("A", {"A": 0.1, "B": 0.7, "tie": 0.2}), '"}')
    listed[1]["top_logprobs"] = listed[1]["top_logprobs"][1:]
    assert verdict_probs('{"verdict":"A"}', listed, "verdict", PAIR) == near(A=0.1, B=0.7, tie=0.2)


def test_an_answer_in_a_fence_and_with_other_fields() -> None:
    step = ("B", {"A": 0.2, "B": 0.8})
    opening = (
        '```json\n{"reason": "\\"verdict\\": \\"A\\"", "inner": {"verdict": "A"}, "verdict": "'
    )
    assert probs(opening, step, '"}', "\n```") == near(A=0.2, B=0.8)


def test_tokens_around_the_answer() -> None:
    """Some servers list what is not in the content: thoughts before it, an end mark behind it."""
    step = ("A", {"A": 0.6, "B": 0.4})
    text = '{"verdict":"A"}'
    assert probs('{"verdict":"', step, '"}', "<|end|>", text=text) == near(A=0.6, B=0.4)
    assert probs("<think>", '{"verdict":"', step, '"}', text=text) == near(A=0.6, B=0.4)


def test_bytes_that_are_parts_of_a_character() -> None:
    """Two tokens share the é; its bytes count, not the sign that stands in for half of it."""
    text = '{"reason":"é","verdict":"A"}'
    listed = shown('{"reason":"', "?", "?", '","verdict":"', ("A", {"A": 0.6, "B": 0.4}), '"}')
    for number, byte in zip((1, 2), "é".encode(), strict=True):
        listed[number] |= {"token": "\ufffd", "bytes": [byte]}
    assert verdict_probs(text, listed, "verdict", PAIR) == near(A=0.6, B=0.4)
    for number in (1, 2):
        del listed[number]["bytes"]
    assert verdict_probs(text, listed, "verdict", PAIR) is None


def test_tokens_without_bytes() -> None:
    steps = ('{"verdict":"', ("A", {"A": 0.6, "B": 0.4}), '"}')
    listed = shown(*steps, as_bytes=False)
    assert verdict_probs('{"verdict":"A"}', listed, "verdict", PAIR) == near(A=0.6, B=0.4)


# --- scores ---------------------------------------------------------------------------------------


def test_a_score_of_one_token_is_not_its_first_digit() -> None:
    steps = ('{"score":', ("10", {"10": 0.6, "1": 0.3, "9": 0.1}), "}")
    assert probs(*steps, reading=TEN) == near(said=0.6, other=0.4)
    steps = ('{"score":', ("1", {"10": 0.6, "1": 0.3, "9": 0.1}), "}")
    assert probs(*steps, reading=TEN) == near(said=0.3, other=0.7)


def test_digits_divide_where_they_diverge() -> None:
    first = ("1", {"1": 0.5, "9": 0.3, "8": 0.2})
    ten = ("0", {"0": 0.8, "}": 0.15, ".": 0.05})
    assert probs('{"score":', first, ten, "}", reading=TEN) == near(said=0.4, other=0.6)
    one = ("}", {"0": 0.8, "}": 0.15, ".": 0.05})
    assert probs('{"score":', first, one, reading=TEN) == near(said=0.075, other=0.925)


def test_decimals() -> None:
    steps = ('{"score":', ("7", {"7": 0.8, "8": 0.2}), (".", {".": 0.5, "}": 0.5}),
             ("5", {"5": 0.5, "25": 0.5}), ("}", {"}": 0.9, "5": 0.1}))  # fmt: skip
    assert probs(*steps, reading=TEN)[SAID] == pytest.approx(0.8 * 0.5 * 0.5 * 0.9)


def test_the_same_score_written_otherwise() -> None:
    step = ("7}", {"7}": 0.5, "7.0}": 0.2, "8}": 0.3})
    assert probs('{"score":', step, reading=TEN) == near(said=0.7, other=0.3)


def test_numbers_that_are_no_score_are_left_out() -> None:
    step = ("7", {"7": 0.4, "8": 0.1, "70": 0.2, "x": 0.2, "-3": 0.1})
    assert probs('{"score":', step, "}", reading=TEN)[SAID] == pytest.approx(0.4 / 0.6)
    step = ("7}", {"7}": 0.4, "8}": 0.1, "70}": 0.2, "0}": 0.3})
    assert probs('{"score":', step, reading=TEN) == near(said=0.8, other=0.2)


def test_a_number_on_its_way_tells_nothing_yet() -> None:
    assert TEN.tells("7.", "7.5") is None and TEN.tells("7", "7.5") == OTHER
    assert TEN.tells("7.", "7") == OTHER and TEN.tells("7,", "7") == SAID
    assert TEN.tells("", "7") is None and TEN.tells("7x", "7") is None


# --- nothing is guessed ---------------------------------------------------------------------------


GOOD = shown('{"verdict":"', ("A", {"A": 0.6, "B": 0.4}), '"}')


@pytest.mark.parametrize(
    "given",
    [None, [], {}, "A", [None], [1], [{}], [{"token": 3}], GOOD[:2], GOOD[1:], [*GOOD, *GOOD][1:5],
     [{**GOOD[0], "bytes": [999]}, *GOOD[1:]], [{**GOOD[0], "bytes": ["A"]}, *GOOD[1:]],
     shown('{"verdict":"', "B", '"}')],
)  # fmt: skip
def test_a_list_that_does_not_belong_to_the_text(given: Any) -> None:
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) is None


@pytest.mark.parametrize(
    "logprob",
    [None, True, "-1", math.nan, 0.5, math.inf, 10**400],
    ids=lambda value: str(value)[:9],
)
def test_figures_that_make_no_sense(logprob: Any) -> None:
    top = [{**GOOD[1]["top_logprobs"][0], "logprob": logprob}]
    given = [GOOD[0], {**GOOD[1], "top_logprobs": top}, GOOD[2]]
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) is None
    given = [GOOD[0], {**GOOD[1], "top_logprobs": [], "logprob": logprob}, GOOD[2]]
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) is None
    given = [GOOD[0], {**GOOD[1], "top_logprobs": 7}, GOOD[2]]
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) is None


@pytest.mark.parametrize("zero", [-9999.0, -math.inf, -(10**400)], ids=["9999", "inf", "huge"])
def test_what_the_server_calls_impossible_has_probability_zero(zero: Any) -> None:
    top = [GOOD[1]["top_logprobs"][0], {"token": "B", "logprob": zero, "bytes": [66]}]
    given = [GOOD[0], {**GOOD[1], "top_logprobs": top}, GOOD[2]]
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) == near(A=0.6, B=0.0)


def test_rounding_puts_no_probability_above_one() -> None:
    given = [dict(one) for one in shown('{"verdict":"', "A", '"}')]
    given[1] |= {"logprob": 1e-7, "top_logprobs": []}
    assert verdict_probs('{"verdict":"A"}', given, "verdict", PAIR) == {"A": 1.0}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"verdict"', '{"verdict"}', '{"score":3}', '{"verdict":', "{} x"]
)
def test_no_value(text: str) -> None:
    assert value_span(text, "verdict") is None
    assert verdict_probs(text, GOOD, "verdict", PAIR) is None


def test_an_escaped_spelling_is_not_matched() -> None:
    text = '{"verdict":"\\u0041"}'
    assert verdict_probs(text, shown('{"verdict":"', "\\u0041", '"}'), "verdict", PAIR) is None


# --- against the simulated judge, which is a known distribution over whole answers ----------------

STRAY = 1e-3
"""The simulated judge gives so much, and less, to tokens that no answer has."""
CUTS = st.sampled_from(["words", "straddling", "characters"])


@settings(max_examples=50)
@given(st.sampled_from(["A", "B", "tie"]), st.floats(0.01, 0.999), CUTS, st.booleans())
def test_the_probability_that_was_set_comes_back(
    verdict: str, certainty: float, tokens: str, reason: bool
) -> None:
    document = {"reason": 'éa"B"'} if reason else {}
    text = json.dumps({**document, "verdict": verdict}, separators=(",", ":"))
    given_ = logprobs_for(text, certainty, 20, tokens, (1, 10))["content"]
    found = verdict_probs(text, given_, "verdict", PAIR)
    assert found is not None and found[verdict] == pytest.approx(certainty, abs=STRAY)
    assert sum(found.values()) == pytest.approx(1, abs=STRAY)


@settings(max_examples=50)
@given(st.one_of(st.integers(1, 10), st.sampled_from([1.5, 5.437, 9.99])), st.floats(0.01, 0.999),
       CUTS)  # fmt: skip
def test_scores_that_begin_alike_are_told_apart(
    score: float, certainty: float, tokens: str
) -> None:
    text = json.dumps({"score": score}, separators=(",", ":"))
    given_ = logprobs_for(text, certainty, 20, tokens, (1, 10))["content"]
    found = verdict_probs(text, given_, "score", TEN)
    assert found is not None and found[SAID] == pytest.approx(certainty, abs=STRAY)


@settings(max_examples=50)
@given(st.floats(0.01, 0.999), st.integers(0, 20), CUTS)
def test_a_shorter_list_never_makes_an_answer_surer(
    certainty: float, top: int, tokens: str
) -> None:
    text = '{"verdict":"tie"}'
    given_ = logprobs_for(text, certainty, top, tokens, (1, 10))["content"]
    found = verdict_probs(text, given_, "verdict", PAIR)
    assert found is not None and found["tie"] <= certainty + 1e-3


NAMES = st.sampled_from(["token", "logprob", "bytes", "top_logprobs"])
LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=3)
JSON = st.recursive(LEAVES, lambda i: st.lists(i, max_size=3) | st.dictionaries(NAMES, i))


@settings(max_examples=50)
@given(JSON)
def test_whatever_a_server_sends_nothing_breaks(given_: Any) -> None:
    found = verdict_probs('{"verdict":"A"}', given_, "verdict", PAIR)
    assert found is None or all(0 <= prob <= 1 for prob in found.values())
