"""Templates of the kinds that model families have, on a real tokenizer: faults named, settings that give the form."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from leadspan.data.prompts import PromptRenderer
from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.settings import Rendering
from leadspan.errors import ModelError
from leadspan.settings import validate
from leadspan.traces.records import Trace

pytestmark = pytest.mark.shared

TRACE = Trace(({"role": "user", "content": "What is 5 + 6?"},), "Five.\n\nSo eleven.", "It is 11.", place="t.jsonl:1")
SPECIALS = [
    "<|inner_prefix|>",
    "<|inner_suffix|>",
    "<|user|>",
    "<|assistant|>",
    "<turn|>",
    "<|turn>",
    "<|channel>",
    "<channel|>",
    "<seed:eos>",
    "[/INST]",
]
SPECIALS += [
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|channel|>",
    "<|message|>",
    "<end_of_turn>",
    "<|im_middle|>",
    "</s>",
]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n"
ANSWER_ONLY = "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
THOUGHT = "{% if m.reasoning_content %}OPEN{{ m.reasoning_content }}CLOSE{% endif %}{{ m.content }}"


@dataclass(frozen=True)
class Family:
    """A template, what is said of it as it is, settings that give its form, and this form.

    Attributes:
        template: The template.
        fault: What is said of it with the settings of the default; "" where it is fine.
        rendering: Settings that fit it.
        prompt_end: How the prompt ends, generation header included.
        turn: What is learnt.
        stop: The token that ends the turn.
    """

    template: str
    fault: str
    turn: str
    stop: str
    prompt_end: str = "<|im_start|>assistant\n"
    rendering: dict[str, object] = field(default_factory=dict)


FAMILIES = {
    "Qwen2.5: knows no chain of thought": Family(
        CHATML + "{{ m.content }}<|im_end|>\n{% endfor %}" + HEADER + "{% endif %}",
        "",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<|im_end|>",
    ),
    "DeepSeek-V3.1: the header closes thinking, turns drop it": Family(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|></think>"
        "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}",
        "thinking is over before it begins; set data.rendering.template_variables: {thinking: true}",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<|im_end|>",
        "<|assistant|>",
        {"template_variables": {"thinking": True}, "assistant_turn": "append"},
    ),
    "Qwen3.5, small: the header holds an empty thought": Family(
        CHATML
        + THOUGHT.replace("OPEN", "<think>\n").replace("CLOSE", "\n</think>\n\n")
        + "<|im_end|>\n{% endfor %}"
        + HEADER
        + "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}",
        "thinking is over before it begins; set data.rendering.template_variables: {enable_thinking: true}",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<|im_end|>",
        rendering={"template_variables": {"enable_thinking": True}},
    ),
    "EXAONE Deep: the header opens a tag of its own, turns drop it": Family(
        CHATML + ANSWER_ONLY + "<|im_end|>\n{% endfor %}" + HEADER + "<thought>\n{% endif %}",
        "opens the turn with '<thought>'; if that opens thinking, set data.rendering.think_open: \"<thought>\"",
        "<thought>\nFive.\n\nSo eleven.\n</thought>\n\nIt is 11.",
        "<|im_end|>",
        rendering={"think_open": "<thought>", "think_close": "</thought>", "assistant_turn": "append"},
    ),
    "Seed-OSS: tags of its own": Family(
        CHATML
        + THOUGHT.replace("OPEN", "<seed:think>").replace("CLOSE", "</seed:think>")
        + "<seed:eos>{% endfor %}"
        + HEADER
        + "{% endif %}",
        'set data.rendering.think_open: "<seed:think>" and think_close: "</seed:think>"',
        "<seed:think>Five.\n\nSo eleven.</seed:think>It is 11.",
        "<seed:eos>",
        rendering={"think_open": "<seed:think>", "think_close": "</seed:think>"},
    ),
    "Ministral: a part of the content": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}[/INST]{% elif m.content is string %}"
        "{{ m.content }}</s>{% else %}{% for p in m.content %}{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}"
        "[/THINK]{% else %}{{ p.text }}{% endif %}{% endfor %}</s>{% endif %}{% endfor %}",
        'set data.rendering.think_open: "[THINK]" and think_close: "[/THINK]"',
        "[THINK]Five.\n\nSo eleven.[/THINK]It is 11.",
        "</s>",
        "What is 5 + 6?[/INST]",
        {"think_open": "[THINK]", "think_close": "[/THINK]"},
    ),
    "Gemma 3: another end of turn, no system turn": Family(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}",
        "",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<end_of_turn>",
        "<|im_start|>model\n",
    ),
    "Gemma 4: a channel that turns drop, and the header empties": Family(
        "{% for m in messages %}<|turn>{{ m.role }}\n"
        "{{ m.content.split('<channel|>')[-1] | trim }}<turn|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|turn>assistant\n{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}"
        "{% endif %}",
        "thinking is over before it begins; set data.rendering.template_variables: {enable_thinking: true}",
        "<|channel>thought\nFive.\n\nSo eleven.\n<channel|>\n\nIt is 11.",
        "<turn|>",
        "<|turn>assistant\n",
        {
            "template_variables": {"enable_thinking": True},
            "think_open": "<|channel>thought",
            "think_close": "<channel|>",
            "assistant_turn": "append",
        },
    ),
    "gpt-oss: channels in messages of their own": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|start|>assistant"
        "<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m.role }}<|message|>"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        'set data.rendering.think_open: "<|channel|>analysis<|message|>" and think_close: '
        '"<|end|><|start|>assistant<|channel|>final<|message|>"',
        "<|channel|>analysis<|message|>Five.\n\nSo eleven.<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is 11.",
        "<|return|>",
        "<|start|>assistant",
        {
            "think_open": "<|channel|>analysis<|message|>",
            "think_close": "<|end|><|start|>assistant<|channel|>final<|message|>",
        },
    ),
    "Kimi: empty tags in turns without a thought": Family(
        "{% for m in messages %}<|start|>{{ m.role }}<|im_middle|>{% if m.role == 'assistant' %}<think></think>"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|im_middle|>{% endif %}",
        "set data.rendering.assistant_turn: append",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<|end|>",
        "<|start|>assistant<|im_middle|>",
        {"assistant_turn": "append"},
    ),
    "Gemma 4, small: a channel in turns with a tool call only": Family(
        "{% for m in messages %}<|turn>{{ m.role }}\n{% if m.reasoning_content and m.tool_calls %}<|channel>thought\n"
        "{{ m.reasoning_content }}\n<channel|>{% endif %}{% for c in m.tool_calls or [] %}<|tool_call>"
        "{{ c.function.name }}<tool_call|>{% endfor %}{{ m.content.split('<channel|>')[-1] | trim }}<turn|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn>assistant\n{% endif %}",
        'set data.rendering.think_open: "<|channel>thought" and think_close: "<channel|>"',
        "<|channel>thought\nFive.\n\nSo eleven.\n<channel|>It is 11.",
        "<turn|>",
        "<|turn>assistant\n",
        {"think_open": "<|channel>thought", "think_close": "<channel|>", "assistant_turn": "append"},
    ),
    "Kimi K2 Thinking: a thought in turns with a tool call only": Family(
        "{% for m in messages %}<|start|>{{ m.role }}<|im_middle|>{% if m.role == 'assistant' %}<think>"
        "{{ m.reasoning_content if m.tool_calls }}</think>{{ m.content.split('</think>')[-1] }}{% else %}"
        "{{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|im_middle|>{% endif %}",
        "set data.rendering.assistant_turn: append",
        "<think>Five.\n\nSo eleven.</think>It is 11.",
        "<|end|>",
        "<|start|>assistant<|im_middle|>",
        {"assistant_turn": "append"},
    ),
    "GLM: no end of turn": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}"
        "</think>\n{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "ends an assistant turn with no special token; set data.rendering.end_of_turn to one that does, such as "
        "'<|user|>', with which its next turn begins or '<|im_end|>', which ends a text for the tokenizer",
        "<think>Five.\n\nSo eleven.</think>\nIt is 11.",
        "<|user|>",
        "<|assistant|>\n",
        {"end_of_turn": "<|user|>"},
    ),
    "Hunyuan: an effort without which the header empties thinking": Family(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think:a>{{ m.reasoning_content }}"
        "</think:a>{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think:a>"
        "{% if reasoning_effort not in ['high', 'low'] %}</think:a>{% endif %}{% endif %}",
        'thinking is over before it begins; set data.rendering.template_variables: {reasoning_effort: "high"}',
        "<think:a>Five.\n\nSo eleven.</think:a>It is 11.",
        "<|end|>",
        "<|assistant|>",
        {"template_variables": {"reasoning_effort": "high"}, "think_open": "<think:a>", "think_close": "</think:a>"},
    ),
    "Apertus: blocks of the content": Family(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for b in m.content.blocks %}{% if b.type == 'thoughts' %}<|inner_prefix|>{{ b.text }}{% else %}"
        "<|inner_suffix|>{{ b.text }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        'set data.rendering.think_open: "<|inner_prefix|>" and think_close: "<|inner_suffix|>"',
        "<|inner_prefix|>Five.\n\nSo eleven.<|inner_suffix|>It is 11.",
        "<|end|>",
        "<|assistant|>",
        {"think_open": "<|inner_prefix|>", "think_close": "<|inner_suffix|>"},
    ),
    "Apriel 1.5: tags that a variable alone writes, behind the answer": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% if add_thoughts and m.thought %}<thinking>"
        "{{ m.thought }}</thinking>{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
        "{% endif %}",
        "its source has '<thinking>', '</thinking>', not the think tags of data.rendering; set "
        "data.rendering.think_open and think_close",
        "<thinking>\nFive.\n\nSo eleven.\n</thinking>\n\nIt is 11.",
        "<|end|>",
        "<|assistant|>\n",
        {"think_open": "<thinking>", "think_close": "</thinking>"},
    ),
    "Gemma 4, version 2: turns drop a channel that no key fills": Family(
        "{% for m in messages %}<|turn>{{ m.role }}\n"
        "{{ m.content.split('<channel|>')[-1] | trim if '<|channel>' in m.content else m.content }}<turn|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn>assistant\n{% endif %}",
        "its source has '<channel|>', '<|channel>', not the think tags of data.rendering",
        "<|channel>thought\nFive.\n\nSo eleven.\n<channel|>\n\nIt is 11.",
        "<turn|>",
        "<|turn>assistant\n",
        {"think_open": "<|channel>thought", "think_close": "<channel|>", "assistant_turn": "append"},
    ),
    "Nemotron Nano: the header opens, and turns repeat it": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + HEADER + "<think>\n{% endif %}",
        "",
        "<think>\nFive.\n\nSo eleven.\n</think>\n\nIt is 11.",
        "<|im_end|>",
    ),
}


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> PreTrainedTokenizerBase:
    made = AutoTokenizer.from_pretrained(shared / "tokenizer-qwen3")
    made.add_special_tokens({"additional_special_tokens": SPECIALS})
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_rendered_in_its_form_or_told_how(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    family = FAMILIES[name]
    tokenizer.chat_template = family.template
    if family.fault:
        with pytest.raises(ModelError) as caught:
            Renderer(tokenizer, Rendering())
        assert family.fault in str(caught.value)
    renderer = Renderer(tokenizer, validate(Rendering, family.rendering, "test"))
    text = renderer.render(TRACE)
    assert isinstance(text, RenderedText), text
    assert text.text[: text.prompt_end].endswith(family.prompt_end)
    assert text.text[text.prompt_end : text.stop] == family.turn
    [rendered] = renderer.tokenise([text], [TRACE])
    assert tokenizer.decode(rendered.input_ids[rendered.sections.stop]) == family.stop
    assert tokenizer.decode([renderer.stop_token_id]) == family.stop
    assert renderer.end_of_turn_ids()[0] == renderer.stop_token_id
    assert tokenizer.decode(rendered.input_ids) == text.text


@pytest.mark.parametrize("name", FAMILIES)
def test_an_evaluation_asks_with_what_training_learns_behind(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    family = FAMILIES[name]
    tokenizer.chat_template = family.template
    rendering = validate(Rendering, family.rendering, "test")
    asked = PromptRenderer(tokenizer, rendering)
    prompt, text = asked.prompt_text(TRACE.messages), Renderer(tokenizer, rendering).render(TRACE)
    assert isinstance(text, RenderedText)
    assert text.text.startswith(prompt) and len(prompt) <= text.prompt_end + len(rendering.think_open) + 1
    assert asked.header_fault() == ""
    assert bool(family.fault and "over before" in family.fault) == bool(
        PromptRenderer(tokenizer, Rendering()).header_fault().startswith("its generation header ends with")
    )
