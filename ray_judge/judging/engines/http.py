"""`http`: a judge behind a server of OpenAI's API (vLLM's, SGLang's, a hosted one).

Such a server shows the likeliest tokens of a position as text, not the ones we would ask for. So
the tree of verdicts is walked by text: of the shown tokens that begin a spelling, the longest one
leads on (as its tokenizer would have it), and what is not shown can have at most as much
probability as the least likely token that is. That bound is carried into the judgment
(`judge_unseen`); where the verdict hangs on it, the row says so.

completions: the prompt is one text, and `opening` and the way walked so far are its end.
chat: the server's own template; opening and way are the beginning of the assistant's message,
which vLLM and SGLang go on with (`continue_final_message`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import tenacity

from ray_judge.config import HttpConfig, JudgeConfig
from ray_judge.errors import ConfigError, EngineError
from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.formats import Format, Question
from ray_judge.records import Example

PRUNE = math.log(1e-7)
"""As in `verdict_tree`: what is so much less likely than the likeliest is not followed."""
TRIES = 6


class Unavailable(Exception):
    """The server could not answer just now."""


RETRY = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(Unavailable),
    stop=tenacity.stop_after_attempt(TRIES),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
    reraise=True,
)
"""A local server is asked again when it is busy, restarting or gone; nothing is paid for here."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One position: the texts of the likeliest tokens, each with its natural log-probability."""

    tokens: Mapping[str, float]

    def rest(self) -> tuple[float, float]:
        """Most probability that one token which is not shown can have, and all of them."""
        shown = math.fsum(map(math.exp, self.tokens.values()))
        return math.exp(min(self.tokens.values())), max(0.0, 1.0 - shown)


@dataclass(frozen=True, slots=True)
class Step:
    """Where spellings go on from one position: token → the spellings that it leads to.

    `hidden`: most probability of tokens that are not shown and might lead to spellings, too.
    """

    ways: Mapping[str, list[str]]
    hidden: float


def _next(way: str, spellings: Sequence[str], shown: Shown) -> Step:
    """Send each spelling along the longest shown token that it begins with, behind `way`."""
    ways: dict[str, list[str]] = {}
    uncertain = 0
    for text in spellings:
        rest = text[len(way) :]
        sizes = [n for n in range(len(rest), 0, -1) if rest[:n] in shown.tokens]
        if sizes:
            ways.setdefault(rest[: sizes[0]], []).append(text)
        uncertain += not sizes or sizes[0] < len(rest)  # a longer one may be hidden
    one, all_ = shown.rest()
    return Step(ways, min(uncertain * one, all_))


class HttpReader:
    """Reads the verdict's position from a server, many rows at a time."""

    def __init__(self, judge: JudgeConfig, format_: Format) -> None:
        """Open a client; the first request shows whether the server is there."""
        assert judge.http is not None
        self._judge, self._format, self._http = judge, format_, judge.http
        chat = format_.chat if judge.chat is None else judge.chat
        if judge.http.api == "completions" and chat:
            raise ConfigError("this judge is asked through its chat template: judge.http.api: chat")
        if judge.http.api == "chat" and chat is False:
            raise ConfigError(
                "this judge is asked without a chat template: judge.http.api: completions"
            )
        if judge.overlong == "cut":
            raise ConfigError("judge.overlong: cut needs the model's tokenizer: engine: vllm")
        self._client = _client(judge.http)
        self._pool = ThreadPoolExecutor(judge.http.concurrency, thread_name_prefix="judge-http")
        self.name = str(judge.model)

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        """See `Reader.read`."""
        return list(self._pool.map(self._read, examples))

    def _read(self, example: Example) -> Reading | str:
        question = self._format.render(example)
        try:
            if self._judge.decode == "full":
                question = replace(question, opening="")
                answer, ended = self._write(question)
                parsed = self._format.parse(answer)
                if parsed.verdict is None:
                    return f"{parsed.reason}{'' if ended else ' (the answer was cut)'}"
                question = replace(question, opening=answer[: parsed.start])
            return self._walk(question)
        except _RowError as error:
            return str(error)

    def _walk(self, question: Question) -> Reading:
        """Follow every spelling along the server's tokens."""
        spellings = {text: name for name, texts in self._format.spellings.items() for text in texts}
        found: dict[str, list[float]] = {name: [] for name in self._format.spellings}
        frontier: dict[str, tuple[float, list[str]]] = {"": (0.0, list(spellings))}
        unseen, top = 0.0, -math.inf
        while frontier:
            below: dict[str, tuple[float, list[str]]] = {}
            for way, (logprob, through) in frontier.items():
                shown = self._position(question, way)
                step = _next(way, [text for text in through if text != way], shown)
                unseen += math.exp(logprob) * step.hidden
                for token, on in step.ways.items():
                    here = logprob + shown.tokens[token]
                    if on == [way + token]:
                        found[spellings[on[0]]].append(here)
                        top = max(top, here)
                    else:
                        below[way + token] = (here, on)
                if way in through:  # it ends here, as far as no longer spelling goes on
                    going = math.fsum(math.exp(shown.tokens[token]) for token in step.ways)
                    here = logprob + math.log(max(1.0 - going, 1e-300))
                    found[spellings[way]].append(here)
                    top = max(top, here)
            top = max([top, *(here for here, _ in below.values())])
            frontier = {way: item for way, item in below.items() if item[0] >= top + PRUNE}
        logprobs = {name: values or [-math.inf] for name, values in found.items()}
        return Reading(logprobs, unseen=unseen)

    # --- the two APIs ---

    def _position(self, question: Question, way: str) -> Shown:
        """The likeliest tokens behind the prompt and the way walked so far."""
        top = self._http.top_logprobs
        if self._http.api == "completions":
            body = {"prompt": question.plain() + way, "max_tokens": 1, "logprobs": top}
            choice = self._ask("completions", body)
            pairs = (_field(choice, "logprobs", "top_logprobs") or [None])[0]
            if not isinstance(pairs, dict) or not pairs:
                raise _no_logprobs()
            return Shown({str(token): float(value) for token, value in pairs.items()})
        body = self._chat(question, question.opening.lstrip() + way)
        choice = self._ask("chat/completions", {**body, "max_tokens": 1, "logprobs": True,
                                                "top_logprobs": top})  # fmt: skip
        entries = (_field(choice, "logprobs", "content") or [{}])[0].get("top_logprobs")
        if not entries:
            raise _no_logprobs()
        shown: dict[str, float] = {}
        for one in entries:  # tokens that are no text of their own may look alike
            token, value = str(one["token"]), float(one["logprob"])
            shown[token] = max(value, shown.get(token, -math.inf))
        return Shown(shown)

    def _write(self, question: Question) -> tuple[str, bool]:
        """A whole answer, and whether it ended by itself."""
        most = self._judge.max_output_tokens or self._format.max_output_tokens
        more: dict[str, Any] = {"max_tokens": most}
        if self._format.stop:
            more["stop"] = list(self._format.stop)
        if self._http.api == "completions":
            choice = self._ask("completions", {"prompt": question.plain(), **more})
            text = choice.get("text")
        else:
            choice = self._ask("chat/completions", {**self._chat(question, ""), **more})
            text = _field(choice, "message", "content")
        return str(text or ""), choice.get("finish_reason") == "stop"

    def _chat(self, question: Question, begun: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": question.system}] if question.system else []
        messages.append({"role": "user", "content": question.user})
        if not begun:
            return {"messages": messages}
        messages.append({"role": "assistant", "content": begun})
        return {
            "messages": messages,
            "continue_final_message": True,
            "add_generation_prompt": False,
        }

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request; gives its choice. Raises _RowError, ConfigError, EngineError."""
        sent = {"model": self._judge.model, "temperature": 0, **body}
        try:
            answer: httpx.Response = RETRY(self._send, path, sent)
        except Unavailable as error:
            raise EngineError(
                f"the judge's server does not answer: {error}", base_url=self._http.base_url
            ) from None
        if answer.status_code in (401, 403, 404):
            raise ConfigError(
                f"the judge's server says HTTP {answer.status_code}: check judge.http.base_url, "
                "judge.http.api_key_env and judge.model",
                base_url=self._http.base_url,
            )
        if answer.status_code != 200:
            raise _RowError(f"the judge's server says HTTP {answer.status_code}: {_reason(answer)}")
        try:
            choice = answer.json()["choices"][0]
        except (ValueError, LookupError, TypeError):
            choice = None
        if not isinstance(choice, dict):
            raise EngineError(
                "the judge's server does not speak OpenAI's API", base_url=self._http.base_url
            )
        return choice

    def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            answer = self._client.post(path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"HTTP {answer.status_code}")
        return answer


class _RowError(Exception):
    """This row cannot be judged; the message says why."""


def _no_logprobs() -> ConfigError:
    return ConfigError(
        "the judge's server sent no log-probabilities: a server that can (vLLM, SGLang) is needed, "
        "or judge.http.top_logprobs is more than it allows"
    )


def _client(http: HttpConfig) -> httpx.Client:
    key = os.environ.get(http.api_key_env, "") if http.api_key_env else ""
    if http.api_key_env and not key:
        raise ConfigError(f"no key for the judge's server: set {http.api_key_env}")
    host = httpx.URL(http.base_url).host
    return httpx.Client(
        base_url=http.base_url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=http.timeout_s,
        limits=httpx.Limits(max_connections=http.concurrency),
        # A server on this machine is never behind the proxy that the environment names.
        trust_env=host not in ("localhost", "127.0.0.1", "::1"),
    )


def _field(choice: Mapping[str, Any], *path: str) -> Any:
    value: Any = choice
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _reason(answer: httpx.Response) -> str:
    try:
        document = answer.json()
    except ValueError:
        return answer.text[:200]
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
