"""``modalloy ask``: a question about inputs, answered by a composition."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from modalloy.cli.output import hush_transformers, print_json, print_line, shown
from modalloy.errors import nearest

MEDIA = "modalloy.media"
"""Key of the context's meta data under which inputs stand, in the order they were given."""


class MediaCommand(TyperCommand):
    """A command that takes ``--image P``, ``--audio P``, ... of whatever modalities there are.

    Their order across options is the order of the inputs in the prompt, which plain options
    would lose.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the inputs out of the arguments before the other options are read."""
        kinds = media_options()
        media: list[tuple[str, str]] = []
        rest: list[str] = []
        own = {name for parameter in self.params for name in parameter.opts}
        valued = {name for p in self.params if not getattr(p, "is_flag", True) for name in p.opts}
        queue = list(args)
        while queue:
            word = queue.pop(0)
            if word == "--":
                rest += [word, *queue]
                break
            option, equals, value = word.partition("=")
            if option in kinds and option not in own:
                if not equals and (not queue or queue[0].startswith("--")):
                    ctx.fail(f"Option {option!r} needs a file.")
                media.append((kinds[option], value if equals else queue.pop(0)))
                continue
            if option.startswith("--") and option not in own and option != "--help":
                known = sorted({*kinds, *own})
                ctx.fail(
                    f"No such option: {option}.{nearest(option, known)} Inputs: "
                    f"{', '.join(sorted(kinds)) or 'no modality is installed'} "
                    "(see `modalloy plugins` for those that are blocked or broken)."
                )
            rest.append(word)
            if word in valued and queue:
                rest.append(queue.pop(0))  # whatever it looks like
        ctx.meta[MEDIA] = media
        return super().parse_args(ctx, rest)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """List the inputs that installed modalities take."""
        with formatter.section("Inputs, in prompt order (repeatable)"):
            formatter.write_dl(
                [
                    (f"{option} FILE", f"an input of type {kind}")
                    for option, kind in sorted(media_options().items())
                ]
            )
        super().format_epilog(ctx, formatter)


def media_options() -> dict[str, str]:
    """Return option by content type of every installed modality, such as ``--point-cloud``."""
    from modalloy.registry import Registry

    kinds = {spec.content_type for spec in Registry.discover().modalities.values()}
    return {f"--{kind.replace('_', '-')}": kind for kind in sorted(kinds)}


command = typer.Typer(add_completion=False, rich_markup_mode=None)


@command.command("ask", cls=MediaCommand)
def ask(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory or Hub id of a composition.")],
    question: Annotated[str, typer.Argument(help="What to ask about the inputs.")],
    *,
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of MODEL, where that is a Hub id.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a composition a question about pictures, sounds, or whatever it takes in."""
    from modalloy.composition.compose import load

    hush_transformers()
    started = time.perf_counter()
    composition = load(model, revision=revision, dtype=dtype)
    loaded = time.perf_counter()
    media: list[tuple[str, str]] = ctx.meta[MEDIA]
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append(
        {
            "role": "user",
            "content": [
                *({"type": kind, "path": Path(path)} for kind, path in media),
                {"type": "text", "text": question},
            ],
        }
    )
    stream = sys.stdout.isatty() and not as_json
    text, count = answer(*composition, messages, max_new_tokens=max_new_tokens, stream=stream)
    if as_json:
        done = time.perf_counter()
        print_json(
            {
                "model": model,
                "question": question,
                "inputs": [{"type": kind, "path": path} for kind, path in media],
                "answer": text,
                "tokens": count,
                "load_seconds": round(loaded - started, 3),
                "answer_seconds": round(done - loaded, 3),
            }
        )
    elif not stream:
        print_line(text)


def answer(
    model: Any,
    processor: Any,
    messages: list[dict[str, Any]],
    *,
    max_new_tokens: int,
    stream: bool = False,
) -> tuple[str, int]:
    """Answer a conversation greedily.

    Args:
        model: A composition's model.
        processor: Its processor.
        messages: The conversation.
        max_new_tokens: Longest answer.
        stream: Whether to write the answer to standard output as it comes.

    Returns:
        The answer, and its number of tokens.
    """
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True)
    streamer = None
    if stream:
        streamer = _streamer(processor.tokenizer)
    out = model.generate(
        **inputs.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        streamer=streamer,
    )
    new = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def _streamer(tokenizer: Any) -> Any:
    """Return what writes an answer as it comes, nothing of it driving the terminal."""
    from transformers import TextStreamer

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002
            super().on_finalized_text(shown(text), stream_end)

    return Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)
