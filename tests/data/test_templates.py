"""Chat templates run as Transformers runs them, and no template takes the process with it."""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leadspan.data import template_worker, templates
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.data.templates import ChatTemplate, TemplateRefusal
from leadspan.errors import ModelError
from toys import TEMPLATE, character_tokenizer

MESSAGES = [
    {"role": "user", "content": 'q "1" é?'},
    {"role": "assistant", "content": "a", "reasoning": "r", "name": None},
]
DAY = datetime.date(2024, 7, 26)
AS_TRANSFORMERS = {
    "plain": TEMPLATE,
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "reasoning under every key": "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ messages[1].name }}",
    "generation": "{% for m in messages %}{% generation %}\n  {{ m.content }}\n{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
    "blocks trimmed": "a\n  {% if true %}\n  b\n  {% endif %}\nc {{ eos_token }} {{ flag }} {{ tools is none }}",
}
HOSTILE = {
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "processor time",
    ),
    "a power": ("{{ 9 ** (9 ** (9 ** 9)) }}", "processor time|memory"),
    "a long text": ("{{ 'a' * 99999999999 }}", "memory"),
    "text that doubles": (
        "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "memory|processor time",
    ),
    "padding": ("{{ '%99999999d' % 1 }}", "characters|memory|processor time"),
    "links": ("{{ ('www.' * 100000) | urlize }}", "characters|processor time"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "parentheses": ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "RecursionError|processor time|status"),
    "range": ("{% for i in range(10000000000) %}x{% endfor %}", "Range too big"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "import": ("{% import 'os' as os %}", "no loader"),
    "escape": ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "types": ("{{ messages + 1 }}", "TypeError"),
    "key": ("{{ {[]: 1} }}", "TypeError"),
    "call": ("{{ none() }}", "TypeError"),
    "filter": ("{{ messages | dictsort }}", "AttributeError"),
    "no such filter": ("{{ 1 | nosuch }}", "No filter named 'nosuch'"),
    "break": ("{% break %}", "SyntaxError"),
    "syntax": ("a\n{% for %}", "line 2"),
    "surrogate": ("{{ '\\ud800' }}", "UnicodeEncodeError"),
    "its own error": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "an empty error": ("{{ raise_exception('') }}", "without a message"),
}


def chat_template(text: str, **variables: object) -> ChatTemplate:
    return ChatTemplate("T", text, variables, DAY)


@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_a_template_renders_as_in_transformers(name: str) -> None:
    text, tokenizer = AS_TRANSFORMERS[name], character_tokenizer()
    ours = chat_template(text, flag=True, **tokenizer.special_tokens_map).render([(MESSAGES, True), (MESSAGES, False)])
    theirs = [
        tokenizer.apply_chat_template(
            MESSAGES, chat_template=text, tokenize=False, add_generation_prompt=header, flag=True
        )
        for header in (True, False)
    ]
    assert ours == theirs


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_error_and_the_next_one_is_rendered(name: str) -> None:
    text, message = HOSTILE[name]
    with pytest.raises(ModelError, match=message) as caught:
        chat_template(text).render([(MESSAGES, True)])
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert chat_template("{{ messages[0].role }}").render([(MESSAGES, True)]) == ["user"]


def test_what_takes_too_long_is_no_refusal_of_one_record() -> None:
    with pytest.raises(ModelError) as caught:
        chat_template(HOSTILE["nested loops"][0]).render([(MESSAGES, True)])
    assert not isinstance(caught.value, TemplateRefusal)


def test_long_conversations_have_room_and_time() -> None:
    long = [{"role": "user", "content": "word " * 400_000}]
    [text] = chat_template("{{ messages | tojson }}{{ messages[0].content | trim }}").render([(long, True)])
    assert len(text) > 2 * len(long[0]["content"])


def test_neither_the_clock_nor_chance_is_read() -> None:
    clock, chance = "{{ strftime_now('%d %b %Y %H:%M') }}", "{{ range(1000) | random }}"
    assert chat_template(clock).render([(MESSAGES, True)]) == ["26 Jul 2024 00:00"]
    assert len(set(chat_template(chance).render([(MESSAGES, True)] * 5))) == 1
    assert chat_template(clock).names_read() == {"strftime_now": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a\n{% for %}", "T.jinja: line 2: .*; give another template with data", id="syntax"),
        pytest.param("{{ functions | length }}{{ functions.x.y }}", "set it with .*template_variables", id="variable"),
        pytest.param("{{ messages + 1 }}", "TypeError.*; give another template", id="type"),
    ],
)
def test_a_template_that_renders_nothing_is_one_error_with_its_file_and_a_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "T.jinja"
    file.write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        PromptRenderer(character_tokenizer(), Rendering(chat_template=file))
    assert not isinstance(caught.value, TemplateRefusal) and str(caught.value).count("data.rendering") <= 2


def test_names_are_read_with_the_texts_they_are_compared_with() -> None:
    text = "{% set b = 1 %}{{ b }}{% if a == 'high' or a in ['low', 'high'] or 'no' != c.d %}{{ messages }}{% endif %}"
    assert chat_template(text).names_read() == {"a": ["high", "low"], "c": [], "messages": []}


def test_a_process_that_is_killed_is_told_and_replaced() -> None:
    template = chat_template("{{ messages[0].role }}")
    template.render([(MESSAGES, True)])
    process = templates._PROCESS._process
    assert process is not None
    process.kill()
    with pytest.raises(ModelError, match=f"status -{signal.SIGKILL}"):
        template.render([(MESSAGES, True)])
    assert template.render([(MESSAGES, True)]) == ["user"]


def test_a_forked_process_renders_with_a_process_of_its_own() -> None:
    template = chat_template("{{ messages[0].role }}")
    template.render([(MESSAGES, True)])
    before = templates._PROCESS._process
    assert before is not None
    child = os.fork()
    if child == 0:
        same = template.render([(MESSAGES, True)]) == ["user"] and templates._PROCESS._process is not before
        templates._PROCESS.stop()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert template.render([(MESSAGES, True)]) == ["user"] and templates._PROCESS._process is before


def test_the_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "import datetime, os, signal\n"
        "from leadspan.data import templates\n"
        "templates.ChatTemplate('T', 'x', {}, datetime.date.today()).render([([], True)])\n"
        "print(templates._PROCESS._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    worker = Path("/proc") / done.stdout.strip()
    for _ in range(100):
        if not worker.exists() or "Z" in (worker / "stat").read_text().rpartition(")")[2].split()[:1]:
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail(f"the process {done.stdout} is still there")


def test_the_process_imports_no_model_library() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({template_worker.__file__!r}); "
        "print({'torch', 'transformers', 'leadspan'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
