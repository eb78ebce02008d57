"""A layout with its writer, the kind of labels that it can hold, and the habits that it may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from tests.roundtrip import habits as h
from tests.roundtrip.habits import Habits, Out
from tests.roundtrip.truth import STEMS, Truth, truths

_WORDS = {
    "train": ["train", "train", "training"],
    "validation": ["val", "valid", "validation", "dev"],
    "test": ["test", "test", "testing"],
}


@dataclass(frozen=True)
class Layout:
    """A layout and its writer, with the ``habits`` and ``faults`` that its sets may have."""

    name: str
    kind: str  # of labels: label, labels, objects, mask or identity
    write: Callable[[Out], None]
    habits: frozenset[str] = h.COMMON
    faults: Sequence[str] = ()
    names: str = "any"  # of classes: any, plain, folder, person, lfw, numbers, free (see `truth.class_names`)
    splits: str = "both"  # both, given or none
    tasks: Sequence[str] = ("auto",)  # values of --task
    turns: bool = True
    diamonds: bool = False
    stems: Sequence[str] = tuple(STEMS)
    words: Sequence[str] = ()  # names of the validation split, where this layout has names of its own
    same_stems: bool = False  # each split has a folder of its own, so that names may repeat
    is_clear: Callable[[Truth], bool] = lambda truth: True  # other truths may be refused even without habits

    def sets(self) -> st.SearchStrategy[tuple[Truth, Habits, dict[str, str], str]]:
        """Truth, habits, words of the splits, and the task that is asked for."""
        words = {split: st.sampled_from(names) for split, names in _WORDS.items()}
        if self.words:
            words = {split: st.just(split) for split in _WORDS} | {"validation": st.sampled_from(self.words)}
        names = self.habits | ({"same_stems"} if self.same_stems else set())
        return st.tuples(
            truths(self.kind, self.names, self.splits, self.turns, self.diamonds, self.stems),
            h.habits(names, self.faults),
            st.fixed_dictionaries(words),
            st.sampled_from(list(self.tasks)),
        )

    def plain(self) -> st.SearchStrategy[tuple[Truth, Habits, dict[str, str], str]]:
        """The same without habits and with plain names."""
        names = {"any": "plain", "folder": "plain", "person": "lfw"}.get(self.names, self.names)
        stems = [stem for stem in ("p{}", "{:06d}") if stem in self.stems] or self.stems
        plain = replace(
            self, names=names, stems=stems, turns=False, habits=frozenset(), faults=(), same_stems=False,
            words=self.words or ("val",), tasks=self.tasks[:1],
        )  # fmt: skip
        return plain.sets().filter(lambda drawn: self.is_clear(drawn[0]))
