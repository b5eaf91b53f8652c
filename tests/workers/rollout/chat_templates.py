"""Stand-ins for the chat templates of well-known models: the same control flow, fewer words.

A tokenizer of the tests merges bytes (BPE), so that ids depend on what stands beside a text.
"""

from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """Template with its special tokens, and how its model writes a call of `add`."""

    template: str
    special: tuple[str, ...]
    eos: str  # of the tokenizer
    end: str  # what the policy samples at the end of a turn
    call: str | None = None  # what the policy samples to call add(a=1); None: no tools
    call_end: str | None = None  # at the end of a turn that calls; None: as `end`
    options: tuple[tuple[str, object], ...] = ()


CHATML = """{% for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

SMOLLM = (
    """{% if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"""
    + CHATML
)

QWEN_TOOLS = """{%- if tools %}
{{- '<|im_start|>system\n# Tools\n<tools>' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{% endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- endif %}"""
QWEN_CALLS = """
{%- for call in message.tool_calls %}
{%- if call.function %}{% set call = call.function %}{% endif %}
{{- '\n' if not (thought is defined and loop.first and not content) else '' }}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}"""
QWEN_ANSWERS = """
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}"""

QWEN25 = (
    QWEN_TOOLS
    + """{%- for message in messages %}
{%- set calls = message.tool_calls %}
{%- if message.role in ('user', 'system') or (message.role == 'assistant' and not calls) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\n' + message.content }}{% endif %}"""
    + QWEN_CALLS
    + "{%- elif message.role == 'tool' %}"
    + QWEN_ANSWERS
    + """{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
)

# Thoughts stay after the last question of the user, and empty ones are written there.
QWEN3 = (
    QWEN_TOOLS
    + """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
{%- if ns.open and message.role == 'user' %}
{%- set ns.open = false %}{% set ns.last = messages|length - loop.index %}
{%- endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role in ('user', 'system') %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content or '' %}{% set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
{{- content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{% endif %}
{%- if not message.tool_calls %}{{- '<|im_end|>\n' }}{% else %}"""
    + QWEN_CALLS
    + "{%- endif %}{%- elif message.role == 'tool' %}"
    + QWEN_ANSWERS
    + """{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}
{%- endif %}{% endif %}"""
)

LLAMA3 = """{{- '<|begin_of_text|>' }}{%- for message in messages %}
{%- if message.role not in ('tool', 'ipython') and not message.tool_calls %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim }}
{{- '<|eot_id|>' }}
{%- elif message.tool_calls %}
{%- if message.tool_calls | length != 1 %}
{{- raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name }}
{{- '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
{{- message.content + '<|eot_id|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Roles must alternate, and identifiers of calls have nine characters.
MISTRAL = """{{- '<s>' }}{%- set ns = namespace(n=0) %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{%- if (message.role == 'user') != (ns.n % 2 == 0) %}
{{- raise_exception('After the optional system message, roles must alternate') }}{% endif %}
{%- set ns.n = ns.n + 1 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls %}{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('Tool call IDs have length 9!') }}{% endif %}
{%- set text = call.function | tojson %}{{- text[:-1] + ', "id": "' + call.id + '"}' }}
{{- ', ' if not loop.last else ']</s>' }}{% endfor %}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + '</s>' }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{- raise_exception('Tool call IDs have length 9!') }}
{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + (message.content | tojson) + ', "call_id": "' }}
{{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}
{%- endif %}{% endfor %}"""

GEMMA = """{{ '<bos>' }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""

# Calls need a message without content, and their arguments as text; answers share one frame.
DEEPSEEK = """{{ '<｜begin▁of▁sentence｜>' }}{% set ns = namespace(tool=false) %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{% set ns.tool = false %}{{- '<｜User｜>' + message['content'] }}
{%- elif message['role'] == 'assistant' and message['content'] is none %}{% set ns.tool = false %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- for call in message['tool_calls'] %}
{{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] }}
{{- '\n```json\n' + call['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}{% endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message['role'] == 'assistant' %}
{%- set content = message['content'].split('</think>')[-1] %}
{%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- else %}{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- set ns.tool = false %}
{%- elif message['role'] == 'tool' %}
{{- '' if ns.tool else '<｜tool▁outputs▁begin｜>' }}{% set ns.tool = true %}
{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
{%- endif %}{% endfor %}
{%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' }}
{%- elif add_generation_prompt %}{{- '<｜Assistant｜>' }}{% endif %}"""

# The last answer ends with <|return|>, an earlier one with <|end|>, a call with <|call|>.
GPT_OSS = """{%- set ns = namespace(name=none) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{%- set call = message.tool_calls[0].function %}{% set ns.name = call.name %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson }}{{- '<|call|>' }}
{%- elif message.role == 'tool' %}
{%- if ns.name is none %}{{- raise_exception('there was no previous tool call') }}{% endif %}
{{- '<|start|>functions.' + ns.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- message.content + '<|end|>' }}
{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""

HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FORMATS = {
    "smollm": ChatFormat(template=SMOLLM, special=IM, eos="<|im_end|>", end="<|im_end|>"),
    "qwen2.5": ChatFormat(
        template=QWEN25, special=IM, eos="<|im_end|>", end="<|im_end|>", call=HERMES
    ),
    "qwen3": ChatFormat(
        template=QWEN3, special=IM, eos="<|im_end|>", end="<|im_end|>", call=HERMES
    ),
    "qwen3 without thoughts": ChatFormat(
        template=QWEN3,
        special=IM,
        eos="<|im_end|>",
        end="<|im_end|>",
        call=HERMES,
        options=(("enable_thinking", False),),
    ),
    "llama3": ChatFormat(
        template=LLAMA3,
        special=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
            *("<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        ),
        eos="<|eot_id|>",
        end="<|eot_id|>",
        call='{"name": "add", "parameters": {"a": 1}}',
    ),
    "mistral": ChatFormat(
        template=MISTRAL,
        special=(
            *("<s>", "</s>", "[INST]", "[/INST]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        eos="</s>",
        end="</s>",
        call='[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "call00001"}]',
    ),
    "gemma": ChatFormat(
        template=GEMMA,
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        end="<end_of_turn>",
    ),
    "deepseek": ChatFormat(
        template=DEEPSEEK,
        special=(
            *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
            *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
            *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>"),
            *("<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
        ),
        eos="<｜end▁of▁sentence｜>",
        end="<｜end▁of▁sentence｜>",
        call=(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n"
            '```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        ),
    ),
    "gpt-oss": ChatFormat(
        template=GPT_OSS,
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
        end="<|return|>",
        call=' to=functions.add<|channel|>commentary json<|message|>{"a": 1}',
        call_end="<|call|>",
    ),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that merges bytes, with a format's template and special tokens."""
    chat = FORMATS[name]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [form.template for form in FORMATS.values()],
        trainers.BpeTrainer(
            vocab_size=600,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(chat.special),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=chat.eos,
        additional_special_tokens=list(chat.special),
        clean_up_tokenization_spaces=False,
        chat_template=chat.template,
    )
