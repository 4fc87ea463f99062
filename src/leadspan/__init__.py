"""leadspan: distil large reasoning models on the lead span of their traces, and measure what was kept.

>>> import leadspan
>>> leadspan.Lead(p=0.5).label
'lead 0.5'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadspan.data.supervision import Supervision
    from leadspan.data.truncation import (
        Budget,
        Endpoints,
        Full,
        Lead,
        LeadAnswer,
        LeadCot,
        Middle,
        Mix,
        PostConclusion,
        RandomWindow,
        Schedule,
        Sections,
        Tail,
    )
    from leadspan.pipeline.run import run
    from leadspan.recipe import Recipe, load_recipe
    from leadspan.results import RunResult, load_run

_HOMES = {
    "leadspan.data.truncation": (
        "Budget",
        "Endpoints",
        "Full",
        "Lead",
        "LeadAnswer",
        "LeadCot",
        "Middle",
        "Mix",
        "PostConclusion",
        "RandomWindow",
        "Schedule",
        "Sections",
        "Tail",
    ),
    "leadspan.data.supervision": ("Supervision",),
    "leadspan.recipe": ("Recipe", "load_recipe"),
    "leadspan.results": ("RunResult", "load_run"),
    "leadspan.pipeline.run": ("run",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "Endpoints",
    "Full",
    "Lead",
    "LeadAnswer",
    "LeadCot",
    "Middle",
    "Mix",
    "PostConclusion",
    "RandomWindow",
    "Recipe",
    "RunResult",
    "Schedule",
    "Sections",
    "Supervision",
    "Tail",
    "load_recipe",
    "load_run",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing leadspan loads no torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'leadspan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
