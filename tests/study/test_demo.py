from pathlib import Path

import pytest

from leadspan.errors import RunError
from leadspan.study import demo


@pytest.mark.slow
def test_a_short_demo_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("NUM_TRAINING", 200), ("NUM_TEST", 20), ("MAX_NEW_TOKENS", 20)):
        monkeypatch.setattr(demo, name, number)
    for name in ("TEACHER_TRAINING", "BASE_TRAINING", "STUDENT_TRAINING"):
        monkeypatch.setattr(demo, name, demo._training(2, 1e-3))
    runs = demo.run_demo(tmp_path / "demo", seed=1)
    shown = " ".join(capsys.readouterr().out.split())
    assert [run.role for run in runs] == ["teacher", "base"] + 6 * ["student"]
    assert "of its answers, and" in shown and "ran into the cap on new tokens" in shown  # as two steps teach nobody
    for run in runs[2:]:
        assert run.label in shown and run.train is not None
        assert run.train.num_tokens > 0
    full = runs[2].train
    assert full is not None
    shares = {run.label: run.train.num_tokens / full.num_tokens for run in runs[2:] if run.train}
    assert shares["lead 0.5"] == pytest.approx(0.5, abs=0.01) and shares["lead 0.25"] == pytest.approx(0.25, abs=0.01)
    assert shares["tail 0.5"] == pytest.approx(0.5, abs=0.01)
    (mixed,) = [run.cut for run in runs if run.label == "mix 0.9 lead 0.5"]
    assert mixed is not None
    whole = 1 - mixed.lost_answer / mixed.num_examples  # of 200 traces, drawn with a probability of a tenth
    assert 0 < whole < 0.2
    assert mixed.tokens_after / mixed.tokens_before == pytest.approx(0.5 + 0.5 * whole, abs=0.01)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 1_000_000
    with pytest.raises(RunError, match="it is not empty"):
        demo.run_demo(tmp_path / "demo", seed=1)
