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

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext
from transformers.utils.chat_template_utils import _compile_jinja_template

Messages = Sequence[dict[str, Any]]

ENTER, LEAVE, PROMPT, END_PROMPT = (f"draftyard_{name}" for name in ("enter", "leave", "prompt", "end_prompt"))
"""Filters that a changed template asks: around each iteration, and around what only a generation prompt writes.

Filters, since those are called directly; a function goes through the sandbox, which takes longer than all else here.
"""
GENERATION = "add_generation_prompt"

CARRY_OVER = frozenset({"cycler", "joiner", "lipsum"})
"""Functions of Jinja whose results remember their last call."""
LAZY = frozenset(
    {"batch", "items", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "unique"}
)
"""Filters that read their input when their output is read, which may be in a later iteration."""
EAGER = frozenset({"first", "join", "last", "length", "list", "sort", "sum", "tojson"})
"""Filters that read all of their input at once."""

DICT_ATTRIBUTES = frozenset(dir(dict))
STR_METHODS = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))
LOOP_COUNTS = frozenset({"first", "index", "index0", "last", "length", "revindex", "revindex0"})


class Watch:
    """What one rendering did: its text in pieces, cut into parts, each with the one answer that was read in it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.starts = [0]
        """The first piece of each part: what stands between loops, and each iteration."""
        self.readers: list[int | None] = [None]
        self.is_apart = True
        """Whether every answer keeps to its own parts."""
        self.prompt_pieces: list[int] = []
        """Where what only a generation prompt writes begins and ends, in turns."""
        self._in_loop = False

    def enter(self) -> None:
        """An iteration begins."""
        self._part(in_loop=True)

    def leave(self) -> None:
        """A loop is over."""
        self._part(in_loop=False)

    def _part(self, in_loop: bool) -> None:
        self.starts.append(len(self.pieces))
        self.readers.append(None)
        self._in_loop = in_loop

    def mark_prompt(self) -> None:
        """A part that only a generation prompt writes begins or ends."""
        self.prompt_pieces.append(len(self.pieces))

    def read(self, message: int) -> None:
        """Something of a watched message was read."""
        reader = self.readers[-1]
        if not self._in_loop or reader not in (None, message):
            self.is_apart = False
        self.readers[-1] = message

    def wrote(self) -> None:
        """Something that outlives the iteration was changed."""
        self.is_apart = self.is_apart and self.readers[-1] is None


class WatchedMessage(dict[str, Any]):
    """A message that tells when anything but its role is read. Every way of reading a dict is here."""

    __slots__ = ("_place", "_watch")

    def __init__(self, message: Mapping[str, Any], place: int, watch: Watch) -> None:
        super().__init__(message)
        self._place, self._watch = place, watch

    def __getitem__(self, key: str) -> Any:
        if key != "role":
            self._watch.read(self._place)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        if key != "role":
            self._watch.read(self._place)
        return super().get(key, default)


def watched(name: str) -> Any:
    """The method of dict by that name, which tells first that the message is read."""
    method = builtins.getattr(dict, name)

    @functools.wraps(method)
    def read(self: WatchedMessage, *args: Any, **kwargs: Any) -> Any:
        self._watch.read(self._place)
        return method(self, *args, **kwargs)

    return read


for _name in (
    "__contains__", "__eq__", "__ge__", "__gt__", "__iter__", "__le__", "__len__", "__lt__", "__ne__", "__or__",
    "__repr__", "__reversed__", "__ror__", "copy", "items", "keys", "values",
):  # fmt: skip
    setattr(WatchedMessage, _name, watched(_name))


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

    def __init__(self, source: str) -> None:
        environment = _compile_jinja_template(source).environment.overlay()
        environment.getattr = quick_getattr(environment)
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

    def _telling(self, namespace: type) -> type:
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
def compile_template(source: str) -> CompiledTemplate:
    """The template of a source, made once. Raises TemplateError."""
    return CompiledTemplate(source)


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


# -- Templates as trees ---------------------------------------------------------------------------------


def mark(name: str) -> nodes.ExprStmt:
    """A statement that writes nothing and asks one of our filters."""
    return nodes.ExprStmt(nodes.Filter(nodes.Const(None), name, [], [], None, None))


def mark_iterations(body: list[nodes.Node]) -> list[nodes.Node]:
    """Tell where each iteration of each outermost loop begins, and where the loop ends."""
    marked: list[nodes.Node] = []
    for node in body:
        marked.append(node)
        if isinstance(node, nodes.For) and is_plain_loop(node):
            node.body.insert(0, mark(ENTER))
            marked.append(mark(LEAVE))
        elif isinstance(node, nodes.If):
            for branch in (node, *node.elif_):
                branch.body = mark_iterations(branch.body)
            node.else_ = mark_iterations(node.else_)
    return marked


def is_plain_loop(node: nodes.For) -> bool:
    """Whether nothing is read between its iterations."""
    return node.test is None and not node.recursive and node.iter.find((nodes.Filter, nodes.Call)) is None


def carries_nothing_over(tree: nodes.Template) -> bool:
    """Whether an iteration can reach later ones through namespaces alone, which are watched."""
    names = {node.name for node in tree.find_all(nodes.Name)}
    stateful = bool(names & CARRY_OVER) or any(node.attr == "changed" for node in tree.find_all(nodes.Getattr))
    return not (stateful or tree.find((nodes.Break, nodes.Block, nodes.Include)) or has_lazy_filter(tree))


def has_lazy_filter(node: nodes.Node, is_read: bool = False) -> bool:
    """Whether a filter's output may be read later than where it stands; `is_read`: what it stands in reads it all."""
    name = node.name if isinstance(node, nodes.Filter) else None
    if name == "random" or (name in LAZY and not is_read):
        return True
    # a chain of lazy filters is read when its outermost one is
    reads = name in EAGER or (name in LAZY and is_read)
    inner = node.node if isinstance(node, nodes.Filter) else None
    return any(has_lazy_filter(child, reads and child is inner) for child in node.iter_child_nodes())


def mark_prompts(tree: nodes.Template) -> bool:
    """Mark what only a generation prompt writes. Whether all else is the same without one.

    It is where the argument is but asked for in `if` statements without another branch, that set nothing.
    """
    known = 0
    for node in list(tree.find_all(nodes.If)):
        if is_prompt(node):
            node.body = [mark(PROMPT), *node.body, mark(END_PROMPT)]
            known += 1
        elif never_happens(node):
            known += sum(name.name == GENERATION for name in node.find_all(nodes.Name))
    mentions = sum(name.name == GENERATION for name in tree.find_all(nodes.Name))
    buffers = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)
    is_buffered = any(
        each.name == PROMPT for buffer in tree.find_all(buffers) for each in buffer.find_all(nodes.Filter)
    )
    return mentions == known and not is_buffered


def is_prompt(node: nodes.If) -> bool:
    """Whether an `if` writes something with a generation prompt, and does nothing without one."""
    changes = (nodes.Assign, nodes.AssignBlock, nodes.Break, nodes.Continue)
    return (
        requires_prompt(node.test)
        and not (node.elif_ or node.else_)
        and not any(statement.find(changes) or isinstance(statement, changes) for statement in node.body)
    )


def requires_prompt(test: nodes.Node) -> bool:
    """Whether a condition is `add_generation_prompt`, alone or with others that must hold too."""
    if isinstance(test, nodes.And):
        return requires_prompt(test.left) or requires_prompt(test.right)
    return isinstance(test, nodes.Name) and test.name == GENERATION


def never_happens(node: nodes.If) -> bool:
    """Whether an `if` is for callers that leave the argument out; nobody here does."""
    test = node.test.node if isinstance(node.test, nodes.Not) else node.test
    wanted = "defined" if isinstance(node.test, nodes.Not) else "undefined"
    return (
        isinstance(test, nodes.Test)
        and test.name == wanted
        and isinstance(test.node, nodes.Name)
        and test.node.name == GENERATION
        and not (node.elif_ or node.else_)
    )


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
