"""`format: reward`: a scalar reward model reads whole conversations, and gives each one number.

What it reads is its own chat template: the turns, and the response as the assistant's. A chunk's
distinct conversations are sent to it once, in however many pairs they occur.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

import pyarrow as pa
from jinja2 import TemplateError

from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError, brief
from ray_judge.judging.confidence import by_reward, by_rewards, no_judgment
from ray_judge.judging.engines.engine import RewardModel, name_model
from ray_judge.records import Example, Judgment

Conversation = tuple[int, ...] | str
"""Its tokens, or why it has no reward."""


class RewardEngine:
    """Judges pairs by the rewards of both responses, and scores single responses by theirs."""

    needs_text = True

    def __init__(self, config: RunConfig, model: RewardModel) -> None:
        self._config, self._model = config.judge, model
        self.model = name_model(config.judge)
        self._lock = threading.Lock()  # fast tokenizers refuse two threads that encode at once
        if not model.tokenizer.chat_template:
            raise ConfigError(
                "format: reward reads conversations by a chat template, and this model's tokenizer "
                "has none",
                model=self.model,
            )

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        asked = [[self._tokenise(one, text) for text in one.responses] for one in examples]
        distinct = dict.fromkeys(ids for row in asked for ids in row if isinstance(ids, tuple))
        rewards = dict(zip(distinct, self._model.rewards([*distinct]), strict=True))
        return [self._judge_row(row, rewards) for row in asked]

    def _judge_row(
        self, row: Sequence[Conversation], rewards: Mapping[tuple[int, ...], float]
    ) -> Judgment:
        if reasons := [reason for reason in row if isinstance(reason, str)]:
            return no_judgment(reasons[0])
        found = [rewards[ids] for ids in row if isinstance(ids, tuple)]
        if strange := [reward for reward in found if not math.isfinite(reward)]:
            return no_judgment(f"the model gave {strange[0]} for a reward")
        if len(found) == 1:
            return by_reward(found[0], self._config)
        return by_rewards(found[0], found[1], self._config.temperature or 1.0)

    def _tokenise(self, example: Example, response: str) -> Conversation:
        asked = f"{example.instruction}\n{example.input}" if example.input else example.instruction
        turns = [*(example.turns or [("user", asked)]), ("assistant", response)]
        messages = [{"role": role, "content": content} for role, content in turns]
        tokenizer, given = self._model.tokenizer, self._config.chat_template_kwargs
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
        except TemplateError as error:
            return f"the model's chat template takes no such conversation: {brief(str(error))}"
        with self._lock:
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] == self._model.pad:  # as transformers counts, on every engine
            ids.pop()
        if 0 < len(ids) <= self._model.context:
            return tuple(ids)
        has = f"the conversation has {len(ids)} tokens"
        return f"{has}, the model's context takes {self._model.context}"
