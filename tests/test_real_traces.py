"""Real DeepSeek-R1 traces, the real Qwen3 tokenizer, tiny models of the real architecture and vocabulary."""

from pathlib import Path

import pytest
from benchmarks.plans import run_trial

from leadspan.recipe import Recipe
from leadspan.settings import load_settings
from leadspan.tables import quantity

RECIPE = Path(__file__).parents[1] / "recipes" / "qwen3_r1_traces.yaml"


@pytest.mark.shared
@pytest.mark.slow
def test_full_against_lead_on_real_traces(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(RECIPE.parents[1])
    few = [
        "data.train.limit=200",
        "data.max_tokens=750",
        "data.num_train=4",
        "data.num_validation=1",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    few += ["training.batching.examples_per_step=2", "plan.break_point_seconds=0"]  # which other tests search for
    recipes = [
        load_settings(Recipe, RECIPE, [*few, f"output={tmp_path / name}", f"cut={cut}"])
        for name, cut in (("full", "{kind: full}"), ("lead", "{kind: lead, p: 0.5}"))
    ]
    runs = [run_trial(recipe) for recipe in recipes]
    full, lead = (run.train for run in runs)
    assert full is not None and lead is not None
    with capsys.disabled():
        print("\n              tokens       time   peak memory     FLOPs     loss")  # noqa: T201  # the point of the test
        for run in runs:
            t = run.train
            assert t is not None
            cells = [f"{t.num_tokens:,}", *(quantity(c, v) for c, v in (("seconds", t.seconds),))]
            cells += [quantity("peak_memory_bytes", t.peak_memory_bytes), quantity("flops", t.flops.total)]
            losses = f"{t.first_loss:.3f} -> {t.final_loss:.3f}"
            print(f"{run.label:8} {cells[0]:>11} {cells[1]:>10} {cells[2]:>13} {cells[3]:>9}  {losses}")  # noqa: T201
    for train in (full, lead):
        assert train.final_loss < train.first_loss
    assert 0.49 < lead.num_tokens / full.num_tokens < 0.51
    assert lead.num_examples == full.num_examples
    assert 0.4 < lead.flops.total / full.flops.total < 0.52
    assert runs[1].cut is not None and runs[1].cut.lost_question == 0 and runs[1].cut.lost_stop == 4
    assert list(full.validation_loss) == list(lead.validation_loss)
    assert (tmp_path / "lead" / "student" / "generation_config.json").exists()
