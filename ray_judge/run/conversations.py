"""Conversations as data sets keep them: what of them is context, and what is judged.

`kind_of` tells by a column's values how they are kept:

    messages        a list of {role, content}, or ShareGPT's {from, value}, or JSON text of it;
                    or a single one (LLaMA-Factory's `chosen`)
    list of texts   one a turn (arena 55k), or several to choose from (RewardBench 2)
    transcript      text in which "\\n\\nHuman:" and "\\n\\nAssistant:" begin the turns (HH-RLHF)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Turns = tuple[tuple[str, str], ...]
"""(role, content) of each message."""
SPEAKERS = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant"}
TRANSCRIPT = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
NONE: tuple[Any, ...] = (None, "", "[]", "null", [], {})
TEXT_PARTS = ("text", "input_text", "output_text")
WHOLE = ("messages", "transcript")


class Unfit(Exception):
    """A row's conversation cannot be judged; the message says why. Never leaves this room."""


def kind_of(values: Sequence[Any]) -> str | None:
    """How most of these values are kept; None is plain text. What differs is its row's error."""
    found = [_kind(value) for value in values if value]
    kinds = Counter(kind for kind in found if kind).most_common(1)
    return kinds[0][0] if kinds and 2 * kinds[0][1] >= len(found) else None


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        begin = value.lstrip()
        if begin.startswith("Human:") and len(TRANSCRIPT.findall(value)) > 1:
            return "transcript"
        value = _parse(value) if begin.startswith("[") else None
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, dict) and {"role", "from"} & one.keys() for one in value):
        return "messages"
    return "list of texts" if all(one is None or isinstance(one, str) for one in value) else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_value(value: Any, kind: str | None, name: str) -> Any:
    """A text, a list of texts, or the turns of a conversation, as `kind` says. Raises Unfit."""
    if kind == "transcript" and isinstance(value, str):
        begin, *parts = TRANSCRIPT.split(value)
        if begin.strip() or not parts:
            raise Unfit(f'{name} does not begin with "Human:"')
        speakers = ({"Human": "user"}.get(one, "assistant") for one in parts[::2])
        said = tuple(zip(speakers, (text.strip() for text in parts[1::2]), strict=True))
        return said if said[-1][1] else said[:-1]  # a prompt may end with "Assistant:"
    if isinstance(value, str) and kind and (value := _parse(value)) is None:
        raise Unfit(f"{name} is not JSON, as the other rows are")
    if kind == "messages":
        value = [value] if isinstance(value, Mapping) else value
        if not isinstance(value, list):
            raise Unfit(f"{name} is no list of messages")
        return tuple(_turn(one, name) for one in value)
    if kind in (None, "transcript") and not isinstance(value, str):
        raise Unfit(f"{name} is no text")
    if kind == "list of texts" and not (isinstance(value, list) and value):
        raise Unfit(f"{name} is no list of texts")
    if kind == "list of texts" and not all(one is None or isinstance(one, str) for one in value):
        raise Unfit(f"{name} has one that is no text")
    return value


def _turn(message: Any, name: str) -> tuple[str, str]:
    told = message if isinstance(message, Mapping) else {}
    role, content = told.get("role") or told.get("from"), told.get("content")
    content = told.get("value") if content is None else content
    if not isinstance(role, str):
        raise Unfit(f"{name} has a message without a role")
    if any(told.get(key) not in NONE for key in ("tool_calls", "function_call")):
        raise Unfit(f"{name} has a tool call: only text can be judged")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for one in parts:  # as OpenAI's API takes them: text, image_url, ...
        part = one if isinstance(one, Mapping) else {"text": one}
        kind, text = part.get("type"), part.get("text")
        if kind not in (None, *TEXT_PARTS):
            raise Unfit(f"{name} has a part of type {kind}: only text can be judged")
        if kind is None and text is None:
            raise Unfit(f"{name} has a part without text: only text can be judged")
        texts.append("" if text is None else text)
    if not all(isinstance(text, str) for text in texts):
        raise Unfit(f"{name} has a message that is no text")
    return SPEAKERS.get(role.lower(), role.lower()), "\n".join(texts)


def part_ways(
    instruction: Any, responses: Mapping[str, Any], user_turns: int | None = None
) -> tuple[Turns, list[str]]:
    """Give the context, and of each response what follows it. Raises Unfit.

    The context is what the conversations have in common, and ends where the assistant speaks next.
    Values are as `read_value` gives them; `responses` by name. A response that begins with the
    assistant's turn, or is a text, answers the instruction; any other is a whole conversation.
    `user_turns`: so many of the user's turns count, null: all.
    """
    whole = [_conversation(instruction, one, name) for name, one in responses.items()]
    if user_turns is not None:
        whole = [_first_turns(turns, user_turns) for turns in whole]
    for name, turns in zip(responses, whole, strict=True):
        if not turns or turns[-1][0] != "assistant":
            raise Unfit(f"{name} does not end with a turn of the assistant's")
    common = 0
    while all(turns[:-1][common : common + 1] == whole[0][common : common + 1] for turns in whole):
        common += 1
    while common and any(turns[common][0] != "assistant" for turns in whole):
        common -= 1
    context = whole[0][:common]
    if "user" not in [role for role, _ in context]:
        names = " and ".join(responses)
        why = "have no common beginning" if len(whole) > 1 else "has no turn of the user's"
        raise Unfit(f"{names} {why}")
    return context, [as_text(turns[common:]) for turns in whole]


def _conversation(instruction: Any, response: Any, name: str) -> Turns:
    if isinstance(response, list):  # the assistant's turns; the instruction has the user's
        asked = instruction if isinstance(instruction, list) else [instruction]
        if len(asked) != len(response):
            raise Unfit(f"of turns, instruction has {len(asked)} and {name} {len(response)}")
        both = zip(asked, response, strict=True)
        return tuple(turn for q, a in both for turn in (("user", q or ""), ("assistant", a or "")))
    turns = response if isinstance(response, tuple) else (("assistant", response),)
    if turns and turns[0][0] != "assistant":
        return turns
    before = (("user", instruction),) if isinstance(instruction, str) else instruction or ()
    return (*before, *turns)


def _first_turns(turns: Turns, count: int) -> Turns:
    """The conversation up to the answer to this turn of the user's, the first being 1."""
    users = [n for n, (role, _) in enumerate(turns) if role == "user"]
    return turns[: users[count]] if 0 <= count < len(users) else turns


def as_text(turns: Turns) -> str:
    """Several turns under headings; of a single one the content alone."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"[{role.capitalize()}]\n{content}" for role, content in turns)


def draw(*texts: str) -> int:
    """A number that only these texts decide, the same on every machine."""
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(joined).digest()[:8])
