"""Make the environment `.venv/` from the pins beside this file, if it is not there yet.

    python requirements/environment.py          make it, or say nothing when it is current
    python requirements/environment.py pins     resolve the pins anew (`make pins`)

The pins are complete, so nothing is resolved here: every package is installed by its exact
version and without its dependencies. uv does it in a fraction of pip's time, but does not know
pip's configuration (a company's index, a folder of wheels), so that is handed to it; where uv
cannot be had, or fails, pip does the same work.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "ray-judge-pins"
"""Written last: what this environment was made from. Without it, .venv is half made."""
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
}
"""pip's option → the variable that tells uv the same."""
COMPILED = {"UV_COMPILE_BYTECODE": "1"}
"""As pip does. Ray and vLLM start a process for each actor; where nothing may be written at run
time (PYTHONDONTWRITEBYTECODE, a read-only image) each would compile all it imports: seconds."""
TARGETS = [
    {"sys_platform": system, "platform_machine": machine, "python_full_version": f"{python}.9"}
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
    for python in ("3.11", "3.12", "3.13")
]
"""The machines that the pins are for."""


def main() -> int:
    """Make the environment, unless it is current."""
    with one_at_a_time():
        engine = engine_of_this_machine()
        made_from = fingerprint(engine)
        if STAMP.exists() and STAMP.read_text() == made_from and works(PYTHON):
            return 0
        begun = time.monotonic()
        say(f"making .venv with Python {sys.version.split()[0]}, pins of requirements/{engine}.txt")
        if sys.platform != "linux":
            say(
                "vLLM has no build for this system, so the local judge cannot run here: `engine: "
                "columns`, the strong judge and the tests without a model can; `make demo` cannot"
            )
        shutil.rmtree(VENV, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(VENV)])
        install(engine)
        STAMP.write_text(made_from)
        say(f".venv is ready after {time.monotonic() - begun:.0f} s")
    return 0


def engine_of_this_machine() -> str:
    """Choose vLLM's build: `gpu` where an NVIDIA GPU answers, else `cpu`; ENGINE overrides."""
    chosen = os.environ.get("ENGINE")
    if chosen in ("cpu", "gpu"):
        return chosen
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return "cpu"
    return "gpu" if found.returncode == 0 and "GPU" in found.stdout else "cpu"


def fingerprint(engine: str) -> str:
    """Hash everything that an environment is made from."""
    pins = [PINS / f"{engine}.txt", PINS / "torch-cpu.txt", Path(__file__)]
    digest = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    digest.update(repr(sorted(project.items())).encode())
    return f"{engine} {digest.hexdigest()}\n"


def install(engine: str) -> None:
    """Install torch, the other pins and this package; with uv, else with pip."""
    for find in (uv, pip):
        installer = find()
        if installer is None:
            continue
        command, environment = installer
        try:
            if engine == "cpu" and sys.platform == "linux":
                install_torch(command, environment)
            run([*command, "--no-deps", "-r", str(PINS / f"{engine}.txt")], environment)
            run([*command, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], environment)
        except subprocess.CalledProcessError as error:
            print((error.stderr or "")[-4000:], file=sys.stderr)
            say(f"{Path(command[0]).name} could not install the pins")
            continue
        return
    raise SystemExit("ray-judge: no environment could be made; what was wrong is said above")


def install_torch(command: list[str], environment: dict[str, str]) -> None:
    """Install torch's CPU build: from where pip looks, else from PyTorch's own index."""
    pin = ["--no-deps", "-r", str(PINS / "torch-cpu.txt")]
    try:
        run([*command, *pin], environment)
    except subprocess.CalledProcessError:
        say(f"taking torch's CPU build from {TORCH_CPU}")
        run([*command, *pin, "--index-url", TORCH_CPU], environment)


def pip() -> tuple[list[str], dict[str, str]]:
    """Give pip's command: slower, and right wherever pip is."""
    say("installing with pip (a minute or two)")
    return [str(PYTHON), "-m", "pip", "install", "--quiet"], dict(os.environ)


def uv() -> tuple[list[str], dict[str, str]] | None:
    """Give uv's command, and pip's configuration in uv's words; None where uv is not to be had."""
    try:
        run([str(PYTHON), "-m", "pip", "install", "--quiet", "-r", str(PINS / "uv.txt")])
    except subprocess.CalledProcessError:
        return None
    settings = as_uv_says(pip_configuration())
    names = sorted(UV_NAMES.keys() & pip_configuration().keys())
    say("installing with uv" + (f" and pip's own {', '.join(names)}" if names else ""))
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(PYTHON)]
    return command, {**settings, **COMPILED, **os.environ}


def pip_configuration() -> dict[str, str]:
    """Read what pip is told on this machine; environment before `install` before `global`."""
    listing = run([str(PYTHON), "-m", "pip", "config", "list"])
    found: dict[str, dict[str, str]] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        with contextlib.suppress(ValueError, SyntaxError):
            found.setdefault(section, {})[name] = str(ast.literal_eval(value))
    sections = [found.get(name, {}) for name in ("global", "install", ":env:")]
    return {name: value for section in sections for name, value in section.items()}


def as_uv_says(options: dict[str, str]) -> dict[str, str]:
    """Translate pip's options into uv's environment."""
    said = {UV_NAMES[name]: value for name, value in options.items() if name in UV_NAMES}
    for name, separator in (("UV_FIND_LINKS", ","), ("UV_INDEX", " "), ("UV_INSECURE_HOST", " ")):
        if name in said:  # pip separates by any white space, also line ends
            said[name] = separator.join(said[name].split())
    said["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's way: all indexes are equal
    return said


def pins() -> int:
    """Resolve cpu.txt and gpu.txt anew from pyproject.toml, for all of TARGETS at once."""
    main()
    found = uv()
    if found is None:
        raise SystemExit("ray-judge: the pins are resolved by uv, and pip cannot install it here")
    command, environment = found
    resolve = [
        *(command[0], "pip", "compile", "--quiet", "--universal", "--python-version=3.11"),
        *("--no-header", "--no-annotate", "--upgrade", "pyproject.toml", "--extra=dev"),
    ]
    needs, overrides = PINS / "torch-needs.in", PINS / "overrides-cpu.txt"
    cpu = [*resolve, "--extra=cpu", str(needs), f"--overrides={overrides}"]
    write_pins("cpu", run(cpu, environment))
    environment.pop("UV_FIND_LINKS", None)  # a CPU wheel there would satisfy the GPU build's torch
    write_pins("gpu", run([*resolve, "--extra=gpu"], environment))
    return 0


def write_pins(engine: str, resolved: str) -> None:
    """Keep the lines that some target needs; drop a marker that is true on all of them."""
    sys.path[:0] = [str(next((VENV / "lib").glob("python3*/site-packages")))]
    from packaging.requirements import Requirement

    lines = [f"# Made by `make pins`: every package of the {engine} environment.\n"]
    for line in resolved.splitlines():
        marker = Requirement(line).marker
        holds = [marker is None or marker.evaluate(dict(target)) for target in TARGETS]
        if any(holds):
            lines.append((line.partition(" ;")[0] if all(holds) else line) + "\n")
    (PINS / f"{engine}.txt").write_text("".join(lines))
    say(f"requirements/{engine}.txt: {len(lines) - 1} packages")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let two makes at once not build the same environment."""
    folder = os.open(PINS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def works(python: Path) -> bool:
    """Whether an interpreter is there and starts (its own Python may have been removed)."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command in the root and give what it printed. Raises CalledProcessError."""
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def say(text: str) -> None:
    """Tell the person what happens."""
    print(f"ray-judge: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(pins() if sys.argv[1:] == ["pins"] else main())
