"""Known faces, on a local folder and on S3: seen by all at once, whole, and never of other weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlray import storage
from tlray.errors import DataError, StorageError
from tlray.serving import gallery
from tlray.serving.gallery import Gallery

SHA = "a" * 64
ANN, BEN = [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]  # lengths do not matter


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_uri')}/some/gallery"
    return str(request.getfixturevalue("tmp_path") / "gallery")


def test_what_one_enrols_the_other_finds_and_what_one_removes_the_other_forgets(uri: str) -> None:
    one, other = Gallery(uri, "faces", SHA), Gallery(uri, "faces", SHA)
    assert other.people() == {} and other.search([ANN]) == [[]] and other.best(ANN, "Ann") is None
    one.enrol("Ann", b"1", ANN)
    assert other.people() == {"Ann": 1}
    one.enrol("Ben ß 人", b"2", BEN)
    one.enrol("Ann", b"3", [1.0, 1.0, 0.0])
    (ranked,) = other.search([[0.0, 5.0, 0.0]])
    assert [match.person for match in ranked] == ["Ben ß 人", "Ann"]
    assert [match.similarity for match in ranked] == pytest.approx([1.0, 0.5**0.5])  # the better of Ann's
    assert [len(matches) for matches in other.search([ANN, BEN], 1)] == [1, 1]
    assert other.best(BEN, "Ann") == pytest.approx(0.5**0.5)
    assert other.remove("Ann") == 2
    assert one.people() == {"Ben ß 人": 1}
    assert [match.person for match in one.search([ANN])[0]] == ["Ben ß 人"]
    assert one.remove("Ann") == 0
    one.remove("Ben ß 人")
    assert other.search([ANN]) == [[]]


def test_the_same_picture_twice_is_one_enrolment_of_a_person(uri: str) -> None:
    known = Gallery(uri, "faces", SHA)
    for person in ("Ann", "Ann", "Ben"):
        known.enrol(person, b"same", ANN)
    assert known.people() == {"Ann": 1, "Ben": 1}
    known.enrol("Zoé", b"1", ANN)
    known.enrol("Zoe\N{COMBINING ACUTE ACCENT}", b"2", ANN)
    assert known.people()["Zoé"] == 2


def test_embeddings_of_other_weights_and_models_never_mix(uri: str) -> None:
    known, others = Gallery(uri, "faces", SHA), [Gallery(uri, "faces", "b" * 64), Gallery(uri, "cats", SHA)]
    known.enrol("Ann", b"1", ANN)
    for other in others:
        assert other.people() == {} and other.remove("Ann") == 0
        other.enrol("Ann", b"1", [1.0, 2.0])
    assert known.search([ANN])[0][0].similarity == 1.0
    assert sorted(storage.listdir(uri)) == ["cats-" + "a" * 12, "faces-" + "a" * 12, "faces-" + "b" * 12]


def test_many_enrol_at_once_without_a_lock(uri: str) -> None:
    writers = [Gallery(uri, "faces", SHA) for _ in range(4)]
    jobs = [(writers[i % 4], f"p{i % 5}", b"%d" % (i % 20)) for i in range(40)]  # each picture twice
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(known.enrol, person, picture, ANN) for known, person, picture in jobs]
        seen = [known.people() for known in writers]  # meanwhile
        for one in done:
            one.result()
    assert all(number <= 4 for people in seen for number in people.values())
    assert [known.people() for known in writers] == [{f"p{i}": 4 for i in range(5)}] * 4


def test_enrolling_and_removing_at_once_leaves_one_or_the_other(tmp_path) -> None:
    one, other = Gallery(str(tmp_path), "faces", SHA), Gallery(str(tmp_path), "faces", SHA)
    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(lambda: [one.enrol("Ann", b"%d" % i, ANN) for i in range(60)])
        taking = pool.submit(lambda: [other.remove("Ann") for _ in range(60)])
        adding.result(), taking.result()
    one.enrol("Ann", b"last", ANN)
    assert one.people() == other.people() and one.people()["Ann"] >= 1


def test_an_object_that_is_no_enrolment_is_left_out_and_said(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = Gallery(uri, "faces", SHA)
    known.enrol("Ann", b"1", ANN)
    for number, data in enumerate((b"{", b"[]", b'{"person": "x", "embedding": [0, 0, 0]}', b"\xff")):
        storage.write_bytes(storage.join(known.uri, "somebody", f"{number}.json"), data)
    assert known.people() == {"Ann": 1} == known.people()
    records = [record for record in caplog.records if record.name == "tlray.serving.gallery"]
    warnings = sorted(record.getMessage() for record in records)
    assert len(warnings) == 4 and "somebody/0.json: no enrolment" in warnings[0]


def test_an_enrolment_survives_the_process_to_the_last_bit(uri: str) -> None:
    x_D = np.random.default_rng(0).normal(size=128).astype(np.float32)
    Gallery(uri, "faces", SHA).enrol("Ann", b"1", x_D)
    similarity = Gallery(uri, "faces", SHA).best(x_D, "Ann")
    assert similarity == gallery.cosine(x_D, x_D) == pytest.approx(1, abs=1e-6)


def test_mistakes_are_said(tmp_path) -> None:
    known = Gallery(str(tmp_path), "faces", SHA)
    for x in ([0.0, 0.0], [[1.0]], [float("nan")]):
        with pytest.raises(DataError, match="embedding of shape"):
            known.enrol("Ann", b"1", x)
    assert known.people() == {}
    with pytest.raises(StorageError, match="not served"):
        Gallery("gs://bucket/x", "faces", SHA)


UNFIT = {
    "": "is empty", ".": "is dots alone", "..": "is dots alone", "...": "is dots alone",
    "x" * 201: "has 201 characters", "Ann/Ben": "holds a slash", "..\\Ann": "holds a slash",
    " Ann": "begins or ends with a blank", "Ann\N{NO-BREAK SPACE}": "begins or ends with a blank",
    "Ann\nBen": "holds U+000A", "Ann\r": "holds U+000D", "\0": "holds U+0000", "A\x7f": "holds U+007F",
    "Ann\N{LINE SEPARATOR}": "holds U+2028", "Ann\N{ZERO WIDTH SPACE}": "holds U+200B",
    "\N{RIGHT-TO-LEFT OVERRIDE}Ann": "holds U+202E", "B\ud800": "holds U+D800", "Ann\ufffd": "holds U+FFFD",
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT, ids=ascii)
def test_a_name_that_could_not_be_asked_for_again_is_refused(name: str, tmp_path) -> None:
    known = Gallery(str(tmp_path), "faces", SHA)
    with pytest.raises(DataError) as refused:
        known.enrol(name, b"1", ANN)
    message = str(refused.value)
    assert f": {UNFIT[name]}" in message and "accepted: 1 to 200 characters" in message
    assert len(message.splitlines()) == 1
    assert known.people() == {} and not list(tmp_path.iterdir())
    assert (known.remove(name), known.count(name), known.best(ANN, name)) == (0, 0, None)


@pytest.mark.parametrize(
    "name", ["x" * 200, "O'Neil, Ann ... Jr.", "100% & more?#", "%2e%2e", "-", "علی‌رضا", "人"]
)
def test_odd_names_are_kept_as_they_are(name: str, tmp_path) -> None:
    known = Gallery(str(tmp_path), "faces", SHA)
    known.enrol(name, b"1", ANN)
    assert known.people() == {name: 1} and known.remove(name) == 1


def test_an_enrolment_in_another_folder_than_its_persons_is_left_out(tmp_path) -> None:
    known = Gallery(str(tmp_path), "faces", SHA)
    known.enrol("Ann", b"1", ANN)
    (path,) = tmp_path.glob("*/*/*.json")
    other = path.parent.with_name("b" * 64)
    path.parent.rename(other)  # whoever is known can be forgotten, and nobody would look here
    assert Gallery(str(tmp_path), "faces", SHA).people() == {}


def test_who_was_enrolled_by_an_earlier_version_can_be_forgotten(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Gallery(str(tmp_path), "faces", SHA)
    with monkeypatch.context() as earlier:
        earlier.setattr(gallery, "check_name", lambda name: name)
        known.enrol("Ann/Ben", b"1", ANN)
    assert known.people() == {"Ann/Ben": 1} and known.remove("Ann/Ben") == 1


def test_a_store_that_is_away_is_no_empty_gallery(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Gallery(f"{s3_uri}/g", "faces", SHA)
    known.enrol("Ann", b"1", ANN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")  # a new client
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError):
        known.people()
