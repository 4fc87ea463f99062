"""A character tokenizer for the worlds, with a chat template: a real fast tokenizer, only small."""

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TURN = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)
# Tags and roles, and the word with which a trace of `derive_and_verify` begins to check itself.
_WORDS = ("<think>", "</think>", "user", "assistant", "system", "check")
_CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
# ChatML, without a line break after the last turn: a conversation ends with its end-of-turn token.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}"
    "{{ '' if loop.last else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Special tokens, tags, roles and a few words as one token each, then printable ASCII; ChatML template."""
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_WORDS, *_CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    # One token a character, but for the tokens that are added below.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in _WORDS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_OF_TURN, pad_token="<|endoftext|>", model_max_length=512
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
