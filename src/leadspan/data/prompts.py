"""Prompts in a model's own chat template, for training and for evaluation, checked to hold all the text of their turns.

Templates drop roles, turns and keys that they do not know, and a prompt that lost some of its text is another one.
"""

import difflib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from leadspan.data import assistant_turn
from leadspan.data.settings import Rendering
from leadspan.data.templates import ChatTemplate, Message, TemplateRefusal
from leadspan.errors import ModelError
from leadspan.traces.records import shown
from leadspan.yaml_text import not_text

logger = logging.getLogger(__name__)

_TEMPLATE_BYTES = 1 << 20  # the longest real templates have some 20 kB
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_CLOCK = "strftime_now"
# What every template may read and no setting may give: the messages, functions and special tokens.
_NOT_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", _CLOCK}
_NOT_VARIABLES |= {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
# Variables by which templates switch thinking: enable_thinking, thinking, reasoning_effort, ...
_SWITCH = re.compile("think|reason", re.IGNORECASE)
# Qwen's <|fim_middle|>, and DeepSeek's user token with its full-width bars: not marked special, yet of one id.
_CONTROL = re.compile("<[|\uff5c].+[|\uff5c]>")
_MAX_VALUES = 8  # of one variable to try; real templates compare one with three or four
# Keys that tie turns together or name a kind; templates need not write them.
_WITHOUT_TEXT = {"role", "id", "tool_call_id", "index", "type"}
# The thought of an earlier turn: templates leave it out, since models are trained to answer without seeing it.
_THOUGHT = {"reasoning_content", "reasoning", "thinking"}


class LostText(TemplateRefusal):
    """A prompt of which the chat template leaves something out."""


class PromptRenderer:
    """Renders prompts for one tokenizer, and requires little of how its template writes finished assistant turns.

    Attributes:
        tokenizer: The tokenizer.
        rendering: How a trace becomes one conversation text.
        name: Name of the tokenizer in messages.
        template: The chat template.
        turn: What the template writes around the text of an assistant.
        reads_clock: Whether the template asks for the date of today.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering):
        """Find the chat template and try it on small conversations.

        Raises:
            ModelError: There is none, it cannot be read, or it cannot be run.
        """
        self.tokenizer = tokenizer
        self.rendering = rendering
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self._added: dict[int, Any] = tokenizer.added_tokens_decoder  # pyright: ignore[reportAttributeAccessIssue]  # every tokenizer has it
        self._special_texts = tuple({str(token) for token in (*self._added.values(), *tokenizer.all_special_tokens)})
        self.template = self._read_template()
        self._chat = self._chat_template({})
        try:
            names_read = self._chat.names_read()
            # The template's own variables with the values worth trying: both truths, and what it compares each with.
            self._variables: dict[str, list[Any]] = {
                name: [True, False, *texts][:_MAX_VALUES]
                for name, texts in sorted(names_read.items())
                if name not in _NOT_VARIABLES
            }
            # With each variable that may switch thinking set to each such value.
            switches = [name for name in self._variables if _SWITCH.search(name)]
            variants = [self._chat_template({name: value}) for name in switches for value in self._variables[name]]
            self.turn = assistant_turn.probe(self._chat, rendering, variants)
        except TemplateRefusal as error:
            variable = "if a variable is missing, set it with data.rendering.template_variables, else "
            remedy = "give another template with data.rendering.chat_template: FILE"
            raise ModelError(f"{error}; {variable if 'is undefined' in str(error) else ''}{remedy}") from None
        # By roles and order of the turns of a prompt, the first turn that the template drops for them, or None.
        self._dropped: dict[tuple[str, ...], int | None] = {}
        self._names_read, self.reads_clock = names_read, _CLOCK in names_read
        if self.reads_clock and "date" not in rendering.model_fields_set:
            logger.warning(
                "%s: it asks for the date and is given data.rendering.date: %s", self._chat.name, rendering.date
            )

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt with the generation header, as a model is given it; may end with the opening think tag.

        Raises:
            TemplateRefusal: The template refuses the messages, they hold NUL or half a surrogate pair, or a turn that
                no model wrote holds a control token.
            LostText: It leaves out some of their text.
            ModelError: It takes too long or too much memory.
        """
        if character := not_text("".join(message["content"] for message in messages)):
            raise TemplateRefusal(f"the text holds {character}, which no text has; leave it out")
        # An assistant turn that a model wrote may hold such tokens rightly; from a user they would forge a turn.
        if token := self.control_token_in([message for message in messages if message["role"] != "assistant"]):
            raise TemplateRefusal(
                f"the text contains {token!r}, which tokenizer {self.name} reads as a control token; write it in "
                "another way, or leave it out"
            )
        [text] = self._chat.render([(messages, True)])
        self.check_survival(messages, text)
        return text

    def check_survival(self, messages: Sequence[Message], text: str) -> None:
        """Compare a prompt with its rendering.

        Raises:
            LostText: The text of a turn, or of one of its keys, is not in the rendering.
        """
        opening, closing = self.rendering.think_open, self.rendering.think_close
        for number, message in enumerate(messages):
            turn = dict(message)
            if message["role"] == "assistant":
                # Of an earlier reply only what it says outside of think tags; the opening one may stand in the prompt.
                turn = {key: value for key, value in message.items() if key not in _THOUGHT}
                if isinstance(said := turn.get("content"), str):
                    if opening not in said.partition(closing)[0] and closing in said:
                        said = said.partition(closing)[2]
                    turn["content"] = re.split(rf"(?s){re.escape(opening)}.*?(?:{re.escape(closing)}|\Z)", said)
            for part in texts_of(turn):
                # Templates write tool calls as JSON, escaped or not; the slice takes the quotation marks off.
                spellings = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
                if not any(spelling in text for spelling in spellings):
                    raise self._lost(number, message, part)
        has_text = [isinstance(m.get("content"), str) and bool(m["content"].strip()) for m in messages]
        shape = tuple(f"{message['role']} {flag}" for message, flag in zip(messages, has_text, strict=True))
        # Whether a turn is dropped depends on roles and order alone, so one rendering answers for all such prompts.
        if shape not in self._dropped:
            # Sentences that occur nowhere else: a short turn may stand in the text of another one by chance.
            sentences = [f"This sentence is number {number}." for number in range(len(messages))]
            marked = [
                {**message, "content": sentence} if flag else message
                for message, sentence, flag in zip(messages, sentences, has_text, strict=True)
            ]
            [text] = self._chat.render([(marked, True)])
            lost = (i for i, sentence in enumerate(sentences) if has_text[i] and sentence not in text)
            self._dropped[shape] = next(lost, None)
        if (number := self._dropped[shape]) is not None:
            raise self._lost(number, messages[number], messages[number]["content"])

    def control_token_in(self, messages: Sequence[Message]) -> str | None:
        """The first special token that occurs as text in a prompt; think tags may occur."""
        text = "\n".join(texts_of(messages))
        tags = (self.rendering.think_open, self.rendering.think_close)
        return next((token for token in self.control_texts if token in text and token not in tags), None)

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """Text that the tokenizer reads as a control token: what it calls special, and what is written `<|...|>`."""
        shaped = {str(token) for token in self._added.values() if token.special or _CONTROL.fullmatch(str(token))}
        return tuple(sorted(shaped | set(self.tokenizer.all_special_tokens)))

    def end_of_turn_ids(self) -> list[int]:
        """Ids of the tokens that end an assistant turn: the template's, then the tokenizer's end of sequence.

        The template's is the first special token after the answer of a rendered conversation, or where it writes none,
        the one of the settings.
        """
        behind = (self.turn.ending or "") + (self.rendering.end_of_turn or "")
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
        special = set(self.tokenizer.all_special_ids) | set(self._added)
        first = next((i for i in ids if i in special), None)  # pyright: ignore[reportGeneralTypeIssues]  # ids are integers
        return list(dict.fromkeys(int(i) for i in (first, self.tokenizer.eos_token_id) if isinstance(i, int)))

    def header_fault(self) -> str:
        """Why the generation header does not let a model think and the variable that would; "" where it does."""
        fault = assistant_turn.header_fault(self.turn, self.rendering)
        # By trial, variables that switch thinking first; those that the settings give stay as they are.
        free = self._variables.keys() - self.rendering.template_variables.keys() if fault else ()
        ordered = sorted(free, key=lambda variable: (not _SWITCH.search(variable), variable))
        for name, value in [(variable, value) for variable in ordered for value in self._variables[variable]]:
            try:
                turn = assistant_turn.probe(self._chat_template({name: value}), self.rendering)
            except TemplateRefusal:
                continue
            except ModelError:  # out of time or memory; so the others may be
                break
            if not assistant_turn.header_fault(turn, self.rendering):
                return f"{fault}; set data.rendering.template_variables: {{{name}: {json.dumps(value)}}}"
        return fault

    def unknown_variables(self) -> str:
        """Which variables of the settings the template does not read, and which it does; "" if it reads all."""
        readable = list(self._variables)
        unknown = [name for name in self.rendering.template_variables if name not in self._names_read]
        if not unknown:
            return ""
        near = difflib.get_close_matches(unknown[0], readable, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it reads {', '.join(readable) or 'none'}"
        return f"data.rendering.template_variables: the template does not read {unknown[0]!r}; {hint}"

    @property
    def template_for_others(self) -> str:
        """The template with the variables of the settings as its defaults.

        A student is written with it, so that other tools prompt it with the generation header that it was trained with.
        """
        defaults = (
            f"{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}{{% endif %}}"
            for name, value in self.rendering.template_variables.items()
        )
        return "".join([*defaults, self.template])

    def _chat_template(self, more_variables: dict[str, Any]) -> ChatTemplate:
        variables = {**self.tokenizer.special_tokens_map, **self.rendering.template_variables, **more_variables}
        name = f"chat template {self.rendering.chat_template or f'of {self.name}'}"
        return ChatTemplate(name, self.template, variables, self.rendering.date)

    def _lost(self, number: int, message: Message, part: Any) -> LostText:
        return LostText(
            f"{self._chat.name}: the text of turn {number + 1} ({message['role']!r}), {shown(str(part))}, is not "
            "in the rendered prompt; give it a role that the template knows, or a template that knows this one "
            "(data.rendering.chat_template: FILE)"
        )

    def _read_template(self) -> str:
        if (path := self.rendering.chat_template) is not None:
            setting = f"data.rendering.chat_template: {path}"
            try:
                if not path.is_file():  # a device or a pipe may never end
                    raise ModelError(f"{setting} is no file; give a file of a Jinja template")
                with path.open("rb") as file:
                    content = file.read(_TEMPLATE_BYTES + 1)
                if len(content) > _TEMPLATE_BYTES:
                    raise ModelError(f"{setting} is larger than {_TEMPLATE_BYTES >> 20} MiB, so it is no chat template")
                return content.decode("utf-8").replace("\r\n", "\n").removeprefix(_BYTE_ORDER_MARK)
            except OSError as error:
                raise ModelError(f"{setting} cannot be read ({error.strerror})") from None
            except UnicodeDecodeError:
                raise ModelError(f"{setting} is not UTF-8 text") from None
        template: Any = self.tokenizer.chat_template
        if isinstance(template, dict):  # several by name; Transformers takes this one
            template = template.get("default")
        if not template:
            raise ModelError(
                f"tokenizer {self.name}: it has no chat template; set data.rendering.chat_template: FILE (evaluate: "
                "--set rendering.chat_template=FILE), or take the tokenizer of the chat model of that family"
            )
        return template.removeprefix(_BYTE_ORDER_MARK)


def texts_of(value: Any) -> Iterator[str]:
    """The texts and numbers of a nested value, keys that tie turns together left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _WITHOUT_TEXT:
                yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)
    elif isinstance(value, str):
        yield value.strip()
    elif value is not None:
        yield json.dumps(value)
