"""Chat formats that are known by name: for tokenizers without a template, and for text that is rendered already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Data


@dataclass(frozen=True)
class ChatFormat:
    """A chat template, and the texts between which it puts what the assistant says."""

    template: str
    assistant_header: str
    end_of_turn: str


def uniform(start: str, after_role: str, end: str, assistant: str = "assistant", before: str = "") -> ChatFormat:
    """A format that writes `start`, the role, `after_role`, the content and `end` for every message, after `before`."""
    # only Gemma has another word for the assistant; user and system are written alike by all
    role = f"('{assistant}' if message['role'] == 'assistant' else message['role'])"
    # jinja reads escapes inside of its string literals; a raw line feed would do too, but could not be read here
    header = after_role.replace("\n", "\\n")
    closing = end.replace("\n", "\\n")
    template = (
        f"{before}{{% for message in messages %}}"
        f"{{{{ '{start}' + {role} + '{header}' + message['content'] + '{closing}' }}}}"
        "{% endfor %}{% if add_generation_prompt %}"
        f"{{{{ '{start}{assistant}{header}' }}}}"
        "{% endif %}"
    )
    return ChatFormat(template, f"{start}{assistant}{after_role}", end.strip())


BOS = "{{ bos_token }}"
CHATML = uniform("<|im_start|>", "\n", "<|im_end|>\n")
FORMATS: Mapping[str, ChatFormat] = {
    "chatml": CHATML,
    "gemma": uniform("<start_of_turn>", "\n", "<end_of_turn>\n", assistant="model", before=BOS),
    "llama3": uniform("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", before=BOS),
    "phi3": uniform("<|", "|>\n", "<|end|>\n"),
    # Qwen2 and later; Qwen3's own template also writes thinking blocks, which needs its tokenizer's template
    "qwen": CHATML,
}
"""What `data.chatTemplate` accepts besides `auto`."""


def recognise(text: str) -> ChatFormat | None:
    """The known format whose assistant header is in a rendered text, or None."""
    return next((known for known in FORMATS.values() if known.assistant_header in text), None)


def known_format(data: Data) -> ChatFormat | None:
    """The built-in chat format that the run names; None for the tokenizer's own. Raises Failure(BAD_TASK)."""
    if data.chat_template == "auto":
        return None
    if data.chat_template in FORMATS:
        return FORMATS[data.chat_template]
    raise Failure(
        ExitCode.BAD_TASK,
        Reason.TASK_REJECTED,
        f'data.chatTemplate: given "{data.chat_template}"; accepted: auto (the tokenizer\'s own), {", ".join(FORMATS)}',
    )
