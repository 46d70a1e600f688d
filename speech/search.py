"""The compiled inner loop of the beam search: ``search.c`` as WebAssembly, run by wasmtime (https://docs.wasmtime.dev).

A step of the search is little arithmetic on a few hundred prefixes: NumPy's calls took most of its time. WebAssembly
needs no compiler where the service is installed, is one file for every platform, and cannot touch memory other than
its own, which is filled with tables here.
"""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import wasmtime

from speech.language_model import RESOLUTION, UNKNOWN, LanguageModel
from speech.spelling import HotLetters, Letters

CODE = Path(__file__).with_suffix(".wasm")
MAX_WIDTH = 100_000
MOST_NATS = 300.0  # that the end of a word is worth, either way
LARGEST = 1 << 30  # bytes that a search may take
RESERVED = 128 << 20  # bytes of address space to begin with; wasmtime would take 4 GiB, which some limits forbid

WORDS = np.dtype([("folded", "<u8"), ("length", "<i4"), ("unused", "<i4")])
PREFIX = np.dtype(
    [(name, "<f8") for name in ("blank", "label", "end")]
    + [(name, WORDS) for name in ("words", "after")]
    + [(name, "<i4") for name in ("node", "last", "letters", "hot")]
)  # these two as search.c has them
NODE = np.dtype([("peak", "<f8"), ("parent", "<i4"), ("label", "<i4"), ("place", "<i4"), ("slot", "<i4")])

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """Weights (in nats) and limits of the search.

    The network's probabilities p are surer than they are right, and hold what is usual twice, as language does too: the
    search takes p ** acoustic_scale / prior ** prior_scale instead (the prior as in hybrid systems: Bourlard & Morgan,
    Connectionist Speech Recognition, 1994; Manohar et al., IEEE SLT 2015, for CTC).

    Raises ValueError if a limit leaves nothing to search or a number is not finite, TypeError if it is none.
    """

    width: int = 256  # prefixes that are kept
    lm_weight: float = 0.5  # of the language model's log-probabilities, beside the network's
    word_bonus: float = 1.0  # for each word: what a language model takes from long texts is given back
    acoustic_scale: float = 1.0  # of the network's log-probabilities
    prior_scale: float = 0.0  # of the priors' logarithms
    priors: tuple[float, ...] = ()  # how probable each label is on the whole; none: all the same
    unknown_penalty: float = 0.0  # for each word outside the vocabulary, on top of the cost of its letters
    labels: int = 8  # labels that are tried in one step
    label_floor: float = 6e-3  # probability below which a label is not tried
    beam_floor: float = 3e-4  # share of the best prefix's probability below which a prefix is dropped
    recombine: bool = True  # of prefixes that the future cannot tell apart keep the best; lists fewer alternatives
    blank_skip: float = 0.996  # a step whose blank is more probable than this says nothing
    least_confidence: float = 0.0  # a text less sure than this was heard where nobody speaks, and is not written

    def __post_init__(self) -> None:
        numbers = [*self.priors, *(value for name, value in asdict(self).items() if name != "priors")]
        if not 1 <= index(self.width) <= MAX_WIDTH or index(self.labels) < 1 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"expected finite numbers, a width of 1 to {MAX_WIDTH}, at least 1 label, found {self}")
        if not all(0 <= prior <= 1 for prior in self.priors):
            raise ValueError(f"expected priors of 0 to 1, found {self.priors}")


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What is searched: an utterance's steps but for those whose blank is nearly sure.

    Attributes:
        weighed: float64 (n, n_labels) probabilities, blank last.
        clear: the same before they were weighed.
        tried: int32 (n, k) labels to go on with, likeliest first; ``counts`` (n,) of them are meant.
        spaces: int32 (n,) the number of the space among them, -1 if it is not.
        gaps: int32 (n,) whether steps were left out before this one.
    """

    weighed: Array
    clear: Array
    tried: Array
    counts: Array
    spaces: Array
    gaps: Array


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The search at its end: ``nodes`` (NODE) are the beginnings of texts, each a parent and one more label;
    ``prefixes`` (PREFIX) those in the beam, likeliest first, their masses relative to exp(``scale``)."""

    nodes: Array
    prefixes: Array
    scale: float


class Search:
    """The search with the tables of one language model and one set of weights. Safe to share between threads: so many
    search ``at_once``, the others take turns; Python goes on meanwhile."""

    def __init__(
        self,
        letters: Letters,
        model: LanguageModel | None,
        n_labels: int,
        space: int,
        options: BeamOptions,
        at_once: int = 1,
    ) -> None:
        config = wasmtime.Config()
        config.memory_reservation = RESERVED
        engine = wasmtime.Engine(config)
        first = _Machine(engine, wasmtime.Module.from_file(engine, str(CODE)))
        first.fill(letters, model, n_labels, space, options)
        self._at_once, self._idle, self._made = at_once, [first], 1
        self._callers = self._most_callers = 0
        self._changed = threading.Condition()

    def __call__(self, steps: Steps, hot: HotLetters | None = None) -> Found:
        """Search an utterance. Raises MemoryError if it takes more than a GiB."""
        with self._machine() as machine:
            return machine.search(steps, hot)

    @contextmanager
    def _machine(self) -> Iterator["_Machine"]:
        """An idle machine. It is copied first if there ever were more callers than machines: few servers need two."""
        with self._changed:
            self._callers += 1
            self._most_callers = max(self._most_callers, self._callers)
            self._changed.wait_for(lambda: self._idle)
            machine = self._idle.pop()
            too_few = self._made < min(self._at_once, self._most_callers)
            self._made += too_few
        try:
            if too_few:
                self._copy(machine)
            yield machine
        finally:
            self._give_back(machine)
            with self._changed:
                self._callers -= 1

    def _copy(self, machine: "_Machine") -> None:
        try:
            self._give_back(machine.copy())
        except (MemoryError, wasmtime.WasmtimeError):  # the one there is will do, and another caller tries again
            log.warning("no memory for another search; utterances wait for their turn")
            with self._changed:
                self._made -= 1

    def _give_back(self, machine: "_Machine") -> None:
        with self._changed:
            self._idle.append(machine)
            self._changed.notify()


class _Machine:
    """The compiled search and its memory, for one thread at a time."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module) -> None:
        self._engine, self._module, self._store = engine, module, wasmtime.Store(engine)
        self._store.set_limits(memory_size=LARGEST)
        self._exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        self._view: Array = np.empty(0, np.uint8)
        self._free = 0

    def copy(self) -> "_Machine":
        """Another one with the same tables."""
        other = _Machine(self._engine, self._module)
        other._memory.grow(other._store, self._memory.size(self._store) - other._memory.size(other._store))
        other._bytes(0, self._free)[:] = self._bytes(0, self._free)
        other._free = self._free
        return other

    def fill(
        self, letters: Letters, model: LanguageModel | None, n_labels: int, space: int, options: BeamOptions
    ) -> None:
        """Take the tables, once."""
        self._call("set_options", options.width, int(options.recombine), space, n_labels, options.beam_floor)
        nats = options.word_bonus + options.lm_weight * letters.rest.astype(np.float64)
        if model:
            nats -= options.unknown_penalty * (letters.token == UNKNOWN)
        tables = letters.next, letters.weight, letters.token, np.exp(np.clip(nats, -MOST_NATS, MOST_NATS))
        self._call("set_letters", *map(self._put, tables))
        if model:
            self._put_model(model, options.lm_weight)
        self._free = self._call("reserve", 0)

    def _put_model(self, model: LanguageModel, weight: float) -> None:
        low = np.arange(256) / RESOLUTION  # nats of the lower and of the upper byte of a cost
        high = np.arange(256 * (len(model.tables) + 1)) * 256 / RESOLUTION
        factors = [self._put(np.exp(np.clip(-weight * nats, -MOST_NATS, MOST_NATS))) for nats in (high, low)]
        self._call("set_unigrams", self._put(np.asarray(model.unigrams)), len(model.unigrams), *factors)
        for table in model.tables:
            arrays = table.contexts, table.starts, table.tokens, table.costs, table.backoffs
            self._call("add_table", len(table.contexts), *(self._put(np.asarray(array)) for array in arrays))

    def search(self, steps: Steps, hot: HotLetters | None) -> Found:
        """Search an utterance. Raises MemoryError if it takes more than a GiB."""
        n, k = steps.tried.shape
        inputs = (steps.weighed, steps.clear), (steps.tried, steps.counts, steps.spaces, steps.gaps)
        self._call("release", self._free)
        self._call("set_hot", *(map(self._put, (hot.next, hot.weight)) if hot else (0, 0)))
        weighed, clear = (self._put(array.astype(np.float64)) for array in inputs[0])
        integers = [self._put(array.astype(np.int32)) for array in inputs[1]]
        best = self._call("reserve", 8 * n)
        n_prefixes = self._call("search", n, weighed, clear, k, *integers, best)
        prefixes = self._get(self._call("found_prefixes"), PREFIX, n_prefixes)
        nodes = self._get(self._call("found_nodes"), NODE, self._call("count_nodes"))
        return Found(nodes, prefixes, float(np.log(self._get(best, np.dtype("<f8"), n)).sum()))

    def _call(self, name: str, *arguments: float) -> int:
        try:
            return self._exports[name](self._store, *arguments)  # type: ignore[operator]
        except wasmtime.Trap as trap:
            raise MemoryError(f"the search ended: {trap.message}") from None

    def _bytes(self, place: int, size: int) -> Array:
        if len(self._view) != self._memory.data_len(self._store):  # it has grown
            self._view = np.ctypeslib.as_array(self._memory.get_buffer_ptr(self._store))
        return self._view[place : place + size]

    def _put(self, array: Array) -> int:
        place = self._call("reserve", array.nbytes)
        self._bytes(place, array.nbytes)[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
        return place

    def _get(self, place: int, dtype: np.dtype[Any], n: int) -> Array:
        return self._bytes(place, n * dtype.itemsize).copy().view(dtype)
