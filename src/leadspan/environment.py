"""The environment of a run: versions, platform, commit, date."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def environment(seed: int) -> dict[str, str]:
    """Versions, platform, commit and date of a run."""
    packages = (
        "leadspan",
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "tokenizers",
        "peft",
        "math-verify",
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    commit = _commit()
    if commit:
        versions["commit"] = commit
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": str(seed),
    }


def _commit() -> str | None:
    """Commit of the source tree leadspan runs from, `+` when it has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + ("+" if changes.stdout.strip() else "")
