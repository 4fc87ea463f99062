import importlib
import subprocess
import sys

import leadspan
from leadspan.planning.plan import plan_recipe


def test_every_public_name_can_be_imported_and_is_offered() -> None:
    module = importlib.import_module("leadspan")
    assert all(getattr(module, name).__name__ == name for name in leadspan.__all__)
    assert dir(leadspan) == sorted(leadspan.__all__)
    assert leadspan.plan_recipe is plan_recipe


def test_importing_leadspan_loads_nothing_large() -> None:
    code = (
        "import sys, leadspan\n"
        "leadspan.AuditSettings, leadspan.WorldFiles, leadspan.build_report, leadspan.retention\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
