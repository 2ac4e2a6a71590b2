"""A chat template compiled once, that can also tell which parts of its text hang on which answer.

To find an answer, the text with it is compared with the text in which another one stands in its place: one rendering
for each answer. Most templates write every message in an iteration of a loop that carries nothing over to the next. A
rendering that is watched proves it for the conversation at hand, and then one rendering with all answers replaced
stands for one rendering each.

The proof: the template's loops at its top level are taken apart into iterations, and reading anything of a watched
message but its role is noticed. What an iteration reads decides what it writes, since variables that it sets end with
it. So if no iteration reads two answers, none is read between loops, and nothing that lives on (a namespace) is changed
once an answer was read, then the text of an iteration depends on the one answer that it reads, and on nothing else that
can be replaced.
"""

from __future__ import annotations

import builtins
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, pass_context
from jinja2.runtime import Context, LoopContext
from transformers.utils import chat_template_utils

from draftyard_trainer.data.template_tree import (
    END_PROMPT,
    ENTER,
    GENERATION,
    LEAVE,
    PROMPT,
    carries_nothing_over,
    mark_iterations,
    mark_prompts,
)
from draftyard_trainer.data.watch import Watch, WatchedMessage

LIBRARY_COMPILER = "_compile_jinja_template"
"""What transformers compiles chat templates with. It is private: another version may lack it."""
Messages = Sequence[dict[str, Any]]

DICT_ATTRIBUTES = frozenset(dir(dict))
STR_METHODS = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))
LOOP_COUNTS = frozenset({"first", "index", "index0", "last", "length", "revindex", "revindex0"})


@dataclass(frozen=True, eq=False)
class Traced:
    """A text in parts: part p is `text[borders[p]:borders[p + 1]]`, and hangs on the answer `readers[p]` alone."""

    text: str
    borders: list[int]
    readers: list[int | None]

    def part(self, place: int) -> str:
        """The text of one part."""
        return self.text[self.borders[place] : self.borders[place + 1]]


@dataclass(frozen=True)
class Replaced:
    """The same text with another answer: `text[start:end]` reads `other` there, and everything else is as it was."""

    start: int
    end: int
    other: str


class CompiledTemplate:
    """A chat template ready to render. Raises what Jinja does, when it is made and when it renders."""

    def __init__(self, source: str, environment: Environment) -> None:
        environment.getattr = quick_getattr(environment)  # type: ignore[method-assign]
        environment.filters = {**environment.filters, **self._marks()}
        self._watch = Watch()
        self._namespace = self._telling(environment.globals["namespace"])
        plain = environment.parse(source)
        self._knows_prompt = mark_prompts(plain)
        self._plain = environment.from_string(plain)
        tree = environment.parse(source)
        self._can_trace = carries_nothing_over(tree)
        if self._can_trace:
            tree.body = mark_iterations(tree.body)
            self._traced = environment.from_string(tree, {"namespace": self._namespace})

    def _marks(self) -> dict[str, Any]:
        """The filters that tell the rendering at hand where it is."""

        # with a context they are not taken for constants
        @pass_context
        def enter(_context: Context, _value: object) -> None:
            self._watch.enter()

        @pass_context
        def leave(_context: Context, _value: object) -> None:
            self._watch.leave()

        @pass_context
        def mark_prompt(_context: Context, _value: object) -> None:
            self._watch.mark_prompt()

        return {ENTER: enter, LEAVE: leave, PROMPT: mark_prompt, END_PROMPT: mark_prompt}

    def _telling(self, namespace: Any) -> type:
        """A kind of namespace that tells when it is changed."""
        template = self

        class TellingNamespace(namespace):  # type: ignore[misc]
            def __setitem__(self, name: str, value: Any) -> None:
                template._watch.wrote()
                super().__setitem__(name, value)

        return TellingNamespace

    def _run(self, template: Any, messages: Messages, variables: Mapping[str, Any]) -> Watch:
        given = {"messages": messages, "tools": None, "documents": None, GENERATION: False, **variables}
        pieces = self._watch.pieces
        for piece in template.root_render_func(template.new_context(given)):
            # one at a time: marks look at how many there are already
            pieces.append(piece)
        return self._watch

    def render(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        """The text of a conversation without tools."""
        self._watch = Watch()
        return "".join(self._run(self._plain, messages, variables).pieces)

    def render_prompt(self, messages: Messages, variables: Mapping[str, Any]) -> tuple[str, int | None]:
        """The text with a generation prompt, and how long it is without one; None where only rendering that tells."""
        self._watch = Watch()
        watch = self._run(self._plain, messages, {**variables, GENERATION: True})
        text = "".join(watch.pieces)
        if not self._knows_prompt:
            return text, None
        marks = iter(watch.prompt_pieces)
        added = sum(sum(map(len, watch.pieces[start:end])) for start, end in zip(marks, marks, strict=True))
        return text, len(text) - added

    def trace(self, messages: Messages, answers: Sequence[int], variables: Mapping[str, Any]) -> Traced | None:
        """The text with the parts that hang on each of some messages; None where they cannot be told apart."""
        if not self._can_trace:
            return None
        self._watch = watch = Watch()
        seen = list(messages)
        for place in answers:
            seen[place] = WatchedMessage(messages[place], place, watch)
        self._run(self._traced, seen, variables)
        if not watch.is_apart:
            return None
        ends = [0, *itertools.accumulate(map(len, watch.pieces))]
        borders = [ends[start] for start in watch.starts]
        return Traced("".join(watch.pieces), [*borders, ends[-1]], watch.readers)


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> CompiledTemplate | None:
    """The template of a source, made once; None where this version of the library renders only itself.

    Raises TemplateError.
    """
    environment = library_environment(source)
    return None if environment is None else CompiledTemplate(source, environment)


def library_environment(source: str) -> Environment | None:
    """A copy of the sandbox that the library renders a template in; None where there is no way to it.

    Its own, not one like it: filters, functions and what is forbidden are a server's. Raises TemplateError.
    """
    compiler = getattr(chat_template_utils, LIBRARY_COMPILER, None)
    return None if compiler is None else compiler(source).environment.overlay()


def replacements(one: Traced, other: Traced, answers: Sequence[int]) -> Iterator[Replaced | None]:
    """For each answer: what `one` would be with that answer alone as it is in `other`; None where it is not shown."""
    parts: dict[int, list[int]] = {}
    for place, reader in enumerate(one.readers):
        if reader is not None:
            parts.setdefault(reader, []).append(place)
    for answer in answers:
        owned = parts.get(answer)
        if owned is None:
            yield None
            continue
        middle = range(owned[0], owned[-1] + 1)
        text = "".join((other if one.readers[place] == answer else one).part(place) for place in middle)
        yield Replaced(one.borders[owned[0]], one.borders[owned[-1] + 1], text)


def quick_getattr(environment: Any) -> Any:
    """The sandbox's `value.name` with a short way for what templates ask most, with the same results.

    The sandbox looks for an attribute first, which dicts do not have, and asks a dozen questions about each method.
    """
    careful, namespace = environment.getattr, environment.globals["namespace"]

    def getattr(value: Any, name: str) -> Any:  # noqa: A001  its name in Jinja
        kind = type(value)
        if (kind is dict or kind is WatchedMessage) and name not in DICT_ATTRIBUTES:
            try:
                return value[name]
            except KeyError:
                return careful(value, name)
        is_harmless = (
            (kind is str and name in STR_METHODS)
            or (kind is LoopContext and name in LOOP_COUNTS)
            # a stored value was already looked at when it was read
            or (issubclass(kind, namespace) and not name.startswith("_"))
        )
        if not is_harmless:
            return careful(value, name)
        try:
            return builtins.getattr(value, name)
        except AttributeError:
            return careful(value, name)

    return getattr
