"""Prompts in a model's own chat template: what evaluation needs of it, and training too."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from leadspan.data.config import Rendering
from leadspan.errors import ModelError

_ANSWER = "The answer is four."


class PromptRenderer:
    """Renders prompts for one tokenizer; asks nothing of how the template treats finished assistant turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering):
        """Find the chat template.

        Raises:
            ModelError: There is none, or it cannot be read.
        """
        self.tokenizer = tokenizer
        self.rendering = rendering
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self.template = self._read_template()

    def prompt_text(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt with the generation header, as a model is given it; may end with the opening think tag.

        Raises:
            ModelError: The template refuses the messages.
        """
        return self._apply(list(messages), header=True)

    def end_of_turn_ids(self) -> list[int]:
        """Ids of the tokens that end an assistant turn: the template's, then the tokenizer's end of sequence.

        The template's is the first special token behind the answer of a rendered conversation. A template that
        renders no assistant turn has none.
        """
        found = [self._template_stop_id(), self.tokenizer.eos_token_id]
        return list(dict.fromkeys(int(i) for i in found if isinstance(i, int)))

    def _template_stop_id(self) -> int | None:
        turns = [{"role": "user", "content": "What is two plus two?"}, {"role": "assistant", "content": _ANSWER}]
        try:
            _, found, behind = self._apply(turns, header=False).rpartition(_ANSWER)
        except ModelError:
            return None
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"] if found else []
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)  # pyright: ignore[reportAttributeAccessIssue]  # every tokenizer has it
        return next((i for i in ids if i in special), None)  # pyright: ignore[reportReturnType, reportGeneralTypeIssues]  # ids are integers

    def _read_template(self) -> str:
        path = self.rendering.chat_template
        if path is not None:
            try:
                return path.read_text(encoding="utf-8")
            except OSError as error:
                raise ModelError(f"data.rendering.chat_template: {path} cannot be read ({error.strerror})") from None
            except UnicodeDecodeError:
                raise ModelError(f"data.rendering.chat_template: {path} is not UTF-8 text") from None
        template: Any = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise ModelError(
                f"tokenizer {self.name}: it has no chat template; set data.rendering.chat_template: FILE (evaluate: "
                "--set rendering.chat_template=FILE), or take the tokenizer of the chat model of that family"
            )
        return template

    def _apply(self, messages: list[dict[str, str]], header: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=header
            )
        except TemplateError as error:
            raise ModelError(f"chat template of {self.name}: {error}") from None
        assert isinstance(text, str)
        return text
