"""`edgellm inspect`: what a GGUF says of itself, and how a chat with tools is written for it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgellm.cli.arguments import UsageError, add_model
from edgellm.cli.render import escape, megabytes, one_line, styled
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.chat.formats import WireFormat
    from edgellm.chat.template import ChatTemplate
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.types import Message, ToolSpec

_EXAMPLES = """\
examples:
  edgellm inspect smollm2-135m
  edgellm inspect ./model.gguf --json
  edgellm inspect ./model.gguf --template > chat_template.jinja
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm inspect`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="MODEL", nargs="?", help="a catalogue name or a .gguf file")
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--template", action="store_true", help="print the chat template alone")
    parser.add_argument("--metadata", action="store_true", help="print all metadata of the file as well")
    parser.set_defaults(handler=run)


@dataclass(frozen=True, slots=True)
class _Writing:
    """How chats are written: the format and why, and an example prompt; `trouble` where there is none."""

    template_name: str
    format_id: str
    reason: str
    example: str
    trouble: str = ""


def run(args: Namespace) -> int:
    """Prints the facts."""
    from edgellm.offline import inspect

    if args.file is not None and args.model is not None:
        raise UsageError("Two models are named. Leave MODEL or --model out.")
    name = args.file if args.file is not None else args.model or ""
    if args.file == "":
        raise UsageError("The model is empty. Write edgellm inspect MODEL.")
    if args.template and (args.json or args.metadata):
        raise UsageError("--template is printed alone. Leave --json and --metadata out.")
    info = inspect(name)
    if args.template:
        return _print_template(info)
    writing = _writing(info)
    if args.json:
        record = _record(info, writing)
        if args.metadata:
            record["metadata"] = dict(info.metadata)
        print(json.dumps(_finite(record), allow_nan=False, default=str))
        return 0
    for key, value in _facts(info):
        print(f"{styled(f'{key:<14}', 'dim', sys.stdout)}{one_line(value, 1000)}")
    if args.metadata:
        print()
        for key, value in sorted(info.metadata.items()):
            print(f"{one_line(key)} = {one_line(str(value), 300)}")
    print()
    if writing.format_id:
        print(
            f"{styled('tool calls', 'dim', sys.stdout)}    {writing.format_id}: {one_line(writing.reason, 500)}"
        )
    if writing.trouble:
        print(f"{styled('chats', 'dim', sys.stdout)}         {one_line(writing.trouble, 500)}")
    if writing.example:
        print(styled("\nA chat with a tool, as the model reads it:\n", "dim", sys.stdout))
        print(escape(writing.example))
    return 0


def _print_template(info: GGUFInfo) -> int:
    from edgellm.chat.template import select_template

    print(select_template(dict(info.chat_templates), True)[1])
    return 0


def _facts(info: GGUFInfo) -> list[tuple[str, str]]:
    rope, tokenizer = info.rope, info.tokenizer
    sizes = sum(info.quantization.values()) or 1
    mix = ", ".join(f"{kind} {100 * size / sizes:.1f}%" for kind, size in info.quantization.items())
    parameters = f"{info.parameters / 1e6:,.1f} M"
    if info.active_parameters != info.parameters:
        parameters += f" ({info.active_parameters / 1e6:,.1f} M active)"
    heads = f"{info.heads} heads, {info.kv_heads} for keys and values"
    facts = [
        ("file", f"{info.path} (GGUF {info.version}, {megabytes(info.size_bytes)})"),
        ("name", info.name or "not given"),
        ("licence", info.licence or "not given"),
        ("architecture", info.architecture),
        ("parameters", f"{parameters}, {info.bits_per_weight:.2f} bits each"),
        ("quantization", mix),
        ("context", f"{info.context_length:,} tokens" if info.context_length else "not given"),
        (
            "layers",
            f"{info.layers}, {info.attention_layers} with attention; embedding {info.embedding_length}",
        ),
        ("attention", heads + (f" (GQA {info.gqa_ratio:g})" if info.kv_heads else "")),
        (
            "rope",
            f"base {rope.base:g}, scaling {rope.scaling or 'none'}"
            + (f" × {rope.factor:g}" if rope.factor > 1 else ""),
        ),
        ("KV cache", f"{info.kv_bytes_per_token:,} bytes a token at f16"),
        (
            "tokenizer",
            f"{tokenizer.model} {tokenizer.pre}, {tokenizer.vocabulary_size:,} tokens".replace("  ", " "),
        ),
        ("templates", ", ".join(info.chat_templates) or "none"),
    ]
    if info.experts:
        facts.append(("experts", f"{info.experts}, {info.experts_used} used for a token"))
    if info.sliding_window:
        facts.append(("window", f"{info.sliding_window:,} tokens (sliding)"))
    if info.sampling:
        facts.append(("sampling", ", ".join(f"{key} {value}" for key, value in info.sampling.items())))
    if len(info.parts) > 1:
        facts.append(("parts", str(len(info.parts))))
    return facts


def _record(info: GGUFInfo, writing: _Writing) -> dict[str, Any]:
    # Any: JSON values.
    rope, tokenizer = info.rope, info.tokenizer
    names = ("base", "dimension_count", "scaling", "factor", "original_context")
    token_names = ("model", "pre", "vocabulary_size", "bos", "eos", "adds_bos")
    plain = (
        *("size_bytes", "version", "architecture", "name", "licence", "parameters", "active_parameters"),
        *("bits_per_weight", "context_length", "embedding_length", "layers", "attention_layers", "heads"),
        *("kv_heads", "gqa_ratio", "key_head_size", "value_head_size", "experts", "experts_used"),
        *("sliding_window", "kv_bytes_per_token", "pooling"),
    )
    return {
        "path": str(info.path),
        "parts": [str(part) for part in info.parts],
        **{name: getattr(info, name) for name in plain},
        "quantization": dict(info.quantization),
        "rope": {name: getattr(rope, name) for name in names},
        "tokenizer": {name: getattr(tokenizer, name) for name in token_names},
        "sampling": dict(info.sampling),
        "chat_templates": dict(info.chat_templates),
        "format": writing.format_id,
        "format_reason": writing.reason,
        "example": writing.example,
        "trouble": writing.trouble,
    }


def _finite(value: Any) -> Any:
    """The value with null for the numbers that JSON has not: a damaged file may hold them."""
    # Any: JSON values.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value


def _writing(info: GGUFInfo) -> _Writing:
    from edgellm.chat.formats import choose_format
    from edgellm.chat.template import ChatTemplate, select_template

    try:
        name, source = select_template(dict(info.chat_templates), True)
    except EdgeError as error:
        return _Writing("", "", "", "", str(error))
    special, bos, eos, trouble = _special_tokens(info)
    template = ChatTemplate(source, bos_text=bos, eos_text=eos, name=name)
    wire_format = choose_format(source, special, "auto", template.text)
    example = ""
    try:
        example = _example(template, wire_format)
    except EdgeError as error:
        trouble = str(error)
    return _Writing(name, wire_format.id, wire_format.reason, example, trouble)


def _special_tokens(info: GGUFInfo) -> tuple[set[str], str, str, str]:
    """Control tokens by spelling, BOS and EOS; without them and with the reason, where llama.cpp cannot read it."""
    from edgellm.offline import read_vocabulary

    try:
        with read_vocabulary(info.path) as vocabulary:
            texts = [
                vocabulary.piece(token).decode("utf-8", "replace") if token is not None else ""
                for token in (vocabulary.bos, vocabulary.eos)
            ]
            return set(vocabulary.special_tokens), texts[0], texts[1], ""
    except EdgeError as error:
        return set(), "", "", str(error)


def _example(template: ChatTemplate, wire_format: WireFormat) -> str:
    tool, messages = _conversation()
    described = wire_format.describe_tools((tool,))
    if described:
        system = messages[0]
        messages[0] = type(system)("system", f"{system.content}\n\n{described}")
    tools = (tool,) if wire_format.template_takes_tools else ()
    return "".join(
        segment.text
        for segment in template.render(
            wire_format.to_template(messages), tools=tools, **wire_format.template_inputs((tool,))
        )
    )


def _conversation() -> tuple[ToolSpec, list[Message]]:
    from edgellm.types import Message, ToolCall, ToolSpec

    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of a city."}},
        "required": ["city"],
    }
    call = ToolCall("call00001", "weather", {"city": "Oslo"})
    return ToolSpec("weather", "Tells the weather of a city.", schema), [
        Message("system", "Be brief."),
        Message("user", "What is the weather in Oslo?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "4 °C, rain", tool_call_id=call.id, name=call.name),
    ]
