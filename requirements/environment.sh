#!/bin/sh
# Make .venv/ ready: find a Python that fits, and let environment.py do the rest.
# PYTHON=/path/to/python chooses another one.
set -eu
cd "$(dirname "$0")/.."

fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$python" -c "$fits" >/dev/null 2>&1; then
        exec "$python" requirements/environment.py "$@"
    fi
done

echo "ray-judge needs Python 3.11, 3.12 or 3.13 with its venv module, and found none of them as
  ${PYTHON:-python3, python3.13, python3.12, python3.11 or python}.
On Debian and Ubuntu: apt install python3 python3-venv. Elsewhere: install one, or name it:
  make PYTHON=/path/to/python3.12" >&2
exit 1
