from pathlib import Path

from transformers import AutoTokenizer

from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.settings import Rendering
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import load_task
from leadspan.traces.read import read_traces
from leadspan.traces.records import Trace
from leadspan.traces.settings import TraceSource
from leadspan.worlds.files import build_tokenizer, problem_lines
from leadspan.worlds.problems import DeriveAndVerify


def test_problems_survive_disk_template_and_tokenizer(tmp_path: Path) -> None:
    problems = DeriveAndVerify(min_variables=2, max_variables=5).problems(40, 0, "train")
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    renderer = Renderer(tokenizer, Rendering(step_delimiter="\n"))
    (tmp_path / "t.jsonl").write_text(problem_lines(problems))
    source = TraceSource(path=str(tmp_path / "t.jsonl"))
    traces = [t for t in read_traces(source) if isinstance(t, Trace)]
    texts = [renderer.render(t) for t in traces]
    assert len(traces) == 40
    for text, problem in zip(texts, problems, strict=True):
        assert isinstance(text, RenderedText)
        tokens = renderer.tokenise([text], traces[:1])[0]
        s = tokens.sections
        assert tokenizer.decode(tokens.input_ids) == text.text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in tokens.input_ids
        cot = tokenizer.decode(tokens.input_ids[s.prompt_end : s.cot_end])
        assert cot == f"<think>\n{problem.cot}\n</think>"
        assert tokenizer.decode(tokens.input_ids[s.cot_end :]) == f"\n\n{problem.answer}<|im_end|>"
        assert len(s.steps) == problem.cot.count("\n")


def test_tasks_are_read_back(tmp_path: Path) -> None:
    problems = DeriveAndVerify().problems(10, 0, "test")
    (tmp_path / "t.jsonl").write_text(problem_lines(problems, is_task=True))
    read = load_task(TaskSettings(name="t", path=str(tmp_path / "t.jsonl")))
    assert [(p.text, p.gold) for p in read] == [(p.prompt, p.answer) for p in problems]
