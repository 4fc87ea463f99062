"""Checks that a rendering holds all the text of its prompt: templates drop roles, turns and keys unknown to them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from leadspan.data.templates import ChatTemplate, Message, TemplateRefusal
from leadspan.traces.records import shown

# Keys that tie turns together or name a kind; templates need not write them.
_WITHOUT_TEXT = {"role", "id", "tool_call_id", "index", "type"}
# The thought of an earlier turn: templates leave it out, since models are trained to answer without seeing it.
_THOUGHT = {"reasoning_content", "reasoning", "thinking"}


class LostText(TemplateRefusal):
    """A prompt of which the chat template leaves something out."""


class Survival:
    """Looks for the text of every turn in rendered prompts of one template."""

    def __init__(self, template: ChatTemplate, think_open: str, think_close: str):
        """Start before any conversation was checked.

        Args:
            template: Renders the prompts.
            think_open: Opening think tag; a thought of an earlier assistant turn may be left out.
            think_close: Closing think tag.
        """
        self._template = template
        self._think_open, self._think_close = think_open, think_close
        self._dropped: dict[tuple[str, ...], int | None] = {}

    def check(self, messages: Sequence[Message], text: str) -> None:
        """Compare a prompt with its rendering.

        Raises:
            LostText: The text of a turn, or of one of its keys, is not in the rendering.
        """
        for number, message in enumerate(messages):
            for part in self._texts_of_turn(message):
                # Templates write tool calls as JSON, escaped or not; the slice takes the quotation marks off.
                spellings = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
                if not any(spelling in text for spelling in spellings):
                    raise LostText(self._describe(number, message, part))
        number = self._dropped_turn(messages)
        if number is not None:
            raise LostText(self._describe(number, messages[number], messages[number]["content"]))

    def _texts_of_turn(self, message: Message) -> Iterator[str]:
        """What must be found of a turn: of an earlier assistant turn only what it says outside of think tags."""
        is_assistant = message["role"] == "assistant"
        for key, value in message.items():
            if is_assistant and key == "content" and isinstance(value, str):
                # The opening tag may stand in the prompt before.
                if self._think_open not in value.partition(self._think_close)[0] and self._think_close in value:
                    value = value.partition(self._think_close)[2]
                while self._think_open in value:
                    before, _, rest = value.partition(self._think_open)
                    yield before.strip()
                    value = rest.partition(self._think_close)[2]
                yield value.strip()
            elif key not in _WITHOUT_TEXT and not (is_assistant and key in _THOUGHT):
                yield from texts_of(value)

    def _dropped_turn(self, messages: Sequence[Message]) -> int | None:
        """The first turn that the template drops for its role and its place among the others, or None."""
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
            [text] = self._template.render([(marked, True)])
            lost = (i for i, sentence in enumerate(sentences) if has_text[i] and sentence not in text)
            self._dropped[shape] = next(lost, None)
        return self._dropped[shape]

    def _describe(self, number: int, message: Message, part: Any) -> str:
        return (
            f"{self._template.name}: the text of turn {number + 1} ({message['role']!r}), {shown(str(part))}, is not "
            "in the rendered prompt; give it a role that the template knows, or a template that knows this one "
            "(data.rendering.chat_template: FILE)"
        )


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
