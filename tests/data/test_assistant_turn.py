"""A trace is written in the form of the template, or refused with the setting that mends it."""

import json
from pathlib import Path

import pytest

from leadspan.data.prepare import prepare
from leadspan.data.prompts import PromptRenderer
from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.settings import DataSettings, NoValidation, Rendering
from leadspan.errors import ModelError, SettingsError
from leadspan.settings import validate
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource
from toys import DROPS_COT, TEMPLATE, character_tokenizer, write_traces

TRACE = Trace(({"role": "user", "content": "q?"},), "one\n\ntwo", "yes.", place="t.jsonl:1")
START = "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n"
CLOSES = DROPS_COT.replace(HEADER, HEADER + "{{ '<think>' if thinking is defined and thinking else '</think>' }}")
EMPTIES = DROPS_COT.replace(HEADER, HEADER + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}")
OPENS = DROPS_COT.replace(HEADER, HEADER + "<thought>\n")
WRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.KEY %}OPEN{{ m.KEY }}CLOSE{% endif %}"
    "BEFORE{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDS_OTHERWISE = DROPS_COT.replace("<|im_end|>", "<|endoftext|>")
NO_END = DROPS_COT.replace("<|im_end|>\n", "")


def writes(key: str, opening: str, closing: str, before: str = "") -> str:
    template = WRITES.replace("KEY", key).replace("OPEN", opening).replace("CLOSE", closing)
    return template.replace("BEFORE", "{% if m.role == 'assistant' %}" + before + "{% endif %}" if before else "")


CHANNELS = writes("thinking", "<|channel|>analysis\n", "<|end|>", "<|channel|>final\n")


def rendered(template: str, **rendering: object) -> str:
    text = Renderer(character_tokenizer(template), validate(Rendering, rendering, "test")).render(TRACE)
    assert isinstance(text, RenderedText), text
    return text.text


def refused(template: str, **rendering: object) -> str:
    with pytest.raises(ModelError) as caught:
        Renderer(character_tokenizer(template), validate(Rendering, rendering, "test"))
    return str(caught.value)


@pytest.mark.parametrize("turn", ["template", "append"])
@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        pytest.param(CLOSES, "template_variables: {thinking: true}", id="closes thinking"),
        pytest.param(EMPTIES, "template_variables: {enable_thinking: true}", id="empties thinking"),
        pytest.param(DROPS_COT.replace(HEADER, HEADER + "</think>"), "thinking is over before it begins", id="always"),
        pytest.param(OPENS, 'think_open: "<thought>"', id="opens a tag of its own"),
        pytest.param(writes("reasoning", "<t>", "</t>"), 'think_open: "<t>" and think_close: "</t>"', id="own tags"),
        pytest.param(PARTS, 'think_open: "[THINK]" and think_close: "[/THINK]"', id="tags around parts"),
        pytest.param(
            CHANNELS,
            'think_open: "<|channel|>analysis" and think_close: "<|end|><|channel|>final"',
            id="channels",
        ),
    ],
)
def test_a_form_of_the_templates_own_is_named_with_the_setting_that_gives_it(
    template: str, remedy: str, turn: str
) -> None:
    assert remedy in refused(template, assistant_turn=turn)


@pytest.mark.parametrize(
    ("template", "rendering", "turn"),
    [
        pytest.param(
            CLOSES,
            {"template_variables": {"thinking": True}, "assistant_turn": "append"},
            "<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>",
            id="closes thinking",
        ),
        pytest.param(
            EMPTIES,
            {"template_variables": {"enable_thinking": True}, "assistant_turn": "append"},
            "<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>",
            id="empties thinking",
        ),
        pytest.param(
            OPENS,
            {"think_open": "<thought>", "think_close": "</thought>", "assistant_turn": "append"},
            "<thought>\none\n\ntwo\n</thought>\n\nyes.<|im_end|>",
            id="opens a tag of its own",
        ),
        pytest.param(
            writes("reasoning", "<t>", "</t>"),
            {"think_open": "<t>", "think_close": "</t>"},
            "<t>one\n\ntwo</t>yes.<|im_end|>\n",
            id="own tags",
        ),
        pytest.param(
            PARTS,
            {"think_open": "[THINK]", "think_close": "[/THINK]"},
            "[THINK]one\n\ntwo[/THINK]yes.<|im_end|>\n",
            id="tags around parts",
        ),
        pytest.param(
            CHANNELS,
            {"think_open": "<|channel|>analysis", "think_close": "<|end|><|channel|>final"},
            "<|channel|>analysis\none\n\ntwo<|end|><|channel|>final\nyes.<|im_end|>\n",
            id="channels",
        ),
        pytest.param(
            ENDS_OTHERWISE,
            {"assistant_turn": "append"},
            "<think>\none\n\ntwo\n</think>\n\nyes.<|endoftext|>",
            id="another end of turn",
        ),
        pytest.param(
            NO_END,
            {"assistant_turn": "append", "end_of_turn": "<|endoftext|>"},
            "<think>\none\n\ntwo\n</think>\n\nyes.<|endoftext|>",
            id="no end of turn",
        ),
        pytest.param(
            TEMPLATE.replace("<|im_end|>\n", ""),
            {"end_of_turn": "<|im_end|>"},
            "<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>",
            id="no end of turn, in the template",
        ),
    ],
)
def test_the_setting_gives_the_templates_form(template: str, rendering: dict[str, object], turn: str) -> None:
    start = START.replace("<|im_end|>\n", "") if "<|im_end|>" not in template else START
    start = START.replace("<|im_end|>", "<|endoftext|>") if template is ENDS_OTHERWISE else start
    assert rendered(template, **rendering) == start + turn


@pytest.mark.parametrize("turn", ["template", "append"])
@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace(HEADER, HEADER + "<think>\n")], ids=["usual", "opens"])
def test_white_space_around_the_tags_is_the_templates(template: str, turn: str) -> None:
    given = rendered(template, assistant_turn=turn, think_open="<think>\n", think_close="\n</think>\n\n")
    assert (
        given
        == rendered(template, assistant_turn=turn)
        == START + ("<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>" + ("\n" if turn == "template" else ""))
    )
    assert Rendering(think_close="</think>\n\n") == Rendering()
    with pytest.raises(SettingsError, match="think_open = ' '"):
        validate(Rendering, {"think_open": " "}, "recipe")


def test_append_is_refused_where_the_template_has_parts_that_it_would_leave_out() -> None:
    template = writes("nothing", "", "", "<|channel|>final\n")
    assert "`append` would leave some out" in refused(template, assistant_turn="append")


def test_a_template_that_writes_no_text_is_not_mended_by_append() -> None:
    parts_only = TEMPLATE.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    for turn in ("template", "append"):
        message = refused(parts_only, assistant_turn=turn)
        assert "give a template that keeps" in message and "assistant_turn: append" not in message


def test_a_turn_goes_on_from_where_the_generation_header_ends() -> None:
    template = writes("reasoning", "<think>", "\n</think>\n\n").replace(HEADER, HEADER + "<think>\n")
    message = refused(template)
    assert r"ends with '|>assistant\n<think>\n', and a turn does not go on from there" in message
    assert "assistant_turn: append" in message
    assert rendered(template, assistant_turn="append") == f"{START}<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>"


def test_a_generation_header_behind_finished_conversations_is_a_fault() -> None:
    always = TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}")
    assert "writes its generation header after finished conversations too" in refused(always)
    assert rendered(always, assistant_turn="append") == f"{START}<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>"


def test_an_end_of_turn_has_to_be_needed_and_special() -> None:
    assert "set data.rendering.end_of_turn" in refused(NO_END, assistant_turn="append")
    assert "ends an assistant turn with '<|im_end|>' itself" in refused(TEMPLATE, end_of_turn="<|endoftext|>")
    assert "no special token" in refused(NO_END, assistant_turn="append", end_of_turn="END")


def test_empty_thoughts_in_earlier_turns_are_no_fault() -> None:
    template = DROPS_COT.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' %}<think></think>")
    assert rendered(template, assistant_turn="append") == f"{START}<think>\none\n\ntwo\n</think>\n\nyes.<|im_end|>"


def test_variables_that_the_template_does_not_read_are_refused() -> None:
    assert "did you mean 'enable_thinking'?" in refused(EMPTIES, template_variables={"enable_thinkin": True})
    with pytest.raises(ValueError, match="'messages' is given by leadspan"):
        Rendering(template_variables={"messages": 1})


def test_prompts_of_an_evaluation_take_the_variables_and_tell_of_a_header_that_closes_thinking() -> None:
    messages = [{"role": "user", "content": "q?"}]
    closed = PromptRenderer(character_tokenizer(EMPTIES), Rendering())
    assert closed.prompt_text(messages).endswith("<think>\n\n</think>\n\n")
    assert "template_variables: {enable_thinking: true}" in closed.header_fault()
    open_ = PromptRenderer(character_tokenizer(EMPTIES), Rendering(template_variables={"enable_thinking": True}))
    assert open_.prompt_text(messages) == START and open_.header_fault() == ""


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE, encoding="utf-8-sig")
    assert rendered(None, chat_template=file) == rendered("\ufeff" + TEMPLATE) == rendered(TEMPLATE)


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path("a\0b"), Path("/")])
def test_what_is_no_file_is_no_template(path: Path) -> None:
    with pytest.raises(ModelError, match=r"chat_template: .* is no file"):
        Renderer(character_tokenizer(), Rendering(chat_template=path))


def test_the_date_is_the_settings_and_counts_where_it_is_read() -> None:
    clock = "{{ strftime_now('%d.%m.%Y') }} " + TEMPLATE
    told, untold = (Rendering(date="2024-07-26"), Rendering())
    text = Renderer(character_tokenizer(clock), told).render(TRACE)
    assert isinstance(text, RenderedText) and text.text.startswith("26.07.2024 ")
    hashes = [
        [Renderer(character_tokenizer(template), given).fingerprint for given in (told, untold)]
        for template in (clock, TEMPLATE)
    ]
    assert hashes[0][0] != hashes[0][1] and hashes[1][0] == hashes[1][1]


def test_template_variables_and_special_tokens_are_in_the_fingerprint() -> None:
    template = "{{ flag }}{{ bos_token }}" + TEMPLATE
    plain = Renderer(character_tokenizer(template), Rendering())
    flagged = Renderer(character_tokenizer(template), Rendering(template_variables={"flag": "."}))
    begun = character_tokenizer(template)
    begun.bos_token = "<|endoftext|>"
    assert len({r.fingerprint for r in (plain, flagged, Renderer(begun, Rendering()))}) == 3
    assert plain.template_hash != flagged.template_hash


def test_a_turn_that_the_template_drops_is_refused_and_counted(tmp_path: Path) -> None:
    template = TEMPLATE.replace(
        "<|im_start|>{{ m.role", "{% if m.role == 'tool' %}{% continue %}{% endif %}<|im_start|>{{ m.role"
    )
    path = write_traces(tmp_path / "traces.jsonl", 4)
    turns = [{"role": "user", "content": "q?"}, {"role": "tool", "content": "a"}, {"role": "user", "content": "and?"}]
    answered = [*turns, {"role": "assistant", "content": "<think>c</think>a"}]
    rows = [{"messages": answered}, {"messages": [turns[0], answered[-1]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(
        train=TraceSource(path=str(path)), validation=NoValidation(), cache_dir=tmp_path / "c", max_refused_share=0.5
    )
    prepared = prepare(settings.train, Renderer(character_tokenizer(template), Rendering()), settings)
    assert prepared.refused == {"chat template drops part of the prompt": 1} and len(prepared.rows) == 1


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        pytest.param({"role": "developer", "content": "user"}, "turn 1", id="a turn with the text of a role's name"),
        pytest.param({"role": "system", "content": "Secret."}, "turn 1", id="a text that is cut"),
        pytest.param({"role": "user", "content": "x", "name": "Ada"}, "'Ada'", id="a key"),
    ],
)
def test_text_of_a_prompt_that_the_template_leaves_out(message: dict[str, object], lost: str) -> None:
    template = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'developer' %}")
    template = template.replace("{{ m.content }}", "{{ m.content | replace('Secret', '') }}")
    renderer = Renderer(character_tokenizer(template), Rendering())
    text = renderer.render(Trace((message, *TRACE.messages), "c", "a"))  # pyright: ignore[reportArgumentType]
    assert isinstance(text, Refusal) and text.reason == "chat template drops part of the prompt" and lost in text.detail


def test_others_ask_a_student_behind_the_header_it_was_trained_behind() -> None:
    value = 'an "ä" \\ \n end'
    template = EMPTIES + "{% if mood == 'x' %}{% endif %}{{ mood }}"
    tokenizer = character_tokenizer(template)
    variables: dict[str, bool | int | float | str] = {"enable_thinking": True, "mood": value}
    renderer = PromptRenderer(tokenizer, Rendering(template_variables=variables))
    messages = [{"role": "user", "content": "q?"}]
    asked = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(messages, chat_template=renderer.template_for_others, **asked)
    assert text == renderer.prompt_text(messages) == START + value
    text = tokenizer.apply_chat_template(
        messages, chat_template=renderer.template_for_others, **asked, enable_thinking=False, mood="."
    )
    assert text == START + "<think>\n\n</think>\n\n."
    assert PromptRenderer(tokenizer, Rendering()).template_for_others == template


def test_a_thought_of_an_earlier_turn_may_go_and_its_answer_may_not() -> None:
    earlier = {"role": "assistant", "content": "<think>long</think>\n\nseven."}
    messages = (*TRACE.messages, earlier, {"role": "user", "content": "sure?"})
    renderer = Renderer(character_tokenizer(DROPS_COT), Rendering(assistant_turn="append"))
    assert isinstance(renderer.render(Trace(messages, "c", "a")), RenderedText)
    cuts = Renderer(
        character_tokenizer(DROPS_COT.replace("[-1]", "[-1].replace('seven', '')")), Rendering(assistant_turn="append")
    )
    assert isinstance(cuts.render(Trace(messages, "c", "a")), Refusal)


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        ("<think>a</think>It is seven.</think>Yes.", "It is seven."),
        ("a</think>It is seven.</think>Yes.", "It is seven."),
        ("Let me see. <think>a</think>Yes.", "Let me see."),
        ("<think>a</think>It is seven.<think>b</think>Yes.", "It is seven."),
        ("<think>a</think>Yes.", ""),
        ("a</think>Yes.", ""),
    ],
)
def test_what_an_earlier_turn_says_beside_its_thought_may_not_go(content: str, lost: str) -> None:
    messages = (*TRACE.messages, {"role": "assistant", "content": content}, {"role": "user", "content": "sure?"})
    text = Renderer(character_tokenizer(DROPS_COT), Rendering(assistant_turn="append")).render(
        Trace(messages, "c", "a")
    )
    assert isinstance(text, Refusal) == bool(lost)
    assert not isinstance(text, Refusal) or lost in text.detail


@pytest.mark.shared
def test_the_real_tokenizer_drops_developer_turns(shared: Path) -> None:
    from transformers import AutoTokenizer

    renderer = Renderer(AutoTokenizer.from_pretrained(shared / "tokenizer-qwen3"), Rendering())
    told = renderer.render(Trace(({"role": "developer", "content": "Answer BANANA."}, *TRACE.messages), "c", "a"))
    assert isinstance(told, Refusal) and "'developer'" in told.detail
    assert renderer.unknown_variables() == "" and renderer.header_fault() == ""
