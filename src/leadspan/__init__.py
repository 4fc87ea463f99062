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

# A table and not imports, which would load torch; every other public name is a truncation policy.
_HOMES = {
    "Supervision": "leadspan.data.supervision",
    "Recipe": "leadspan.recipe",
    "load_recipe": "leadspan.recipe",
    "RunResult": "leadspan.results",
    "load_run": "leadspan.results",
    "run": "leadspan.pipeline.run",
}

# Written out, because type checkers read no computed list.
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
    if name not in __all__:
        raise AttributeError(f"module 'leadspan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "leadspan.data.truncation")), name)
