"""Character-level tokenizer with a chat template, for models trained from random weights.

One character is one token, so the text of a task fixes its token count exactly. Text goes in, token
ids come out; nothing is added at either end of a plain prompt. Built in the driver; the folder's
readers load it as any other. Not for natural language: text is lower-cased and any character
outside `ALPHABET` becomes `<unk>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz\n =+-*/%^()[]<>.,:;?!'\"_"
VOCABULARY = (*SPECIAL_TOKENS, *ALPHABET)  # 64 tokens; the index is the token id

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(
    *, model_max_length: int, more: Sequence[str] = (), chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Build the tokenizer over `VOCABULARY`: `<|im_end|>` ends a sequence and a chat turn.

    Args:
        model_max_length: tokens of the longest sequence.
        more: further special tokens, with the ids behind `VOCABULARY`.
        chat_template: of the model's conversations.
    """
    vocabulary = {token: index for index, token in enumerate((*VOCABULARY, *more))}
    backend = Tokenizer(WordLevel(vocab=vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()  # without it the characters come back joined by spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
        additional_special_tokens=list(more),
    )
