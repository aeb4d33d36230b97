"""Reads the verdict's position of a model in this process, token by token.

decode: verdict    prompt + forced opening, then the tree of verdicts: a handful of positions.
decode: full       the model writes its critique; where it wrote its verdict, the tree is read.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from os.path import commonprefix
from statistics import fmean
from typing import Any, cast

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.engines.engine import LanguageModel, Reading, WrittenAnswer
from ray_judge.judging.engines.verdict_tree import Node, Walk, build_tree
from ray_judge.judging.formats import Format
from ray_judge.records import Example, Scored

CUT = " […] "
"""Stands in the middle of a response that was cut."""
TAIL = 48
"""Characters in front of a verdict that fix how it is tokenised."""


class TokenReader:
    """Renders, tokenises, and reads trees of verdicts."""

    def __init__(self, judge: JudgeConfig, format_: Format, model: LanguageModel) -> None:
        """Work out how this format's verdicts are tokenised. Raises ConfigError."""
        self._judge, self._format, self._model = judge, format_, model
        self._full = judge.decode == "full"
        self._entropy = judge.confidence in ("entropy", "calibrated_entropy")
        self._tokenizer = model.tokenizer
        self._lock = threading.Lock()  # fast tokenizers refuse two threads that encode at once
        chat = format_.chat if judge.chat is None else judge.chat
        self._chat = bool(self._tokenizer.chat_template) if chat is None else chat
        if self._chat and not self._tokenizer.chat_template:
            raise ConfigError("this judge's tokenizer has no chat template: judge.chat: false")
        self._tree_behind = lru_cache(maxsize=256)(self._build)
        self._tail = self._constant_tail()
        longest = self._tree_behind(self._tail).depth()
        self._budget = (judge.max_output_tokens or format_.max_output_tokens) if self._full else 0
        self._room = model.context - self._budget - longest
        if self._room < 1:
            raise ConfigError(
                f"the model's context has {model.context} tokens, and its answer is to have "
                f"{self._budget}: lower judge.max_output_tokens, or judge.decode: verdict"
            )
        self.name = model.name

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        found: dict[int, Reading | str] = {}
        prompts: dict[int, list[int]] = {}
        notes: dict[int, str] = {}
        for n, ids in enumerate(self._tokenise(examples)):
            if len(ids) <= self._room:
                prompts[n] = ids
            elif self._judge.overlong == "cut" and (cut := self._cut(examples[n])):
                prompts[n], notes[n] = cut
            else:
                takes = f"the model's context takes {self._room}"
                found[n] = f"the prompt has {len(ids)} tokens, {takes}"
        found |= self._read(prompts, notes)
        return [found[n] for n in range(len(examples))]

    def _read(
        self, prompts: Mapping[int, list[int]], notes: Mapping[int, str]
    ) -> dict[int, Reading | str]:
        found: dict[int, Reading | str] = {}
        places = {n: (ids, self._tree_behind(self._tail)) for n, ids in prompts.items()}
        answers: dict[int, WrittenAnswer] = {}
        if self._full:
            wish: dict[str, Any] = {"stop": self._format.stop, "entropy": self._entropy}
            written = self._model.write(list(prompts.values()), most=self._budget, **wish)
            answers = dict(zip(prompts, written, strict=True))
        for n, answer in answers.items():
            parsed = self._format.parse(answer.text)
            if parsed.verdict is None:
                cut = "" if answer.ended else f" (the answer was cut at {self._budget} tokens)"
                found[n] = f"{parsed.reason}{cut}"
                del places[n]
            else:
                before, tree = self._locate(answer, parsed.start)
                places[n] = ([*prompts[n], *before], tree)
        for n, walk in zip(places, self._walk(list(places.values())), strict=True):
            best = walk.likeliest()
            ids, entropies = best.path, best.entropies
            if self._full:
                ids, entropies = answers[n].ids, answers[n].entropies
            found[n] = Reading(
                walk.logprobs(list(self._format.spellings)),
                fmean(entropies) if entropies else None,
                Scored(tuple(prompts[n]), ids) if self._entropy else None,
                notes.get(n),
            )
        return found

    def _locate(self, answer: WrittenAnswer, start: int) -> tuple[Sequence[int], Node]:
        """Find the answer's tokens in front of its verdict, and the tree that begins there."""
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        count, length = find_boundary(answer.text, start, answer.ids, decode)
        before = answer.text[:length][-TAIL:] or self._tail
        return answer.ids[:count], self._tree_behind(before, answer.text[length:start])

    def _walk(self, places: Sequence[tuple[list[int], Node]]) -> list[Walk]:
        """Read many trees together: every level of all of them is one batch."""
        walks = [Walk(tree) for _, tree in places]
        while asks := [(n, place) for n, walk in enumerate(walks) for place in walk.frontier]:
            asked = [([*places[n][0], *place.path], list(place.node.children)) for n, place in asks]
            entropy = self._entropy and not self._full
            read = iter(self._model.positions(asked, entropy=entropy))
            for walk in walks:
                walk.take([next(read) for _ in walk.frontier])
        return walks

    def _build(self, tail: str, between: str = "") -> Node:
        spellings = self._format.spellings.items()
        behind = {name: [between + text for text in texts] for name, texts in spellings}
        return build_tree(behind, self._encode, tail)

    def _encode(self, text: str) -> list[int]:
        return self._ids([text], add_special_tokens=False)[0]

    def _ids(self, texts: list[str], **special: bool) -> list[list[int]]:
        with self._lock:
            return cast(list[list[int]], self._tokenizer(texts, **special)["input_ids"])

    # --- prompts ---

    def _constant_tail(self) -> str:
        """Find the end that all prompts have in common: what stands in front of every verdict."""
        texts = []
        for word in ("zero", "ONE 1\n"):
            answers = (word,) * (2 if self._format.task == "pairwise" else 1)
            texts.append(self._text(Example(word, answers, word, word, word))[::-1])
        tail = commonprefix(texts)[::-1]  # noqa: RUF071  letters are meant
        if not tail:
            raise ConfigError(
                "the prompt ends with the row's own text, so where the verdict begins cannot be "
                "told: end the template with a line of its own, such as 'Verdict:'"
            )
        return tail[-TAIL:]

    def _text(self, example: Example) -> str:
        """Give the whole prompt as the model reads it, but for a plain model's special tokens."""
        prompt = self._format.render(example)
        if not self._chat:
            return prompt.plain()
        rendered: str = self._tokenizer.apply_chat_template(
            prompt.messages(), tokenize=False, add_generation_prompt=True
        )
        return rendered + prompt.opening.lstrip()

    def _tokenise(self, examples: Sequence[Example]) -> list[list[int]]:
        if not examples:
            return []
        special = {"add_special_tokens": False} if self._chat else {}
        return self._ids([self._text(example) for example in examples], **special)

    def _cut(self, example: Example) -> tuple[list[int], str] | None:
        """Take as much as must be out of the middle of the longer response; None: too little."""
        longest = max(range(len(example.responses)), key=lambda n: len(example.responses[n]))
        whole = example.responses[longest]

        def shorten(by: int) -> list[int]:
            head = (len(whole) - by + 1) // 2
            responses = list(example.responses)
            responses[longest] = whole[:head] + CUT + whole[head + by :]
            return self._tokenise([replace(example, responses=tuple(responses))])[0]

        by = bisect_left(range(len(whole)), True, key=lambda n: len(shorten(n)) <= self._room)
        if by == len(whole):
            return None
        return shorten(by), f"{by} characters were cut from a response to fit"


def find_boundary(
    text: str, start: int, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[int, int]:
    """Find the last boundary between tokens that is not behind `start`, a place in `text`.

    Gives the tokens and the characters in front of it. There is a boundary only where the tokens
    before it are a beginning of the text: half a letter is none. That place is bisected, since
    decoding every beginning of a long answer would cost its length squared.
    """

    def is_beyond(count: int) -> bool:
        begun = decode(ids[:count])
        return len(begun) > start and begun.startswith(text[: start + 1])

    count = bisect_left(range(1, len(ids) + 1), True, key=is_beyond)
    while count:
        begun = decode(ids[:count])
        if len(begun) <= start and text.startswith(begun):
            return count, len(begun)
        count -= 1
    return 0, 0
