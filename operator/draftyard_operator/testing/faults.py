"""What a test lets go wrong, and what it can read afterwards: every call that came.

A fault picks calls by verb, resource, namespace, name and subresource. It lets `after` of them pass, and then strikes
`times` times (None: until it is taken away).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

WRITES = ("create", "update", "patch", "delete")


@dataclass(frozen=True)
class Call:
    """One request, as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    agent: str = ""
    """User-Agent of who asked."""
    code: int = 0
    """Of the answer; 0 when none was given."""

    @property
    def granted_as(self) -> tuple[str, str, str]:
        """Group, resource with subresource, and verb, as a Role lists them."""
        return self.group, "/".join(filter(None, (self.resource, self.subresource))), self.verb


# -- What can happen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delay:
    """The answer takes this long; the write happens after the wait."""

    seconds: float


@dataclass(frozen=True)
class Answer:
    """The server gives this answer, and does nothing."""

    code: int
    reason: str = "InternalError"
    message: str = "a fault that a test asked for"
    retry_after: int | None = None
    html: bool = False
    """A page of some proxy in place of a Status object."""


@dataclass(frozen=True)
class Drop:
    """The connection breaks before anything is done."""


@dataclass(frozen=True)
class LoseReply:
    """All is done, and then the connection breaks."""


@dataclass(frozen=True)
class Crash:
    """All is done; the hook is called, and no answer comes: what a client sees that dies right after its write."""

    hook: Callable[[], None]


@dataclass(frozen=True)
class Silence:
    """A watch stays open, and nothing comes through it."""


@dataclass(frozen=True)
class Break:
    """A watch is cut after this many events."""

    events: int = 0


@dataclass(frozen=True)
class WatchError:
    """A watch sends an ERROR event: 410 when it is told to list again, 500 for anything else."""

    code: int


Effect = Delay | Answer | Drop | LoseReply | Crash | Silence | Break | WatchError


@dataclass
class Fault:
    """An effect, and which calls it strikes."""

    effect: Effect
    verbs: Collection[str] = ()
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str | None = None
    """None: with and without; empty: only the object itself."""
    times: int | None = 1
    after: int = 0
    """Calls that it lets pass first."""
    struck: int = 0

    def picks(self, call: Call) -> bool:
        """Whether it is about this call."""
        return (
            (not self.verbs or call.verb in self.verbs)
            and self.resource in ("", call.resource)
            and self.namespace in ("", call.namespace)
            and self.name in ("", call.name)
            and self.subresource in (None, call.subresource)
        )

    def strikes(self, call: Call) -> bool:
        """Whether it happens to this call. Counts."""
        if not self.picks(call) or self.struck == self.times:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.struck += 1
        return True


@dataclass
class Faults:
    """All faults of a server; the first one that strikes happens, and delays add up."""

    listed: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> Fault:
        """Let it happen from now on."""
        self.listed.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """It is over."""
        self.listed.remove(fault)

    def clear(self) -> None:
        """All is well again."""
        self.listed.clear()

    def strike(self, call: Call) -> list[Effect]:
        """Effects for one call: any delays, and at most one other."""
        found: list[Effect] = []
        for fault in self.listed:
            if found and not isinstance(found[-1], Delay):
                break
            if fault.strikes(call):
                found.append(fault.effect)
        return found


@dataclass
class Record:
    """Every call in order."""

    calls: list[Call] = field(default_factory=list)

    def clear(self) -> None:
        """Begin to count again."""
        self.calls.clear()

    def of(self, *verbs: str, resource: str = "", subresource: str | None = None) -> list[Call]:
        """Calls with one of these verbs (none given: any)."""
        return [
            call
            for call in self.calls
            if (not verbs or call.verb in verbs)
            and resource in ("", call.resource)
            and subresource in (None, call.subresource)
        ]

    @property
    def writes(self) -> list[Call]:
        """Calls that change something."""
        return self.of(*WRITES)

    @property
    def granted(self) -> set[tuple[str, str, str]]:
        """Group, resource and verb of every call: what a Role must grant."""
        return {call.granted_as for call in self.calls if call.resource}

    def counts(self) -> Counter[str]:
        """How often each verb met each resource, such as `list jobs`."""
        return Counter(f"{call.verb} {call.granted_as[1]}" for call in self.calls)
