"""Errors keep their message and kind across processes, and say what is accepted."""

import pickle

import pytest

from tlray import errors
from tlray.errors import PictureError, TlrayError, nearest


def test_every_error_is_a_users_mistake() -> None:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(found) >= 8
    assert all(issubclass(kind, TlrayError) for kind in found)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name in drawn


@pytest.mark.parametrize("kind", PictureError.STATUS)
def test_a_picture_error_crosses_processes(kind: str) -> None:
    error = pickle.loads(pickle.dumps(PictureError(kind, "a.jpg: why")))
    assert (type(error), error.kind, error.status, str(error)) == (
        PictureError,
        kind,
        PictureError.STATUS[kind],
        "a.jpg: why",
    )


def test_picture_errors_are_the_clients_fault() -> None:
    assert all(400 <= status < 500 for status in PictureError.STATUS.values())


def test_nearest_suggests_the_likely_name() -> None:
    assert nearest("learning_rate", ["learning_rates", "momentum"]) == "did you mean 'learning_rates'?"


def test_nearest_lists_what_is_accepted_and_says_how_much_it_left_out() -> None:
    assert nearest("zzz", ["b", "a"]) == "accepted: a, b"
    many = [f"name{i:02}" for i in range(20)]
    assert nearest("???", many, show=2) == "accepted: name00, name01, ... (20 in all)"


def test_about_notes_what_an_unexpected_error_was_about_and_leaves_mistakes_alone() -> None:
    with pytest.raises(KeyError) as caught, errors.about("a.csv"), errors.about(lambda: "row 3"):
        raise KeyError("x")
    assert pickle.loads(pickle.dumps(caught.value)).__notes__ == ["row 3", "a.csv"]
    with pytest.raises(TlrayError) as mistaken, errors.about("a.csv"):
        raise TlrayError("b.csv: empty")
    assert not hasattr(mistaken.value, "__notes__")
