"""leadspan: distil large reasoning models on the lead span of their traces, and measure what was kept.

>>> import leadspan
>>> leadspan.Lead(p=0.5).label
'lead 0.5'
"""

# As `typing` has it, for type checkers; without its import, Ctrl-C finds less time before `__main__` can handle it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from leadspan.audit.audit import run_audit
    from leadspan.audit.settings import AuditSettings
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
    from leadspan.inputs import prepare_data
    from leadspan.pipeline.run import run
    from leadspan.planning.plan import plan_recipe
    from leadspan.recipe import Recipe, load_recipe
    from leadspan.report.content import build_report
    from leadspan.report.inputs import read_inputs
    from leadspan.results import RunResult, load_run
    from leadspan.statistics.intervals import base_normalised_retention, retention
    from leadspan.statistics.resampling import sign_flip_test
    from leadspan.worlds.files import WorldFiles, write_world

# A table and not imports, which would load torch; every other public name is a truncation policy.
_HOMES = {
    "AuditSettings": "leadspan.audit.settings",
    "Supervision": "leadspan.data.supervision",
    "Recipe": "leadspan.recipe",
    "RunResult": "leadspan.results",
    "WorldFiles": "leadspan.worlds.files",
    "base_normalised_retention": "leadspan.statistics.intervals",
    "build_report": "leadspan.report.content",
    "load_recipe": "leadspan.recipe",
    "load_run": "leadspan.results",
    "plan_recipe": "leadspan.planning.plan",
    "prepare_data": "leadspan.inputs",
    "read_inputs": "leadspan.report.inputs",
    "retention": "leadspan.statistics.intervals",
    "run": "leadspan.pipeline.run",
    "run_audit": "leadspan.audit.audit",
    "sign_flip_test": "leadspan.statistics.resampling",
    "write_world": "leadspan.worlds.files",
}

# Written out, because type checkers read no computed list.
__all__ = [
    "AuditSettings", "Budget", "Endpoints", "Full", "Lead", "LeadAnswer", "LeadCot", "Middle", "Mix",
    "PostConclusion", "RandomWindow", "Recipe", "RunResult", "Schedule", "Sections", "Supervision", "Tail",
    "WorldFiles", "base_normalised_retention", "build_report", "load_recipe", "load_run", "plan_recipe",
    "prepare_data", "read_inputs", "retention", "run", "run_audit", "sign_flip_test", "write_world",
]  # fmt: skip


def __getattr__(name: str) -> "Any":
    """Load a public name when it is first used, so that importing leadspan loads no torch."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'leadspan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "leadspan.data.truncation")), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
