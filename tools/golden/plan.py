"""Which cases there are: patterns x sizes x probes, options, what is special, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sparse_ref as sr
from sparse_ref.conformance.probes import Sizes
from sparse_ref.patterns import Pattern

from .options import OPTIONS, bias, left_padded, lengths, padded_starts, sinks
from .patterns import NAMED, PER_BATCH, Named
from .selected import Selector
from .selectors import NAMED as SELECTED
from .selectors import TIES

SQUARE = Sizes(1, 2, 1, 13, 13, 5, 3)
CROSS = Sizes(1, 2, 2, 7, 19, 3, 5)  # fewer queries than keys
TALL = Sizes(1, 2, 1, 17, 11, 5, 2)  # more queries than keys
GROUPS = Sizes(1, 6, 3, 5, 11, 3, 2)
BATCH = Sizes(2, 4, 2, 7, 13, 5, 3)
STEP = Sizes(1, 4, 2, 1, 19, 7, 5)  # a decode step
RAGGED = Sizes(1, 2, 1, 67, 131, 5, 2)  # past one block of 64, and past two
SLOPE = Sizes(1, 4, 2, 7, 11, 5, 3)  # for gradients
SLOPES = Sizes(2, 2, 1, 5, 7, 3, 1)
SMALL = Sizes(1, 2, 1, 3, 5, 2, 1)  # by hand
SMALLER = Sizes(1, 1, 1, 4, 3, 1, 2)
LONG = Sizes(1, 2, 1, 11, 2053, 7, 5)
TEXT = Sizes(2, 4, 2, 11, 11, 3, 5)
EMPTY = (Sizes(1, 2, 1, 0, 5, 3, 2), Sizes(1, 2, 1, 5, 0, 3, 2), Sizes(0, 2, 1, 3, 5, 3, 2))

USUAL = {
    SQUARE: ("random", "even", "fingerprint"), CROSS: ("random", "even", "low"),
    TALL: ("random", "even"), GROUPS: ("random", "fingerprint"), BATCH: ("random",),
    STEP: ("random", "even"), RAGGED: ("steps",),
}  # fmt: skip


# Cases that were released and were wrong: id to reason. They stay in the manifest, by name.
WITHDRAWN: dict[str, str] = {}


@dataclass(frozen=True)
class Plan:
    """One case before it has values.

    `options` hold values, or functions of (stream, sizes) that draw them; `plant` changes the
    arrays; `above` says which gradients arrive: "" for none, "out" or "out+lse". With a `selector`
    the content chooses, and `pattern` is what it chooses from.
    """

    family: str
    name: str
    pattern: Pattern
    words: str
    flags: tuple[str, ...]
    sizes: Sizes
    probe: str
    options: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""
    plant: str = ""
    above: str = ""
    inline: bool = False
    selector: Selector | None = None

    @property
    def id(self) -> str:
        """Permanent: family, pattern and options, sizes, probe."""
        return f"{self.family}/{self.name}{self.suffix}/{self.sizes}/{self.probe}"


def plans() -> list[Plan]:
    """Every case, in the order of the ids."""
    families = (_patterns, _long, _options, _special, _by_hand, _gradients, _selected)
    found = [plan for family in families for plan in family()]
    ids = [plan.id for plan in found]
    twice = {i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else set()
    if twice:
        raise ValueError(f"ids must be distinct, got {sorted(twice)}")
    return sorted((p for p in found if p.id not in WITHDRAWN), key=lambda plan: plan.id)


def _of(name: str, named: Named, s: Sizes, probe: str, **more: Any) -> Plan:
    more = {"family": named.family, "flags": named.flags} | more
    return Plan(name=name, pattern=named.make(s.n), words=named.words, sizes=s, probe=probe, **more)


def _patterns() -> Iterator[Plan]:
    for name, named in NAMED.items():
        for s, probes in USUAL.items():
            for probe in probes:
                yield _of(name, named, s, probe)
    for probe in ("random", "even", "fingerprint", "low"):
        yield _of("per-batch", PER_BATCH, BATCH, probe)


def _long() -> Iterator[Plan]:
    names = {
        "causal": sr.Causal(),
        "window-1023": sr.Causal() & sr.SlidingWindow(1023, 0),
        "strided-64": sr.Causal() & (sr.SlidingWindow(63, 0) | sr.Strided(64)),
        "sinks-4": sr.Causal() & (sr.SlidingWindow(255, 0) | sr.Sink(4)),
        "random-64": sr.RandomKeys(64, 9, LONG.n, causal=True),
    }
    words = {
        "causal": "keys up to and including the query's own position",
        "window-1023": "the query's own key and the 1,023 before it",
        "strided-64": "causal: the last 64 keys, and those at a distance that is a multiple of 64",
        "sinks-4": "causal: the last 256 keys, and the first 4",
        "random-64": "64 random keys a row among those up to its own position, seed 9",
    }
    for name, pattern in names.items():
        for probe in ("even", "ramp", "steps"):
            yield Plan("long", name, pattern, words[name], (), LONG, probe)


def _options() -> Iterator[Plan]:
    for name in ("causal", "window-5", "band-3-2", "strided-window", "per-head-2", "multi-2"):
        for option, (asked, flags) in OPTIONS.items():
            for s in (SQUARE, BATCH):
                probes = ("random", "ramp") if name in ("causal", "window-5") else ("random",)
                for probe in probes:
                    yield _option(name, option, asked, flags, s, probe)
    for option in ("bias", "alibi", "sinks", "softcap", "all", "starts"):
        asked, flags = OPTIONS[option]
        yield _option("window-5", option, asked, flags, CROSS, "random")
        yield _option("window-5", option, asked, flags, TALL, "random")
        yield _option("strided-window", option, asked, flags, RAGGED, "random")


def _option(
    name: str, option: str, asked: dict[str, Any], flags: tuple[str, ...], s: Sizes, probe: str
) -> Plan:
    named = NAMED[name]
    return _of(
        name, named, s, probe, family="options", options=asked, suffix=f"+{option}",
        flags=named.flags + flags,
    )  # fmt: skip


def _special() -> Iterator[Plan]:
    sunk: dict[str, Any] = {
        "family": "special", "options": {"sink_logits": sinks}, "flags": ("SinkLogit",),
    }  # fmt: skip
    for s in EMPTY:
        for name in ("full", "causal", "window-2", "prefix-4", "nothing"):
            yield _of(name, NAMED[name], s, "random", family="special")
        yield _of("full", NAMED["full"], s, "random", suffix="+sinks", **sunk)
    hidden = ("strictly-causal", "window-1", "rows-and-keys", "global-keys", "documents-holes",
              "nothing", "key-stride")  # fmt: skip
    for name in hidden:
        for s in (SQUARE, CROSS, BATCH, GROUPS):
            yield _of(name, NAMED[name], s, "random", family="special", plant="hidden",
                      suffix="+hidden-nan")  # fmt: skip
    for name in ("causal", "window-2", "strided-4", "documents"):
        for s in (SQUARE, BATCH):
            for plant in ("seen-key", "seen-value", "bias-hidden", "bias-minus-inf", "bias-inf",
                          "bias-row-minus-inf"):  # fmt: skip
                options = {"bias": bias} if plant.startswith("bias") else {}
                yield _of(name, NAMED[name], s, "random", family="special", plant=plant,
                          options=options, suffix=f"+{plant}")  # fmt: skip
        yield _of(name, NAMED[name], BATCH, "random", family="special", plant="padding",
                  options={"kv_lengths": lengths, "q_start": 0}, suffix="+padding-nan",
                  flags=("KvLengths",))  # fmt: skip
    for name in ("nothing", "strictly-causal", "rows-and-keys"):
        for s in (SQUARE, BATCH):
            yield _of(name, NAMED[name], s, "random", suffix="+sinks", **sunk)
            yield _of(name, NAMED[name], s, "random", suffix="+no-sink", plant="no-sink", **sunk)


BY_HAND = (
    "full", "causal", "strictly-causal", "window-0", "window-1", "window-2", "band-2-2", "ahead-3",
    "chunked-full", "chunked-earlier", "strided-4", "key-stride", "offsets", "prefix-4", "sinks-2",
    "global-0-6", "documents-holes", "blocked-band", "random-2", "natten-causal", "grid-column",
    "butterfly", "per-head-2", "multi-2", "nothing",
)  # fmt: skip


def _by_hand() -> Iterator[Plan]:
    """So small that they stand in the manifest as text, and can be worked out on paper."""
    for name in BY_HAND:
        for s, probe in ((SMALL, "even"), (SMALL, "random"), (SMALLER, "random")):
            if name != "natten-causal" or s.n >= 4:
                yield _of(name, NAMED[name], s, probe, family="by-hand", inline=True)
    for option, (asked, flags) in OPTIONS.items():
        if "ring" not in option:
            yield _of("window-1", NAMED["window-1"], SMALL, "random", family="by-hand",
                      options=asked, suffix=f"+{option}", flags=flags, inline=True)  # fmt: skip


def _gradients() -> Iterator[Plan]:
    more: dict[str, Any] = {"family": "gradients"}
    for name, named in NAMED.items():
        yield _of(name, named, SLOPE, "random", above="out", **more)
        yield _of(name, named, (CROSS, TALL, GROUPS, SLOPES)[len(name) % 4], "random",
                  above="out+lse", **more)  # fmt: skip
    for name in ("causal", "window-5", "strided-window", "per-head-2", "multi-2"):
        for option, (asked, flags) in OPTIONS.items():
            if "bias" in asked or "sink_logits" in asked or name == "window-5":
                s = SLOPE if name == "per-head-2" else SLOPES
                one = _option(name, option, asked, flags, s, "random")
                yield replace(one, family="gradients", above="out+lse")


def _selected() -> Iterator[Plan]:
    probes = {"random": (), "even": (TIES,), "steps": (TIES,)}
    padded = {"kv_positions": left_padded, "q_start": padded_starts}
    for name, one in SELECTED.items():
        more: dict[str, Any] = {"selector": one}
        given = ("selection", name, one.visible, one.words)
        for probe, flags in probes.items():
            for s in (SQUARE, TEXT) if one.text else (SQUARE, CROSS, TALL, GROUPS, BATCH, STEP):
                if s == TALL and one.visible == sr.Full():
                    continue  # lists have no rows for queries before position 0
                yield Plan(*given, one.flags + flags, s, probe, **more)
            if not one.text:
                yield Plan(*given, (*one.flags, *flags, "KvPositions", "QStart"), BATCH, probe,
                           padded, "+left-padding", **more)  # fmt: skip


def in_core(plan: Plan) -> bool:
    """Whether a case is one of the few that come with the library."""
    s, simple = plan.sizes, not plan.options
    return (
        plan.family == "by-hand"
        or (simple and s in (SQUARE, STEP) and plan.probe == "even")
        or (plan.family == "options" and s == BATCH and plan.name == "window-5")
        or (plan.family == "special" and s in (BATCH, *EMPTY) and plan.name != "documents")
        or (plan.family == "gradients" and plan.name in ("causal", "window-5"))
        or (plan.name == "causal" and (s == RAGGED or (s == LONG and plan.probe == "steps")))
        or plan.id == "windows/window-2/b1h2g1-13x13-d5e3/random"
    )
