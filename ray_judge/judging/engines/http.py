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
from threading import Lock
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import httpx
import tenacity

from ray_judge.config import HttpConfig, JudgeConfig, hide_secrets
from ray_judge.errors import ConfigError, EngineError, PausedError, RayJudgeError, brief
from ray_judge.failures import DENIALS, Fault, Kind, RequestFailed, check_of, failure_of, in_short
from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.engines.tokens import answer_budget, count_votes
from ray_judge.judging.engines.verdict_tree import Node, Position, Walk
from ray_judge.judging.formats import Format, Parsed, Prompt
from ray_judge.judging.formats.reasoning import template_options
from ray_judge.records import Example


class RowError(Exception):
    """This row cannot be judged; the message says why."""


def _passes(error: BaseException) -> bool:
    if isinstance(error, RequestFailed):
        return error.meaning.fault is Fault.PROVIDER
    return isinstance(error, httpx.TransportError)


RETRY = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_passes),
    stop=tenacity.stop_after_attempt(6) | tenacity.stop_after_delay(300),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
    reraise=True,
)
"""A local server is asked again when it is busy, restarting or gone; nothing is paid for here."""
CONNECT_S = 10.0
SHOWS = r"\b(top_logprobs|logprobs|continue_final_message|add_generation_prompt)\b"
"""Parameters that mean nothing else where a server's words have them: few name them in `param`."""
KEY_OF = {
    "top_logprobs": "judge.http.top_logprobs",
    "logprobs": "judge.http.top_logprobs",
    "continue_final_message": "judge.http.api (completions goes without it)",
    "add_generation_prompt": "judge.http.api (completions goes without it)",
    "model": "judge.model",
    "temperature": "judge.model and judge.temperature (null is 0)",
    "chat_template_kwargs": "judge.thinking and judge.chat_template_kwargs",
}
"""Parameter of a request → the key to look at: where it is refused, every row is."""
ROUNDED_UP = 1e-3
NO_LOGPROBS = (
    "the judge's server sent no log-probabilities: a server that can (vLLM, SGLang) is needed, or "
    "judge.http.top_logprobs is more than it allows"
)


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
        check_request(judge, format_)
        self._judge, self._format, self._http = judge, format_, judge.http
        self._client = _client(judge.http)
        self._pool = ThreadPoolExecutor(judge.http.concurrency, thread_name_prefix="judge-http")
        self._first = Lock()
        self._refused: RayJudgeError | None = None
        self._begun = self._answered = self._shown = False
        self._denied = 0

    def read(self, examples: Sequence[Example]) -> list[Reading | str]:
        """The first row is asked alone: what the server refuses of all rows costs one request."""
        head: list[Reading | str] = []
        with self._first:
            if self._refused:
                raise self._refused
            if examples and not self._begun:
                try:
                    head = [self._read(examples[0])]
                except RayJudgeError as error:
                    self._refused = error
                    raise
                self._begun = True
        return [*head, *self._pool.map(self._read, examples[len(head) :])]

    def _read(self, example: Example) -> Reading | str:
        prompt, judge = self._format.render(example), self._judge
        try:
            if judge.confidence == "votes":
                answers = [self._write(prompt, n)[1] for n in range(judge.samples)]
                return count_votes(answers, self._format)
            if judge.decode == "full":
                answer, parsed = self._write(prompt)
                if parsed.verdict is None:
                    return str(parsed.reason)
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
                likeliest = max(shown, key=lambda token: shown[token])
                logprobs = [shown[token] for token in node.children]
                positions.append(Position(logprobs, likeliest=likeliest))
            walk.take(positions)
        logprobs_of = walk.logprobs(list(alternatives))
        return Reading(logprobs_of, unseen=unseen, would_write=walk.would_write)

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
                if logprob is not None:
                    shown[str(token)] = max(float(logprob), shown.get(str(token), -math.inf))
        if (most := max(shown.values(), default=0.0)) > ROUNDED_UP:
            raise ConfigError(
                f"the judge's server sent {most:g} as the logarithm of a probability, which is "
                "above 0: a server that sends log-probabilities (vLLM, SGLang) is needed"
            )
        if not shown and not self._shown:
            raise ConfigError(NO_LOGPROBS)
        if not shown:
            raise RowError("the judge's server sent no log-probabilities")
        self._shown = True
        return shown

    def _write(self, prompt: Prompt, number: int = 0) -> tuple[str, Parsed]:
        """Ask for a whole answer; gives it with its reasoning, and what it says."""
        judge = self._judge
        wish: dict[str, Any] = {"max_tokens": answer_budget(judge, self._format)}
        if self._format.stop:
            wish["stop"] = list(self._format.stop)
        if judge.temperature:
            wish |= {"temperature": judge.temperature, "seed": number}
        choice = self._ask(prompt, "", **wish)
        message = choice.get("message") or {}
        text = str(choice.get("text") or message.get("content") or "")
        if trace := message.get("reasoning_content") or message.get("reasoning"):
            end = f"</think>\n\n{text.lstrip()}" if text.strip() else ""
            text = f"<think>\n{str(trace).strip()}\n{end}"  # as the templates write it
        parsed = self._format.parse(text, opened=bool(judge.thinking))
        if parsed.reason and choice.get("finish_reason") != "stop":
            parsed = replace(parsed, reason=f"{parsed.reason} (the answer was cut)")
        return text, parsed

    def _ask(self, prompt: Prompt, way: str, **wish: Any) -> dict[str, Any]:
        """Send one request; gives its choice. Raises RowError, and errors of the whole run."""
        path, body = "completions", dict[str, Any](prompt=prompt.plain() + way)
        if self._http.api == "chat":
            path, body = "chat/completions", {"messages": prompt.messages()}
            if begun := prompt.opening.lstrip() + way:
                body["messages"].append({"role": "assistant", "content": begun})
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            if options := template_options(self._judge, None):
                body["chat_template_kwargs"] = options
        sent = {"model": self._judge.model, "temperature": 0, **body, **wish}
        try:
            choices = RETRY(self._send, path, sent)
        except httpx.TransportError as error:
            said = brief(f"{type(error).__name__}: {error}")
            raise EngineError(
                f"the judge's server cannot be reached ({said}): is it up, and is "
                "judge.http.base_url right?",
                base_url=hide_secrets(self._http.base_url),
            ) from None
        except RequestFailed as failure:
            raise self._error(failure) from None
        self._answered, self._denied = True, 0
        if not choices:
            raise RowError("the judge's server sent no choice")
        return dict(choices[0])

    def _send(self, path: str, body: Mapping[str, Any]) -> list[Any]:
        """Send it once; gives the choices. Raises RequestFailed and httpx.TransportError."""
        answer = self._client.post(path, json=body)
        try:
            document = answer.json()
        except ValueError:
            document = None
        told = document if isinstance(document, dict) else {}
        if answer.status_code != 200 or told.get("error"):
            raise failure_of(answer.status_code, _told(told, answer.text), answer.headers, KEY_OF)
        choices = told.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            reason = f"HTTP 200 with what is no completion: {in_short(answer.text[:2000])}"
            # A server that has done so before passes through a bad moment; another is none.
            kind = Kind.AMBIGUOUS if self._answered else Kind.DENIED
            raise RequestFailed(kind, reason, answer.status_code)
        return choices

    def _error(self, failure: RequestFailed) -> Exception:
        """What a failed request means for its row, or for the run."""
        said = f"the judge's server says {failure.reason.rstrip('.')}"
        where = {"base_url": hide_secrets(self._http.base_url)}
        if failure.meaning.fault is Fault.QUESTION:
            return RowError(said)
        if failure.status == 403 and self._answered and self._denied < DENIALS:
            self._denied += 1  # moderated; where it is the key, the next ones are denied, too
            return RowError(said)
        if failure.kind is Kind.BILLING:
            return PausedError(f"{said}: mend it, run again", **where)
        if failure.meaning.fault is Fault.PROVIDER:
            check = ". Check judge.http.concurrency" if failure.kind is Kind.RATE_LIMIT else ""
            return EngineError(f"{said}, again and again{check}", **where)
        key = f"{self._http.api_key_env}, " if self._http.api_key_env else ""
        check = failure.key or f"{key}judge.model and judge.http.base_url"
        check = check_of(failure, check, "judge.http.base_url", self._http.base_url)
        return ConfigError(f"{said}. Check {check}", **where)


def _told(document: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The `error` object of an answer, however its server lays it out."""
    error = document.get("error") or document
    error = error if isinstance(error, dict) else {"message": error}
    words = error.get("message") or document.get("detail") or text[:2000]
    words = words if isinstance(words, str) else str(words)
    named = re.search(SHOWS, words)
    return {**error, "message": words, "param": error.get("param") or (named and named[0])}


def check_request(judge: JudgeConfig, format_: Format) -> None:
    """Refuse what such a server cannot be asked for (ConfigError)."""
    assert judge.http is not None
    chat = format_.chat if judge.chat is None else judge.chat
    if judge.http.api == "completions" and chat:
        raise ConfigError("this judge is asked through its chat template: judge.http.api: chat")
    if judge.http.api == "chat" and chat is False:
        raise ConfigError("this judge has no chat template: judge.http.api: completions")
    templated = judge.thinking is not None or judge.chat_template_kwargs
    if judge.http.api == "completions" and templated:
        raise ConfigError("thinking and chat_template_kwargs need judge.http.api: chat")
    if judge.overlong == "cut":
        raise ConfigError("judge.overlong: cut needs the model's tokenizer: engine: vllm")


def read_key(http: HttpConfig) -> str:
    """The server's key, from this process's environment; empty where it needs none."""
    key = os.environ.get(http.api_key_env or "", "")
    if http.api_key_env and not key:
        raise ConfigError(f"no key for the judge's server: set {http.api_key_env}")
    return key


def _client(http: HttpConfig) -> httpx.Client:
    key = read_key(http)
    address = urlsplit(http.base_url)
    return httpx.Client(
        base_url=address._replace(query="", fragment="").geturl().rstrip("/") + "/",
        params=dict(parse_qsl(address.query)),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(http.timeout_s, connect=min(CONNECT_S, http.timeout_s)),
        limits=httpx.Limits(max_connections=http.concurrency),
        # A server on this machine is never behind the proxy that the environment names.
        trust_env=address.hostname not in ("localhost", "127.0.0.1", "::1"),
    )
