"""The demo's synthetic pairs are right by construction, balanced, and split as promised."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict

import pytest

from ray_judge.demo import tasks
from ray_judge.demo.command import MODEL
from ray_judge.demo.tasks import IN_DOMAIN, OUT_OF_DOMAIN, Pair, make_pairs
from ray_judge.judging.formats.families import DEMO, DEMO_TEMPLATE
from tools.demo_judge.tokenizer import BOS, EOS, PAD, VOCAB_SIZE
from tools.demo_judge.unanswerable import BANK, unanswerable

ALL = (*IN_DOMAIN, *OUT_OF_DOMAIN)


SOLUTIONS: dict[str, Callable[[str], str]] = {
    "copy": str, "upper": str.upper, "first_word": lambda x: x.split()[0],
    "last_word": lambda x: x.split()[-1], "hyphens": lambda x: x.replace(" ", "-"),
    "spell": " ".join, "twice": lambda x: f"{x} {x}", "behead": lambda x: x[1:],
    "swap_case": str.swapcase, "remove_vowels": lambda x: re.sub("[aeiou]", "", x),
    "shift": lambda x: x.translate(str.maketrans(tasks.LOWER, tasks.LOWER[1:] + "a")),
    "double_letters": lambda x: re.sub("(.)", r"\1\1", x), "every_second": lambda x: x[1::2],
    "longest_word": lambda x: max(x.split(), key=len), "sort_letters": lambda x: "".join(sorted(x)),
}  # fmt: skip


def solve(pair: Pair) -> str:
    """The right answer, worked out anew from the instruction's text alone."""
    text = pair.instruction.rpartition(": ")[2]
    if pair.kind == "append":
        return text + re.findall(r"(?:Put|Append|Add) (.) ", pair.instruction)[0]
    if pair.kind == "subtract":
        numbers = [int(number) for number in re.findall(r"\d+", pair.instruction)]
        return str(max(numbers) - min(numbers))
    return SOLUTIONS[pair.kind](text)


def test_the_same_arguments_give_the_same_pairs() -> None:
    first = make_pairs(200, seed=3, kinds=ALL)
    assert first == make_pairs(200, seed=3, kinds=ALL)
    assert first[:50] == make_pairs(50, seed=3, kinds=ALL)
    others = make_pairs(200, seed=4, kinds=ALL)
    assert [pair.instruction for pair in first] != [pair.instruction for pair in others]
    assert len({pair.id for pair in first}) == 200


@pytest.mark.parametrize("kind", ALL)
def test_labels_are_right_and_neither_position_nor_length_gives_them_away(kind: str) -> None:
    pairs = make_pairs(2000, seed=5, kinds=[kind])
    longer = shorter = 0
    for pair in pairs:
        right, wrong = pair.response_a, pair.response_b
        if pair.label == "B":
            right, wrong = wrong, right
        assert right == solve(pair) != wrong, pair
        assert pair.domain == ("in" if kind in IN_DOMAIN else "out")
        longer += len(wrong) > len(right)
        shorter += len(wrong) < len(right)
    assert 0.45 < sum(pair.label == "A" for pair in pairs) / len(pairs) < 0.55
    # A judge that always took the longer answer (or always the shorter), guessing at a tie.
    assert abs(longer - shorter) / (2 * len(pairs)) < 0.25


def _phrases(kinds: tuple[str, ...]) -> set[str]:
    """What instructions say before the text they are about ("subtract" has no colon)."""
    pairs = make_pairs(300 * len(kinds), seed=2, kinds=kinds)
    found = {re.sub(r"\d+", "#", pair.instruction.rpartition(":")[0]) for pair in pairs}
    return {phrase for phrase in found if phrase}


def test_training_never_sees_an_out_of_domain_phrase() -> None:
    assert len(set(IN_DOMAIN)) >= 4 and len(set(OUT_OF_DOMAIN) - set(IN_DOMAIN)) >= 4
    assert not _phrases(IN_DOMAIN) & _phrases(OUT_OF_DOMAIN)
    rng = random.Random(1)
    seen = {unanswerable(rng)[0].partition(":")[0].lower() for _ in range(20_000)}
    assert not seen & {phrase.lower() for phrase in _phrases(OUT_OF_DOMAIN)}
    telling = (
        "swap case upper lower remove vowels take shift each next alphabet subtract minus "
        "double doubled every second keep longest sort order"
    )
    assert not set(BANK) & set(telling.split())


def test_demo_and_training_pairs_are_apart_and_short() -> None:
    prompts = []
    for split in ("demo", "train"):
        pairs = make_pairs(3000, seed=0, kinds=ALL, split=split)
        prompts.append({DEMO_TEMPLATE.format_map(asdict(pair)) for pair in pairs})
    demo, train = prompts
    assert not demo & train
    assert all(20 <= len(prompt) <= 120 for prompt in demo | train)


def test_the_shipped_model_is_small_and_whole() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 4096
    assert config["vocab_size"] == VOCAB_SIZE

    # its tokenizer has one token a byte
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    assert tokenizer["model"]["merges"] == []
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))
    assert [vocab[verdict] for verdict in DEMO.spellings] == [ord(v) for v in DEMO.spellings]
    assert [vocab[special] for special in ("<s>", "</s>", "<pad>")] == [BOS, EOS, PAD]
