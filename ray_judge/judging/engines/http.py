"""`http`: a judge behind a server of OpenAI's API (vLLM's, SGLang's, a hosted one).

Such a server shows the likeliest tokens of a position as text, not the ones we would ask for. So
the tree of verdicts grows as it is walked: of the shown tokens that begin a spelling, the longest
one leads on (as its tokenizer would have it), and what is not shown can have at most as much
probability as the least likely token that is (`judge_unseen`).

completions: the prompt is one text, and `opening` and the way walked so far are its end.
chat: they are the beginning of the assistant's message, which vLLM and SGLang go on with.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
import tenacity

from ray_judge.config import HttpConfig, JudgeConfig, hide_secrets
from ray_judge.errors import ConfigError, EngineError
from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.engines.verdict_tree import Node, Position, Walk
from ray_judge.judging.formats import Format, Prompt
from ray_judge.records import Example


class RowError(Exception):
    """This row cannot be judged; the message says why."""


RETRY = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(httpx.TransportError)
    | tenacity.retry_if_result(lambda answer: answer.status_code == 429 or answer.is_server_error),
    stop=tenacity.stop_after_attempt(6),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
)
"""A local server is asked again when it is busy, restarting or gone; nothing is paid for here."""


@dataclass
class TextNode(Node):
    """A position behind a text; its children are known when its likeliest tokens are."""

    way: str = ""
    spellings: dict[str, str] = field(default_factory=dict)
    """Those that begin with `way` → the alternatives that they mean."""

    def is_leaf(self) -> bool:
        return list(self.spellings) == [self.way]

    def grow(self, shown: Mapping[str, float]) -> float:
        """Send each spelling along the longest shown token that it goes on with.

        Gives the most probability of tokens that are not shown and might lead to spellings, too.
        """
        uncertain = 0
        for text, name in self.spellings.items():
            rest = text.removeprefix(self.way)
            size = next((n for n in range(len(rest), 0, -1) if rest[:n] in shown), 0)
            uncertain += size < len(rest)  # a longer one may be hidden
            if size:
                way = self.way + rest[:size]
                child = self.children.setdefault(rest[:size], TextNode(way=way))
                cast(TextNode, child).spellings[text] = name
                child.ends = name if text == way else child.ends
        unseen = max(0.0, 1.0 - math.fsum(map(math.exp, shown.values())))
        return min(uncertain * math.exp(min(shown.values())), unseen)


class HttpReader:
    def __init__(self, judge: JudgeConfig, format_: Format) -> None:
        assert judge.http is not None
        self._judge, self._format, self._http = judge, format_, judge.http
        chat = format_.chat if judge.chat is None else judge.chat
        if judge.http.api == "completions" and chat:
            raise ConfigError("this judge is asked through its chat template: judge.http.api: chat")
        if judge.http.api == "chat" and chat is False:
            raise ConfigError("this judge has no chat template: judge.http.api: completions")
        if judge.overlong == "cut":
            raise ConfigError("judge.overlong: cut needs the model's tokenizer: engine: vllm")
        self._client = _client(judge.http)
        self._pool = ThreadPoolExecutor(judge.http.concurrency, thread_name_prefix="judge-http")

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        return list(self._pool.map(self._read, examples))

    def _read(self, example: Example) -> Reading | str:
        prompt = self._format.render(example)
        try:
            if self._judge.decode == "full":
                answer, ended = self._write(prompt)
                parsed = self._format.parse(answer)
                if parsed.verdict is None:
                    return f"{parsed.reason}{'' if ended else ' (the answer was cut)'}"
                prompt = replace(prompt, opening=answer[: parsed.start])
            return self._walk(prompt)
        except RowError as error:
            return str(error)

    def _walk(self, prompt: Prompt) -> Reading:
        alternatives = self._format.spellings
        meant = {text: name for name, texts in alternatives.items() for text in texts}
        walk, unseen = Walk(TextNode(spellings=meant)), 0.0
        while walk.frontier:
            positions = []
            for place in walk.frontier:
                node = cast(TextNode, place.node)
                shown = self._show(prompt, node.way)
                unseen += math.exp(place.logprob) * node.grow(shown)
                positions.append(Position([shown[token] for token in node.children]))
            walk.take(positions)
        return Reading(walk.logprobs(list(alternatives)), unseen=unseen)

    def _show(self, prompt: Prompt, way: str) -> dict[str, float]:
        """Ask for the likeliest tokens behind the prompt and the way: text → natural log."""
        top, chat = self._http.top_logprobs, self._http.api == "chat"
        wish = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        found: Any = self._ask(prompt, way, max_tokens=1, **wish).get("logprobs")
        shown: dict[str, float] = {}
        with suppress(LookupError, TypeError, AttributeError):
            first = found["content"][0]["top_logprobs"] if chat else found["top_logprobs"][0]
            pairs = [(one["token"], one["logprob"]) for one in first] if chat else first.items()
            for token, logprob in pairs:  # tokens that are no text of their own may look alike
                shown[str(token)] = max(float(logprob), shown.get(str(token), -math.inf))
        if not shown:
            raise ConfigError(
                "the judge's server sent no log-probabilities: a server that can (vLLM, SGLang) "
                "is needed, or judge.http.top_logprobs is more than it allows"
            )
        return shown

    def _write(self, prompt: Prompt) -> tuple[str, bool]:
        """Ask for a whole answer; gives it, and whether it ended by itself."""
        most = self._judge.max_output_tokens or self._format.max_output_tokens
        stop = {"stop": list(self._format.stop)} if self._format.stop else {}
        choice = self._ask(prompt, "", max_tokens=most, **stop)
        text = choice.get("text") or (choice.get("message") or {}).get("content")
        return str(text or ""), choice.get("finish_reason") == "stop"

    def _ask(self, prompt: Prompt, way: str, **wish: Any) -> dict[str, Any]:
        """Send one request; gives its choice. Raises RowError, ConfigError, EngineError."""
        path, body = "completions", dict[str, Any](prompt=prompt.plain() + way)
        if self._http.api == "chat":
            path, body = "chat/completions", {"messages": prompt.messages()}
            if begun := prompt.opening.lstrip() + way:
                body["messages"].append({"role": "assistant", "content": begun})
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        sent = {"model": self._judge.model, "temperature": 0, **body, **wish}
        where = {"base_url": hide_secrets(self._http.base_url)}
        try:
            answer: httpx.Response = RETRY(self._client.post, path, json=sent)
        except tenacity.RetryError as error:
            last = error.last_attempt
            why = type(last.exception()).__name__ if last.failed else last.result().status_code
            raise EngineError(f"the judge's server does not answer: {why}", **where) from None
        said = f"the judge's server says HTTP {answer.status_code}"
        if answer.status_code in (401, 403, 404):
            keys = "judge.http.base_url, api_key_env and judge.model"
            raise ConfigError(f"{said}: check {keys}", **where)
        if answer.status_code != 200:
            words = re.search(r'"message": *"((?:[^"\\]|\\.)*)"', answer.text)
            raise RowError(f"{said}: {(words[1] if words else answer.text)[:200]}")
        try:
            return dict(answer.json()["choices"][0])
        except (ValueError, LookupError, TypeError):
            raise EngineError("the judge's server speaks no OpenAI API", **where) from None


def _client(http: HttpConfig) -> httpx.Client:
    key = os.environ.get(http.api_key_env or "", "")
    if http.api_key_env and not key:
        raise ConfigError(f"no key for the judge's server: set {http.api_key_env}")
    address = httpx.URL(http.base_url)
    return httpx.Client(
        base_url=str(address.copy_with(query=None)).rstrip("/") + "/",
        params=address.params,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=http.timeout_s,
        limits=httpx.Limits(max_connections=http.concurrency),
        # A server on this machine is never behind the proxy that the environment names.
        trust_env=address.host not in ("localhost", "127.0.0.1", "::1"),
    )
