import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from leadspan.cli import main
from leadspan.errors import RunError
from leadspan.files import DIGESTS_FILE, fault, locked
from leadspan.hub import model_card, uncut_beside, write_card
from leadspan.pipeline.run import run
from leadspan.results import RunResult, damage, load_run, save_run
from leadspan.tables import quantity
from made_runs import FULL, UNTAUGHT, MakeRun
from recipes import toy_recipe
from small_hub import TOKEN, SmallHub, small_hub
from studies import EVALUATION, toy_task


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and one of the same recipe without a cut beside it: `run` and `full/run`."""
    directory = tmp_path_factory.mktemp("trained")
    evaluation = {"tasks": [toy_task(directory)], **EVALUATION}
    run(toy_recipe(directory, steps=2, evaluation=evaluation))
    run(toy_recipe(directory / "full", steps=2, evaluation=evaluation, cut={"kind": "full"}))
    return directory


def push(run_directory: Path, hub: SmallHub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`leadspan push RUN me/toy` in a process of its own, whose Hub is the small one."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    known |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(run_directory / "no_home"),
        **environment,
    }
    command = [sys.executable, "-m", "leadspan", "push", str(run_directory), "me/toy", *arguments]
    return subprocess.run(command, env=known, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_card_says_what_a_student_learnt_from_kept_and_cost(trained: Path) -> None:
    student, result = trained / "run" / "student", load_run(trained / "run")
    card = ModelCard.load(student / "README.md")
    assert card.data.library_name == "transformers" and card.data.base_model is None
    (metric,) = card.data.eval_results or []
    assert metric.metric_value == pytest.approx(result.evaluations[0].accuracy_strict.value, abs=1e-4)
    assert result.cut is not None and result.train is not None and result.prediction is not None
    planned, measured = (quantity("flops", cost.flops.total) for cost in (result.prediction, result.train))
    for text in (
        "| cut | lead 0.7 |",
        f"| tokens kept | {result.cut.tokens_after:,} of {result.cut.tokens_before:,} (",
        f"| FLOPs | {planned} | {measured} |",
        "| toy | 3 x 1 | 0 [0, 56] % |",
        "have been seen never to end their answers",
        "--thinking-budget 512",
        "distilled from a qwen3 model from random weights on traces under the cut `lead 0.7`",
        f"torch {result.environment['torch']}",
    ):
        assert text in card.text, text
    assert str(trained) not in card.content
    assert fault(student) is None and damage(trained / "run") is None


@pytest.mark.slow
def test_the_card_of_a_student_that_saw_its_ends_does_not_say_otherwise(trained: Path) -> None:
    result = load_run(trained / "full" / "run")
    budgeted = result.evaluations[0].model_copy(update={"sampling": {"thinking_budget": 48}})
    text = model_card(result.model_copy(update={"evaluations": [budgeted]})).text
    assert "Few of its examples" not in text and "closed after 48 tokens, too: `leadspan chat NAME --" in text


def test_the_card_of_a_student_that_drew_what_it_learnt_from_says_nothing_of_traces(make_run: MakeRun) -> None:
    """The cut of its recipe, a lead that keeps no end of turn, is of no example of its."""
    rollout = {"rollout": {"horizon": {"kind": "fixed", "tokens": 8}}, "loss": {"kl_weight": 1}}
    run = make_run("rollout 8", 9, settings=rollout)
    assert run.cut is not None
    lost = run.cut.model_copy(update={"lost_stop": run.cut.num_kept})
    assert "Few of its examples" not in str(model_card(run.model_copy(update={"cut": lost})))


def test_a_card_says_what_an_on_policy_student_learnt_from(make_run: MakeRun) -> None:
    def text(**rollout: object) -> str:
        settings = {"rollout": {"horizon": {"kind": "fixed", "tokens": 8}, **rollout}, "loss": {"kl_weight": 1}}
        run = make_run("rollout 8", 9, settings=settings)
        return str(model_card(run.model_copy(update={"cut": None})))

    task = {"path": "org/problems", "name": "toy"}
    alone = text(prompts={"kind": "task", "task": task})
    assert "distilled from taught on its own rollouts (`rollout 8`) with" in alone and "under the cut" not in alone
    assert "| prompts | org/problems |" in alone and "datasets:\n- org/problems\n" in alone
    mixed = text(trace_share=0.5)
    assert "on its own rollouts and on traces (`rollout 8`)" in mixed and "| traces | traces |" in mixed


def test_what_is_not_on_the_hub_is_not_called_so(make_run: MakeRun) -> None:
    """Relative paths of a directory in which the card is not written."""
    generated = {"path": "reasoning-gym:chain_sum", "grader": "reasoning_gym", "name": "toy"}
    settings = {
        "data": {"train": {"path": "data/traces.jsonl"}},
        "student": {"kind": "pretrained", "path": "runs/base/student"},
        "evaluation": {"tasks": [generated]},
    }
    card = model_card(make_run("lead 0.5", 5, settings=settings))
    assert card.data.base_model is card.data.datasets is None
    assert "This is `student`, distilled" in card.text and "| traces | traces.jsonl |" in card.text
    assert [result.dataset_type for result in card.data.eval_results] == ["toy"]
    settings["student"] = {"kind": "pretrained", "path": "deepseek-ai/model"}
    assert "This is deepseek-ai/model, distilled" in model_card(make_run("lead 0.5", 5, settings=settings)).text
    alone = model_card(make_run("lead 0.5", 5, settings=settings | UNTAUGHT)).text
    assert "This is deepseek-ai/model, fine-tuned on traces under the cut `lead 0.5` with leadspan" in alone


@pytest.mark.slow
def test_names_in_the_metadata_of_a_card_are_plain(trained: Path) -> None:
    hostile = load_run(trained / "run").model_copy(update={"name": "a\u202eb", "label": "c\x1b[2Jd"})
    data = model_card(hostile).data
    assert [*data.tags[3:], data.model_name] == ["c\ufffd[2Jd", "a\ufffdb"]


@pytest.mark.slow
def test_a_card_is_made_anew_with_evaluations_and_a_reference(trained: Path, tmp_path: Path) -> None:
    student, task = trained / "run" / "student", tmp_path / "second.jsonl"
    task.write_text('{"problem": "add 1", "answer": "1"}\n')
    sampling = ["--set", "sampling.max_new_tokens=4", "--set", "tasks.0.grader=exact"]
    assert main(["evaluate", str(trained / "run"), str(task), "--output", str(tmp_path / "eval"), *sampling]) == 0
    assert [result.dataset_name for result in ModelCard.load(student / "README.md").data.eval_results] == [
        "toy",
        "second",
    ]
    evaluated, full = ["--evaluated", str(tmp_path / "eval")], ["--full", str(trained / "full" / "run")]
    assert main(["card", str(trained / "run"), *evaluated, *full]) == 0
    card = ModelCard.load(student / "README.md")
    assert [result.dataset_name for result in card.data.eval_results] == ["toy", "second"]
    assert "points |" in card.text and "No uncut student" not in card.text  # 0 of 0 right: a difference, no ratio
    assert main(["card", str(trained / "run"), "--full", str(trained / "run")]) == 2
    assert damage(trained / "run") is None
    (student / "README.md").write_text("changed by hand")
    assert "README.md has changed since it was written" in (damage(trained / "run") or "")
    assert main(["card", str(trained / "run")]) == 0
    assert damage(trained / "run") is None


@pytest.mark.slow
def test_a_card_that_cannot_be_renewed_loses_no_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, digests, output = tmp_path / "third.jsonl", trained / "run/student" / DIGESTS_FILE, tmp_path / "eval"
    task.write_text('{"problem": "add 1", "answer": "1"}\n')
    arguments = ["evaluate", str(trained / "run"), str(task), "--output", str(output)]
    with locked(trained / "run" / ".lock", RunError):
        assert main([*arguments, "--set", "sampling.max_new_tokens=4"]) == 0
    assert "model card: not renewed: " in capsys.readouterr().err and load_run(output).evaluations[0].task == "third"
    content = digests.read_text()
    digests.write_text("{")
    assert main(["card", str(trained / "run")]) == 2
    assert "student: digests.json is damaged; restore it from a copy" in capsys.readouterr().err
    digests.write_text(content)
    assert damage(trained / "run") is None


@pytest.mark.slow
def test_a_push_uploads_the_student_and_its_card(trained: Path) -> None:
    student = trained / "run" / "student"
    (student / ".README.md.7.tmp").write_text("what a kill has left")
    with small_hub() as hub:
        pushed = push(trained / "run", hub, "--private", HF_TOKEN=TOKEN)
    assert (pushed.returncode, pushed.stdout) == (0, f"pushed: {hub.url}/me/toy/commit/c0ffee\n"), pushed.stderr
    assert hub.private == {"me/toy": True} and hub.summaries == ["Student and model card"]
    uploaded = {name: content for name, content in hub.files["me/toy"].items() if name != ".gitattributes"}
    assert uploaded == {
        path.name: path.read_bytes() for path in student.iterdir() if path.name[0] != "." and path.name != DIGESTS_FILE
    }
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= uploaded.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refuse", "environment", "message"),
    [
        pytest.param(
            "", {}, "push: me/toy: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN", id="none"
        ),
        pytest.param("", {"HF_TOKEN": "hf_other"}, "refused (401: Invalid username or password.)", id="unknown"),
        pytest.param("/commit/", {"HF_TOKEN": TOKEN}, "use a token that may write to me/toy", id="refused"),
        pytest.param("", {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached", id="network"),
        pytest.param("", {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it", id="offline"),
    ],
)
def test_a_push_that_fails_says_why_in_a_line_and_loses_nothing(
    trained: Path, refuse: str, environment: dict[str, str], message: str
) -> None:
    with small_hub() as hub:
        hub.refuse = refuse
        pushed = push(trained / "run", hub, **environment)
    # above it stand what it does and the bar of an upload that had begun
    last = pushed.stderr.strip().splitlines()[-1]
    assert pushed.returncode == 2 and last.startswith("leadspan push: ") and message in last
    assert "Traceback" not in pushed.stderr
    assert damage(trained / "run") is None


def test_the_uncut_run_beside_a_run_is_compared_with_by_itself(
    tmp_path: Path, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    def write(result: RunResult, directory: str, has_student: bool = True) -> RunResult:
        save_run(result, tmp_path / directory)
        if has_student:
            (tmp_path / directory / "student").mkdir()
        return result

    cut = write(make_run("lead 0.5", 15), "cut")
    write(make_run("full", 30, FULL, settings={"training": {"learning_rate": 1e-4}}), "another_recipe")
    write(make_run("full", 30, FULL, settings={"evaluation": {"tasks": [{"benchmark": "gsm8k"}]}}), "eval", False)
    write(make_run("lead 0.25", 5, {"kind": "lead", "p": 0.25}), "cut_deeper")
    assert uncut_beside(cut, tmp_path / "cut") is None
    assert "No uncut student is known" in write_card(cut, tmp_path / "cut").read_text()
    weightless = {"training": {"keep_checkpoints": False, "log_every": 3}, "data": {"num_workers": 2}}
    full = write(make_run("full", 30, FULL, name="whole", tasks=["toy"], settings=weightless), "whole")
    assert uncut_beside(cut, tmp_path / "cut") == full
    assert uncut_beside(full, tmp_path / "whole") is None
    assert "ncut student" not in write_card(full, tmp_path / "whole").read_text()
    text = write_card(cut, tmp_path / "cut").read_text()
    assert "The uncut student is that of the run whole." in text
    (tmp_path / "whole" / "run.json").write_text("{}")
    assert uncut_beside(cut, tmp_path / "cut") is None
    assert f"not looked at for the uncut run: {tmp_path / 'whole' / 'run.json'}" in caplog.text
    # 15 of the 40 problems are right, of which the uncut student has 30 right: a half
    assert "| toy | 40 x 1 | 38 [32, 44] % | 50 [" in text
