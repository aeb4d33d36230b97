"""The known word that somebody who mistyped one probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """Give ` (did you mean ...?)` with the known word that is closest, or nothing."""
    close = [key for key in known if key.startswith(word)][:1]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # a key in the wrong group: compare the last part alone
        last = word.rpartition(".")[2]
        close = [key for key in known if key.rpartition(".")[2] == last][:1]
    return f" (did you mean {close[0]}?)" if close else ""
