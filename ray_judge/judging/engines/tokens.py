"""Reads the verdict's position of a model in this process, token by token.

decode: verdict    prompt + forced opening, then the tree of verdicts: a handful of positions.
decode: full       the model writes its critique; where it wrote its verdict, the tree is read.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from os.path import commonprefix
from statistics import fmean
from typing import cast

from jinja2 import TemplateError

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.engines.checkpoint import default_template
from ray_judge.judging.engines.engine import LanguageModel, Reading, WrittenAnswer
from ray_judge.judging.engines.verdict_tree import Node, Walk, build_tree
from ray_judge.judging.formats import Format, Parsed
from ray_judge.judging.formats.reasoning import (
    OPEN,
    THINKING_TOKENS,
    close_reasoning,
    template_options,
)
from ray_judge.records import Example, Scored

CUT = " […] "
"""Stands in the middle of a response that was cut."""
TAIL = 48
"""Characters in front of a verdict that fix how it is tokenised."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt, the tree of verdicts behind it, and the answer that the tree is read in."""

    prompt: list[int]
    note: str | None
    tree: Node
    before: Sequence[int] = ()
    """The answer's tokens in front of its verdict."""
    answer: WrittenAnswer | None = None


class TokenReader:
    """Renders, tokenises, and reads trees of verdicts."""

    def __init__(self, judge: JudgeConfig, format_: Format, model: LanguageModel) -> None:
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
        template = default_template(self._tokenizer.chat_template) if self._chat else None
        self._options = template_options(judge, template or "")
        self._decode_one = lru_cache(maxsize=4096)(lambda token: self._tokenizer.decode([token]))
        self._tail = self._constant_tail()
        self._opened = bool(judge.thinking or OPEN.search(self._tail))
        longest = self._tree_behind(self._tail).depth()
        self._budget = answer_budget(judge, format_) if self._full else 0
        self._room = model.context - self._budget - longest
        if self._room < 1:
            raise ConfigError(
                f"the model's context has {model.context} tokens, and its answer is to have "
                f"{self._budget}: lower judge.max_output_tokens, or judge.decode: verdict"
            )

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        tokens = self._tokenise(examples)
        asked = [self._fit(example, ids) for example, ids in zip(examples, tokens, strict=True)]
        known = self._write(asked) if self._full else asked
        walks = iter(self._walk([one for one in known if isinstance(one, TokenPrompt)]))
        return [
            self._reading(one, next(walks)) if isinstance(one, TokenPrompt) else one
            for one in known
        ]

    def _fit(self, example: Example, ids: list[int]) -> TokenPrompt | str:
        note = None
        if len(ids) > self._room and self._judge.overlong == "cut":
            ids, note = self._cut(example) or (ids, None)
        if len(ids) > self._room:
            return f"the prompt has {len(ids)} tokens, the model's context takes {self._room}"
        return TokenPrompt(ids, note, self._tree_behind(self._tail))

    def _write(self, asked: Sequence[TokenPrompt | str]) -> list[TokenPrompt | Reading | str]:
        """Let answers be written; find the verdict in each, or count what several say."""
        count, judge = self._judge.samples, self._judge
        prompts = [
            one.prompt for one in asked if isinstance(one, TokenPrompt) for _ in range(count)
        ]
        stop, warmth = self._format.stop, judge.temperature or 0.0
        written = self._model.write(prompts, most=self._budget, stop=stop, temperature=warmth)
        answers = iter(written)
        found: list[TokenPrompt | Reading | str] = []
        for one in asked:
            if isinstance(one, str):
                found.append(one)
            elif judge.confidence == "votes":
                parsed = [self._parse(next(answers)) for _ in range(count)]
                found.append(count_votes(parsed, self._format, note=one.note))
            else:
                found.append(self._locate(one, next(answers)))
        return found

    def _parse(self, answer: WrittenAnswer) -> Parsed:
        parsed = self._format.parse(answer.text, opened=self._opened)
        cut = "" if answer.ended else f" (the answer was cut at {self._budget} tokens)"
        return replace(parsed, reason=f"{parsed.reason}{cut}") if parsed.reason else parsed

    def _locate(self, one: TokenPrompt, answer: WrittenAnswer) -> TokenPrompt | str:
        """Find the answer's tokens in front of its verdict, and the tree that begins there."""
        parsed = self._parse(answer)
        if parsed.verdict is None:
            return str(parsed.reason)
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        count, length = find_boundary(answer.text, parsed.start, answer.ids, decode)
        before = answer.text[:length][-TAIL:] or self._tail
        tree = self._tree_behind(before, answer.text[length : parsed.start])
        return replace(one, tree=tree, before=answer.ids[:count], answer=answer)

    def _reading(self, one: TokenPrompt, walk: Walk) -> Reading:
        said = one.answer or walk.likeliest()
        return Reading(
            walk.logprobs(list(self._format.spellings)),
            fmean(said.entropies) if said.entropies else None,
            Scored(tuple(one.prompt), said.ids) if self._entropy else None,
            one.note,
            would_write=self._decode_one(walk.would_write),
        )

    def _walk(self, asked: Sequence[TokenPrompt]) -> list[Walk]:
        """Read many trees together: every level of all of them is one batch."""
        walks = [Walk(one.tree) for one in asked]
        while asks := [
            ([*one.prompt, *one.before, *place.ids], list(place.node.children))
            for one, walk in zip(asked, walks, strict=True)
            for place in walk.frontier
        ]:
            read = iter(self._model.positions(asks))
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
        prompt = self._format.render(example)
        if not self._chat:
            return prompt.plain()
        try:
            rendered = self._rendered(prompt.messages())
        except TemplateError:
            rendered = self._rendered(prompt.messages(joined=True))
        if self._judge.thinking is False:
            rendered = close_reasoning(rendered)
        return rendered + prompt.opening.lstrip()

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._options
        )
        return rendered

    def _tokenise(self, examples: Sequence[Example]) -> list[list[int]]:
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
        note = f"{by} characters were cut from a response to fit"
        return (shorten(by), note) if by < len(whole) else None


def answer_budget(judge: JudgeConfig, format_: Format) -> int:
    """Tokens of one answer, its reasoning included."""
    extra = THINKING_TOKENS if judge.thinking else 0
    return judge.max_output_tokens or format_.max_output_tokens + extra


def count_votes(
    answers: Sequence[Parsed], format_: Format, note: str | None = None
) -> Reading | str:
    """Read what several answers to one prompt say; why the first says nothing, where all do.

    An answer without a verdict is a vote for nothing: all alternatives lack its share.
    """
    votes = Counter(parsed.verdict for parsed in answers if parsed.verdict is not None)
    if not votes:
        return str(answers[0].reason)
    shares = {name: [math.log(n / len(answers))] for name, n in votes.items()}  # the first first
    return Reading(
        {**shares, **{n: [-math.inf] for n in format_.spellings if n not in votes}}, note=note
    )


def find_boundary(
    text: str, start: int, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[int, int]:
    """Find the last boundary between tokens that is not behind `start`, a place in `text`.

    Gives the tokens and the characters in front of it. Tokens that end with half a letter are no
    beginning of the text. Bisected: to decode every beginning would cost the length squared.
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
