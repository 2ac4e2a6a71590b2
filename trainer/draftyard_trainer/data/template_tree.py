"""Chat templates as syntax trees: what is told of a rendering is marked in them, and what cannot be told is found."""

from __future__ import annotations

from jinja2 import nodes

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


def holds(tree: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    """Whether a node of one of these kinds is below another."""
    return any(tree.find(kind) is not None for kind in kinds)


def is_plain_loop(node: nodes.For) -> bool:
    """Whether nothing is read between its iterations."""
    return node.test is None and not node.recursive and not holds(node.iter, nodes.Filter, nodes.Call)


def carries_nothing_over(tree: nodes.Template) -> bool:
    """Whether an iteration can reach later ones through namespaces alone, which are watched."""
    names = {node.name for node in tree.find_all(nodes.Name)}
    stateful = bool(names & CARRY_OVER) or remembers_in_loop(tree)
    return not (stateful or holds(tree, nodes.Break, nodes.Block, nodes.Include) or has_lazy_filter(tree))


def remembers_in_loop(tree: nodes.Template) -> bool:
    """Whether `loop.changed` may be asked, which remembers its last argument: by its name, or `loop` by another way."""
    plain = sum(
        isinstance(node.node, nodes.Name) and node.node.name == "loop" and node.attr != "changed"
        for node in tree.find_all(nodes.Getattr)
    )
    return plain != sum(node.name == "loop" for node in tree.find_all(nodes.Name))


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
    return (
        requires_prompt(node.test)
        and not (node.elif_ or node.else_)
        and not holds(nodes.Scope(node.body), nodes.Assign, nodes.AssignBlock, nodes.Break, nodes.Continue)
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
