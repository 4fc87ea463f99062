from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from leadspan.data.sections import Rendered, RenderedText, Renderer
from leadspan.data.settings import Rendering
from leadspan.data.truncation import Lead, cut_example
from leadspan.errors import ModelError
from leadspan.traces.read import read_traces
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource
from toys import ALPHABET, DROPS_COT, SPECIALS, TEMPLATE, character_tokenizer

TRACE = Trace(({"role": "user", "content": "q?"},), "one\n\ntwo\n\n\nthree", "yes.", place="t.jsonl:1")


def render(renderer: Renderer, trace: Trace) -> tuple[RenderedText, Rendered]:
    text = renderer.render(trace)
    assert isinstance(text, RenderedText), text
    return text, renderer.tokenise([text], [trace])[0]


def test_borders_by_hand() -> None:
    tokenizer = character_tokenizer()
    text, tokens = render(Renderer(tokenizer, Rendering()), TRACE)
    expected = (
        "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\none\n\ntwo\n\n\nthree\n</think>\n\nyes.<|im_end|>\n"
    )
    assert text.text == expected
    ids, s = tokens.input_ids, tokens.sections

    def piece(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end])

    assert piece(0, s.prompt_end) == "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
    assert piece(s.prompt_end, s.cot_end) == "<think>\none\n\ntwo\n\n\nthree\n</think>"
    assert piece(s.think_end, s.cot_end) == "</think>"
    assert piece(s.cot_end, s.num_tokens) == "\n\nyes.<|im_end|>\n"
    assert piece(s.stop, s.stop + 1) == "<|im_end|>"
    assert [piece(a, a + 2) for a in s.steps] == ["tw", "th"]


def test_a_straddling_token_belongs_to_the_earlier_section() -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(
        ["\n<", "n\n</think>"]
    )  # swallow the border of header and tag, and the start of the closing tag
    renderer = Renderer(tokenizer, Rendering(think_open="<t:"))
    _text, tokens = render(renderer, Trace(TRACE.messages, "in", "a"))
    s = tokens.sections
    assert tokenizer.decode(tokens.input_ids[: s.prompt_end]).endswith("assistant\n<")
    assert tokenizer.decode(tokens.input_ids[s.prompt_end : s.cot_end]) == "t:\nin\n</think>"
    assert s.think_end == s.cot_end  # the closing tag lies wholly in a token of the text before it


@pytest.mark.parametrize(
    ("template", "rendering", "message"),
    [
        pytest.param(None, Rendering(), "no chat template; set data.rendering.chat_template", id="no template"),
        pytest.param(DROPS_COT, Rendering(), "should say '<think>'.*assistant_turn: append", id="drops the CoT"),
        pytest.param(
            TEMPLATE.replace("<|im_end|>\n{% endfor", "{% endfor"),
            Rendering(),
            "ends an assistant turn with no special token; set data.rendering.end_of_turn .* '<\\|im_start\\|>', with",
            id="no stop",
        ),
        pytest.param(
            TEMPLATE,
            Rendering(chat_template=Path("missing.jinja")),
            "missing.jinja is no file; give a file",
            id="no such file",
        ),
        pytest.param(
            TEMPLATE.replace("assistant\n{%", "bot\n{%"),
            Rendering(),
            "not a prefix",
            id="another generation header",
        ),
        pytest.param("hello", Rendering(), r"^chat template of \S+: the text of turn 1 \('user'\)", id="no messages"),
    ],
)
def test_templates_that_lie_are_refused(template: str | None, rendering: Rendering, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Renderer(character_tokenizer(template), rendering)


def test_append_mends_a_template_that_drops_the_cot() -> None:
    renderer = Renderer(character_tokenizer(DROPS_COT), Rendering(assistant_turn="append"))
    text, tokens = render(renderer, TRACE)
    assert text.text.endswith("assistant\n<think>\none\n\ntwo\n\n\nthree\n</think>\n\nyes.<|im_end|>")
    assert tokens.input_ids[tokens.sections.stop] == renderer.stop_token_id == SPECIALS.index("<|im_end|>")


def test_a_header_that_opens_thinking_itself() -> None:
    template = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    renderer = Renderer(character_tokenizer(template), Rendering())
    assert renderer.prompt_text(TRACE.messages).endswith("<think>\n")
    text, tokens = render(renderer, TRACE)
    assert text.text.count("<think>") == 1
    assert tokens.input_ids[tokens.sections.prompt_end] == SPECIALS.index("<think>")


def test_tags_in_the_prompt_do_not_move_the_borders() -> None:
    messages = ({"role": "system", "content": "use <think> and </think>"}, *TRACE.messages)
    renderer = Renderer(character_tokenizer(), Rendering())
    _, tokens = render(renderer, Trace(messages, TRACE.cot, TRACE.answer))
    cot = renderer.tokenizer.decode(tokens.input_ids[tokens.sections.prompt_end : tokens.sections.cot_end])
    assert cot == "<think>\none\n\ntwo\n\n\nthree\n</think>"


@pytest.mark.parametrize(
    ("prompt", "cot", "answer", "token"),
    [
        pytest.param("q?", "a<|im_end|>b", "c", "<|im_end|>", id="end of turn"),
        pytest.param("q?", "a", "c<|endoftext|>", "<|endoftext|>", id="padding token behind the answer"),
        pytest.param("q?", "a\n\n<|im_start|>user\nb", "c", "<|im_start|>", id="another turn"),
        pytest.param("q?<|im_start|>", "a", "c", "<|im_start|>", id="in the prompt"),
        pytest.param("q?", "a<|fim_middle|>b", "c", "<|fim_middle|>", id="not marked special, but shaped like one"),
    ],
)
def test_a_control_token_in_the_text_is_refused(prompt: str, cot: str, answer: str, token: str) -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<|fim_middle|>", "ab"])  # the second is an added token that is plain text
    renderer = Renderer(tokenizer, Rendering())
    refused = renderer.render(Trace(({"role": "user", "content": prompt},), cot, answer, place="f:3"))
    assert refused == Refusal("control token in the text", f"the text contains {token!r}", "f:3")
    assert isinstance(renderer.render(Trace(TRACE.messages, "ab < b | c", "im_end", place="f:4")), RenderedText)


@pytest.mark.parametrize(
    "token", ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<|eot_id|>", "<|return|>", "</s>", "<end_of_turn>"]
)
def test_an_end_of_turn_of_another_model_is_no_text_to_learn(token: str) -> None:
    renderer = Renderer(character_tokenizer(), Rendering())
    refused = renderer.render(Trace(TRACE.messages, "a", f"b{token}\n", place="f:3"))
    assert isinstance(refused, Refusal)
    assert refused.reason == "control token of another model" and repr(token) in refused.detail
    assert isinstance(renderer.render(Trace(TRACE.messages, f"a{token} b", "b <c|d>")), RenderedText)


@pytest.mark.parametrize("tag", ["(begin)", "(end)"])
def test_a_tag_that_the_student_writes_is_no_text_of_its_own(tag: str) -> None:
    renderer = Renderer(character_tokenizer(), Rendering(think_open="(begin)", think_close="(end)"))
    for cot, answer in ((f"a {tag} b", "c"), ("a", f"b {tag}")):
        refused = renderer.render(Trace(TRACE.messages, cot, answer, place="f:3"))
        assert refused == Refusal("control token in the text", f"the text contains {tag!r}", "f:3")
    in_prompt = Trace(({"role": "user", "content": f"what is {tag}?"},), "a", "b")
    assert isinstance(renderer.render(in_prompt), RenderedText)


def test_a_question_is_what_the_user_asks() -> None:
    def question(*turns: tuple[str, str]) -> str:
        renderer = Renderer(character_tokenizer(), Rendering())
        trace = Trace(tuple({"role": role, "content": content} for role, content in turns), "one", "yes.")
        return render(renderer, trace)[1].question_id

    plain = question(("user", "What is 2 + 2?"))
    assert plain == question(("system", "Be brief."), ("user", "What is 2 + 2?"))
    assert plain == question(("developer", "Reasoning: high"), ("user", " What is\n2 + 2?\n"))
    assert plain != question(("user", "What is 2 + 3?"))
    first = question(("user", "Hi"), ("assistant", "Hello!"), ("user", "What is 2 + 2?"))
    assert first != plain and first == question(("user", "Hi"), ("assistant", "Yes?"), ("user", "What is 2 + 2?"))


def test_ids_hash_the_tokens_and_the_question() -> None:
    renderer = Renderer(character_tokenizer(), Rendering())
    first, again = render(renderer, TRACE)[1], render(renderer, TRACE)[1]
    other = render(renderer, Trace(TRACE.messages, "other", "yes."))[1]
    assert first.example_id == again.example_id != other.example_id
    assert first.question_id == other.question_id


def test_alphabet_covers_the_template() -> None:
    assert set("user assistant system") <= set(ALPHABET)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["deepseek_r1", "qwq_32b", "sky_t1_students"])
def test_real_traces_character_by_character(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer-qwen3")
    renderer = Renderer(tokenizer, Rendering())
    source = TraceSource(path=str(shared / "traces" / f"{name}.jsonl"), limit=60)
    traces = [t for t in read_traces(source) if isinstance(t, Trace)]
    texts = [renderer.render(t) for t in traces]
    assert all(isinstance(t, RenderedText) for t in texts)
    good = [t for t in texts if isinstance(t, RenderedText)]
    for text, trace, tokens in zip(good, traces, renderer.tokenise(good, traces), strict=True):
        ids, s = tokens.input_ids, tokens.sections
        assert tokenizer.decode(ids) == text.text
        assert 0 < s.prompt_end < s.think_end < s.cot_end < s.stop < s.num_tokens == len(ids)
        assert tokenizer.decode(ids[s.prompt_end : s.cot_end]).strip() == f"<think>\n{trace.cot}\n</think>"
        assert ids[s.prompt_end] == 151667 and ids[s.think_end] == 151668 and ids[s.stop] == 151645
        for p in (0.1, 0.5, 0.9):
            (span,) = cut_example(Lead(p=p), s, tokens.example_id, 0).spans
            assert span == (0, max(1, int(np.floor(p * len(ids)))))
            kept = tokenizer.decode(ids[: span[1]])
            assert text.text.startswith(kept.rstrip("\N{REPLACEMENT CHARACTER}"))
