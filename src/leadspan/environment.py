"""The environment of a run: versions, platform, commit, date."""

import contextlib
import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def environment(seed: int) -> dict[str, str]:
    """Versions, platform and date of a run, and the commit of the source tree, `+` when it has changes."""
    packages = ("leadspan", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "math-verify")
    versions = {name: importlib.metadata.version(name) for name in packages}
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    # Only of a checkout of leadspan itself: an installed package may lie below another project's repository.
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", __file__)
        versions["commit"] = git("rev-parse", "HEAD")[:12] + ("+" if git("status", "--porcelain") else "")
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": str(seed),
    }
