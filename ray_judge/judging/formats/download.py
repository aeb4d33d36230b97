"""One file of a public repository over HTTPS: the only way from the judges to a network."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request

from ray_judge.errors import ConfigError

MIRROR_ENV = "RAY_JUDGE_TEMPLATES_URL"
"""Names another server with the same paths: `<URL>/<owner>/<name>/<commit>/<path>`."""
GITHUB = "https://raw.githubusercontent.com"
MAX_BYTES = 8 << 20
SILENCE_S = 15.0
"""How long the server may say nothing."""
TOTAL_S = 60.0
BLOCK = 1 << 16


def download(path: str) -> bytes:
    """Fetch a file. Raises ConfigError that names the URL and says what failed."""
    url = f"{os.environ.get(MIRROR_ENV) or GITHUB}/{path}"
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{MIRROR_ENV} is not an http(s) address", url=url)
    until = time.monotonic() + TOTAL_S
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_S) as answer:
            while block := answer.read1(BLOCK):
                content += block
                if len(content) > MAX_BYTES:
                    raise ConfigError("the file is far larger than a file of templates", url=url)
                if time.monotonic() > until:
                    raise ConfigError(f"the file did not arrive within {TOTAL_S:g} s", url=url)
            if answer.length:  # what it promised and did not send
                raise ConfigError("the connection ended before the file did", url=url)
    except urllib.error.HTTPError as error:
        raise ConfigError(f"the server answered {error.code} {error.reason}", url=url) from None
    except urllib.error.URLError as error:
        raise ConfigError(f"no connection: {error.reason}", url=url) from None
    except TimeoutError:
        raise ConfigError(f"the server said nothing for {SILENCE_S:g} s", url=url) from None
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"the connection broke: {error}", url=url) from None
    return bytes(content)
