"""Reads the verdict's position of a model in this process, token by token.

decode: verdict    prompt + forced opening, then the tree of verdicts: a handful of positions.
decode: full       the model writes its critique; where it wrote its verdict, the tree is read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, cast

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.confidence import mean
from ray_judge.judging.engines.engine import LanguageModel, Reading, Written
from ray_judge.judging.engines.verdict_tree import Node, Walk, build_tree, walk_all
from ray_judge.judging.formats import Format, Question
from ray_judge.records import Example, Scored

CUT = " […] "
"""Stands in the middle of a response that was cut."""
TAIL = 48
"""Characters in front of a verdict that fix how it is tokenised."""
CUTS = 8
"""A cut text is tokenised again, and may need another cut."""


class TokenReader:
    """Renders, tokenises, and reads trees of verdicts."""

    def __init__(self, judge: JudgeConfig, format_: Format, model: LanguageModel) -> None:
        """Work out how this format's verdicts are tokenised. Raises ConfigError."""
        self._judge, self._format, self._model = judge, format_, model
        self._full = judge.decode == "full"
        self._entropy = judge.confidence in ("entropy", "calibrated_entropy")
        self._tokenizer = model.tokenizer
        self._lock = threading.Lock()  # fast tokenizers refuse two threads at once
        chat = format_.chat if judge.chat is None else judge.chat
        self._chat = bool(self._tokenizer.chat_template) if chat is None else chat
        if self._chat and not self._tokenizer.chat_template:
            raise ConfigError(
                "this judge is asked through its chat template, but its tokenizer has none: "
                "judge.chat: false"
            )
        self._tree_behind = lru_cache(maxsize=256)(self._build)
        self._tail = self._constant_tail()
        tree = self._tree_behind(self._tail)
        self._budget = (judge.max_output_tokens or format_.max_output_tokens) if self._full else 0
        self._room = model.context - self._budget - tree.depth()
        if self._room < 1:
            raise ConfigError(
                f"the model's context has {model.context} tokens, and its answer is to have "
                f"{self._budget}: lower judge.max_output_tokens, or judge.decode: verdict"
            )
        self.name = model.name

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        """See `Reader.read`."""
        if not examples:
            return []
        prompts, notes = self._prompts(examples)
        fit = [n for n, prompt in enumerate(prompts) if not isinstance(prompt, str)]
        found: list[Reading | str] = [p if isinstance(p, str) else "" for p in prompts]
        ids = [cast(list[int], prompts[n]) for n in fit]
        readings = self._written(ids) if self._full else self._verdicts(ids)
        for n, reading in zip(fit, readings, strict=True):
            found[n] = reading if isinstance(reading, str) else replace(reading, note=notes[n])
        return found

    # --- where the verdict sits ---

    def _verdicts(self, prompts: Sequence[list[int]]) -> list[Reading | str]:
        """decode: verdict."""
        walks = self._walk(prompts, [self._tree_behind(self._tail)] * len(prompts))
        readings: list[Reading | str] = []
        for prompt, walk in zip(prompts, walks, strict=True):
            best = walk.likeliest()
            readings.append(
                Reading(
                    walk.logprobs(list(self._format.spellings)),
                    mean(best.entropies) if best.entropies else None,
                    Scored(tuple(prompt), best.path) if self._entropy else None,
                )
            )
        return readings

    def _written(self, prompts: Sequence[list[int]]) -> list[Reading | str]:
        """decode: full."""
        answers = self._model.write(
            prompts, most=self._budget, stop=self._format.stop, entropy=self._entropy
        )
        found: list[Reading | str] = [""] * len(prompts)
        places: list[tuple[int, list[int], Node]] = []
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            parsed = self._format.parse(answer.text)
            if parsed.verdict is None:
                cut = "" if answer.ended else f" (the answer was cut at {self._budget} tokens)"
                found[n] = f"{parsed.reason}{cut}"
                continue
            before, tree = self._place(answer, parsed.start)
            places.append((n, [*prompt, *before], tree))
        walks = self._walk([ids for _, ids, _ in places], [tree for _, _, tree in places])
        for (n, _, _), walk in zip(places, walks, strict=True):
            entropies = answers[n].entropies
            found[n] = Reading(
                walk.logprobs(list(self._format.spellings)),
                mean(entropies) if entropies else None,
                Scored(tuple(prompts[n]), answers[n].ids) if self._entropy else None,
            )
        return found

    def _place(self, answer: Written, start: int) -> tuple[Sequence[int], Node]:
        """Tokens of the answer in front of its verdict, and the tree that begins there."""
        if start == 0:
            return (), self._tree_behind(self._tail)
        with self._lock:
            kept, length = 0, 0
            for count in range(1, len(answer.ids) + 1):  # the last boundary not behind `start`
                text = self._tokenizer.decode(answer.ids[:count], skip_special_tokens=True)
                if len(text) > start:
                    break
                if answer.text.startswith(text):
                    kept, length = count, len(text)
        before = answer.text[:length][-TAIL:]
        return answer.ids[:kept], self._tree_behind(before or self._tail, answer.text[length:start])

    def _walk(self, prompts: Sequence[list[int]], trees: Sequence[Node]) -> list[Walk]:
        walks = [Walk(tree) for tree in trees]
        walk_all(
            walks,
            lambda asks: self._model.positions(
                [([*prompts[number], *path], tokens) for number, path, tokens in asks],
                entropy=self._entropy and not self._full,
            ),
        )
        return walks

    def _build(self, tail: str, between: str = "") -> Node:
        spellings = {
            name: tuple(between + text for text in texts)
            for name, texts in self._format.spellings.items()
        }
        return build_tree(spellings, self._encode, tail)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            return cast(list[int], self._tokenizer.encode(text, add_special_tokens=False))

    # --- prompts ---

    def _constant_tail(self) -> str:
        """The end that all prompts have in common: what stands in front of every verdict."""
        texts = []
        for word in ("zero", "ONE 1\n"):
            answers = (word,) * (2 if self._format.task == "pairwise" else 1)
            texts.append(self._text(Example(word, answers, word, word, word)))
        one, other = texts
        same = takewhile(
            lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)
        )
        tail = "".join(letter for letter, _ in same)[::-1]
        if not tail:
            raise ConfigError(
                "the prompt ends with the row's own text, so where the verdict begins cannot be "
                "told: end the template with a line of its own, such as 'Verdict:'"
            )
        return tail[-TAIL:]

    def _text(self, example: Example) -> str:
        """The whole prompt as the model reads it, but for a plain model's special tokens."""
        question = self._format.render(example)
        if self._full:
            question = replace(question, opening="")
        if not self._chat:
            return question.plain()
        rendered: str = self._tokenizer.apply_chat_template(
            _messages(question), tokenize=False, add_generation_prompt=True
        )
        return rendered + question.opening.lstrip()

    def _prompts(
        self, examples: Sequence[Example]
    ) -> tuple[list[list[int] | str], list[str | None]]:
        """Tokenise; a prompt beyond the context is an error, or cut if the configuration says."""
        with self._lock:
            prompts = self._ids([self._text(example) for example in examples])
        notes: list[str | None] = [None] * len(prompts)
        found: list[list[int] | str] = []
        for n, ids in enumerate(prompts):
            if len(ids) <= self._room:
                found.append(ids)
            elif self._judge.overlong == "cut" and (cut := self._cut(examples[n], len(ids))):
                found.append(cut[0])
                notes[n] = cut[1]
            else:
                found.append(
                    f"the prompt has {len(ids)} tokens, the model's context takes {self._room}"
                )
        return found, notes

    def _cut(self, example: Example, tokens: int) -> tuple[list[int], str] | None:
        """Take the excess out of the middle of the longer response; None: that is not enough."""
        responses = list(example.responses)
        longest = max(range(len(responses)), key=lambda n: len(responses[n]))
        whole = responses[longest]
        kept = len(whole)
        for _ in range(CUTS):
            excess = tokens - self._room
            per_token = max(1.0, kept / max(1, tokens))
            kept -= int(excess * per_token) + len(CUT) + 1
            if kept <= 0:
                return None
            head = kept - kept // 2
            responses[longest] = whole[:head] + CUT + whole[len(whole) - kept // 2 :]
            with self._lock:
                (ids,) = self._ids([self._text(replace(example, responses=tuple(responses)))])
            tokens = len(ids)
            if tokens <= self._room:
                return ids, f"{len(whole) - kept} characters were cut from a response to fit"
        return None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        special: Any = {"add_special_tokens": False} if self._chat else {}
        return cast(list[list[int]], self._tokenizer(texts, **special)["input_ids"])


def _messages(question: Question) -> list[dict[str, str]]:
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": question.user}]
