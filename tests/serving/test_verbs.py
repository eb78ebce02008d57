"""What else than predictions can be asked of a served model: real bundles, first without Ray's processes."""

from __future__ import annotations

import asyncio
import io
import json
import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.contract.test_tasks import PRE, Toy
from tests.toys import scene
from tlray import storage
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.config import Serving
from tlray.data import image
from tlray.serving import deploy
from tlray.serving.app import create_app
from tlray.serving.model import Served, ServedModel, load_predictor
from tlray.serving.protocol import ModelCard, Refusal, Reply, prefers_png
from tlray.tasks.segmentation import from_runs

TASKS = {"faces": {"name": "face_recognition", "threshold": 0.9}, "streets": {"name": "segmentation"},
         "pets": {"name": "classification"}, "cells": {"name": "detection", "channels": 32}}  # fmt: skip
PICTURES = [scene(i % 3, i)[0] for i in range(4)]
PNG = {"accept": "image/png"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained models: what they say is nonsense, but the same nonsense everywhere."""
    folder, made = tmp_path_factory.mktemp("bundles"), {}
    for name, settings in TASKS.items():
        toy = Toy(**settings)
        spec = toy.module.backbone.spec()
        model = bundle.Model(toy.module, toy.task, spec, 0, PRE, toy.labels, "f" * 64)
        made[name] = str(folder / name)
        bundle.save(made[name], model, {}, {})
    return made


@pytest.fixture(scope="module")
def predictors(bundles: dict[str, str]) -> dict[str, Any]:
    return {name: load_predictor(Served(name, 1, uri), Serving()) for name, uri in bundles.items()}


class Local:
    """A replica in this process."""

    version = 1

    def __init__(self, name: str, settings: Serving, predictor: Any) -> None:
        self.name, self.key = name, f"{name}@1"
        self.model = ServedModel(Served(name, 1, "unused"), settings, lambda *_: predictor)
        self.model._one = self.gather  # @serve.batch works in Serve's own processes alone
        self.waiting: list[tuple[Any, asyncio.Future[Any]]] = []

    async def gather(self, item: Any) -> Any:
        """What comes within 20 ms is one batch."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self.waiting.append((item, mine))
        if len(self.waiting) == 1:
            await asyncio.sleep(0.02)
            batch, self.waiting = self.waiting, []
            items = [item for item, _ in batch]
            outcomes = await loop.run_in_executor(self.model._thread, self.model._run, items)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                future.set_result(outcome)
        return await mine

    async def ask(self, verb: str, *args: Any) -> Reply:
        reply = await getattr(self.model, verb)(*args)
        if isinstance(reply, Refusal):
            raise reply
        return reply

    async def card(self) -> ModelCard:
        return ModelCard.model_validate(await self.model.card())


class Client:
    """Short for requests to an application."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def __call__(self, path: str, pictures: list[bytes], **kwargs: Any) -> httpx.Response:
        files = [("file", (f"{i}.jpg", data)) for i, data in enumerate(pictures)]
        return await self.http.post(f"/v1/models/{path}", files=files, **kwargs)


Ask = Callable[..., Any]


@pytest.fixture
def ask(predictors: dict[str, Any], tmp_path: Path) -> Ask:
    """Run a conversation with two replicas of each model that see one gallery."""

    def run(talk: Callable[..., Awaitable[Any]], names: tuple[str, ...] = tuple(TASKS)) -> Any:
        settings = Serving(gallery=str(tmp_path / "gallery"), max_batch_size=4)

        async def go() -> Any:
            clients = []
            for _ in range(2):
                models = [Local(name, settings, predictors[name]) for name in names]
                transport = httpx.ASGITransport(create_app(models, settings))
                clients.append(Client(httpx.AsyncClient(transport=transport, base_url="http://test")))
            try:
                return await talk(*clients)
            finally:
                for client in clients:
                    await client.http.aclose()

        return asyncio.run(go())

    return run


def refused(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["status"] == answer.status_code and "\n" not in error["detail"]
    return error["status"], error["reason"]


@pytest.mark.parametrize("name", TASKS)
def test_embeddings_are_those_of_the_predictor(name: str, ask: Ask, predictors: dict[str, Any]) -> None:
    async def talk(client: Client, _: Client) -> Any:
        stage = predictors[name].stages[1]
        mixed = await asyncio.gather(  # the three meet in one batch
            client(f"{name}/embed", PICTURES),
            client(f"{name}/embed", PICTURES[:1], params={"stage": stage}),
            client(f"{name}/predict", PICTURES[:1]),
        )
        bad = [await client(f"{name}/embed", PICTURES, params={"stage": "nowhere"}),
               await client(f"{name}/embed", [PICTURES[0], b"x"])]  # fmt: skip
        return mixed, bad

    (whole, staged, predicted), bad = ask(talk, (name,))
    answer = whole.json()
    assert (answer["model"], answer["version"]) == (name, 1)
    np.testing.assert_allclose(
        answer["embeddings"], np.stack(predictors[name].embed(PICTURES)), rtol=1e-4, atol=1e-5
    )
    assert min(answer["timing"]["model_ms"], answer["timing"]["render_ms"]) > 0
    stage = predictors[name].stages[1]
    expected = predictors[name].embed(PICTURES[:1], stage)
    np.testing.assert_allclose(staged.json()["embeddings"], expected, rtol=1e-4, atol=1e-5)
    assert len(predicted.json()["predictions"]) == 1
    assert [refused(answer) for answer in bad] == [(400, "unknown_stage"), (415, "not_a_picture")]
    assert "picture 1 of 2" in bad[1].text and stage in bad[0].text


def test_a_mask_as_a_picture_is_the_one_of_the_json(ask: Ask) -> None:
    async def talk(client: Client, _: Client) -> list[httpx.Response]:
        return [
            await client("streets/predict", PICTURES[:1]),
            await client("streets/predict", PICTURES[:1], headers=PNG),
            await client("streets/predict", PICTURES[:2], headers=PNG),
            await client("pets/predict", PICTURES[:1], headers=PNG),
            await client("streets/predict", [b"x"], headers=PNG),
            await client("pets/predict", PICTURES[:1], headers={"accept": "image/png;q=0.5, */*"}),
        ]

    plain, mask, *rest = ask(talk)
    assert mask.headers["content-type"] == "image/png"
    ids_HW = from_runs(plain.json()["predictions"][0])
    assert ids_HW.shape == (80, 96)
    np.testing.assert_array_equal(image.decode_mask(mask.content), ids_HW)
    assert [refused(answer) for answer in rest] == [
        (400, "wrong_number"), (406, "not_acceptable"), (415, "not_a_picture"), (406, "not_acceptable"),
    ]  # fmt: skip


def test_objects_are_those_from_the_threshold_on_or_from_the_score_that_is_asked_for(
    ask: Ask, predictors: dict[str, Any]
) -> None:
    async def talk(client: Client, _: Client) -> list[httpx.Response]:
        return [
            await client(f"{name}/{verb}", PICTURES[:1], params={} if least is None else {"min_score": least})
            for name, verb, least in (
                ("cells", "predict", None), ("cells", "predict", 0.001), ("cells", "draw", None),
                ("cells", "draw", 0.001), ("pets", "predict", 0.1), ("streets", "draw", 0.1),
                ("cells", "predict", 1.5), ("cells", "predict", "nan"),
            )
        ]  # fmt: skip

    sure, all_, drawn, drawn_all, *rest = ask(talk)
    (whole,) = predictors["cells"].predict(PICTURES[:1])
    assert all_.json()["predictions"] == [whole] and len(whole["objects"]) > 3
    assert sure.json()["predictions"] == [{"objects": []}]  # untrained: nobody is sure of anything
    assert drawn.content != drawn_all.content
    assert [refused(answer) for answer in rest] == [(400, "bad_parameter")] * 4
    assert "min_score = 0.1" in rest[0].text and "classification" in rest[0].text


@pytest.mark.parametrize("name", TASKS)
def test_a_prediction_is_drawn_over_its_upright_picture(
    name: str, ask: Ask, predictors: dict[str, Any]
) -> None:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # lies on its side
    Image.open(io.BytesIO(PICTURES[0])).save(out, "JPEG", exif=exif)
    data = out.getvalue()

    async def talk(client: Client, _: Client) -> list[httpx.Response]:
        return [await client(f"{name}/draw", [data]), await client(f"{name}/draw", PICTURES[:2])]

    drawn, two = ask(talk, (name,))
    assert drawn.headers["content-type"] == "image/png"
    predictor = predictors[name]
    record = predictor.task.record(None, predictor.task.served(predictor.predict([data])[0]))
    expected = predictor.task.draw(image.decode(data), record, predictor.labels)
    assert expected.size == (80, 96)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(drawn.content))), np.asarray(expected))
    assert refused(two) == (400, "wrong_number")


def test_whom_one_replica_enrols_the_other_identifies_and_verifies(ask: Ask, predictors: Any) -> None:
    async def talk(one: Client, other: Client) -> Any:
        nobody = (await other("faces/identify", PICTURES[:1])).json()
        both = await asyncio.gather(
            one("faces/enroll", PICTURES[:2], params={"person": "Ann ß 人"}),
            other("faces/enroll", PICTURES[2:3], params={"person": "Ben"}),
        )
        again = await one("faces/enroll", PICTURES[:1], params={"person": "Ann ß 人"})
        identified = [await client("faces/identify", [PICTURES[1], PICTURES[3]], params={"top": 1})
                 for client in (one, other)]  # fmt: skip
        pair = await other("faces/verify", [PICTURES[0], PICTURES[2]])
        named = await other("faces/verify", PICTURES[:1], params={"person": "Ben"})
        people = (await other.http.get("/v1/models/faces/people")).json()
        path = f"/v1/models/faces/people/{quote('Ann ß 人', safe='')}"
        removed = [await client.http.delete(path) for client in (one, other)]
        left = (await other.http.get("/v1/models/faces/people")).json()
        unknown = await other("faces/verify", PICTURES[:1], params={"person": "Ann ß 人"})
        return nobody, both, again, identified, pair, named, people, removed, left, unknown

    nobody, both, again, identified, pair, named, people, removed, left, unknown = ask(talk)
    assert nobody["identities"] == [{"person": None, "accepted": False, "similar": []}]
    assert [answer.json()["pictures"] for answer in [*both, again]] == [2, 1, 2]
    x = np.stack(predictors["faces"].embed(PICTURES))
    for answer in identified:
        body = answer.json()
        assert body["threshold"] == 0.9
        first, second = body["identities"]
        assert first["person"] == "Ann ß 人" and first["similar"][0]["similarity"] == pytest.approx(
            1, abs=1e-4
        )
        near = max((float(x[3] @ x[i]), i) for i in range(3))
        assert len(second["similar"]) == 1
        assert second["similar"][0]["similarity"] == pytest.approx(near[0], abs=1e-4)
        assert (second["person"] is not None) == second["accepted"] == (near[0] >= 0.9)
    for answer in (pair, named):
        body = answer.json()
        assert body["similarity"] == pytest.approx(float(x[0] @ x[2]), abs=1e-4)
        assert body["same"] == (body["similarity"] >= 0.9)
    assert people == {"people": {"Ann ß 人": 2, "Ben": 1}}
    assert removed[0].json() == {"person": "Ann ß 人", "pictures": 2}
    assert refused(removed[1]) == refused(unknown) == (404, "unknown_person")
    assert left == {"people": {"Ben": 1}}


ODD = ["O'Neil; Jr.", "100%", "%2e%2e", "a+b&c=d", "who?#1", "..a", "~", "*", "人", "x" * 200, "é" * 200]


def test_whoever_can_be_enrolled_can_be_asked_for_and_deleted(ask: Ask) -> None:
    unfit = ["", " ", ".", "..", "a/b", "a\\b", "a\nb", "a\r", "\0", " a", "a ", "x" * 201, "\u200b"]

    async def talk(client: Client, _: Client) -> Any:
        refusals = [await client("faces/enroll", [b"x"], params={"person": name}) for name in unfit]
        nobody = (await client.http.get("/v1/models/faces/people")).json()
        kept = []
        for name in ODD:
            made = await client("faces/enroll", PICTURES[:1], params={"person": name})
            verified = await client("faces/verify", PICTURES[:1], params={"person": name})
            gone = await client.http.delete(f"/v1/models/faces/people/{quote(name, safe='')}")
            kept.append((made.json().get("person"), verified.status_code, gone.json()))
        decomposed = unicodedata.normalize("NFD", "é" * 200)
        made = await client("faces/enroll", PICTURES[:1], params={"person": decomposed})
        gone = await client.http.delete(f"/v1/models/faces/people/{quote(decomposed)}")
        after = (await client.http.get("/v1/models/faces/people")).json()
        return refusals, nobody, kept, (made, gone), after

    refusals, nobody, kept, spelt, after = ask(talk, ("faces",))
    assert [refused(answer) for answer in refusals] == [(400, "bad_parameter")] * len(unfit)
    assert "person = '..': is dots alone; accepted: " in refusals[3].json()["error"]["detail"]
    assert nobody == after == {"people": {}}
    assert kept == [(name, 200, {"person": name, "pictures": 1}) for name in ODD]
    assert [answer.status_code for answer in spelt] == [200, 200]
    assert spelt[0].json()["person"] == "é" * 200  # in the spelling that it is kept in


def test_what_galleries_refuse(ask: Ask, tmp_path: Path) -> None:
    async def talk(client: Client, _: Client) -> Any:
        kept = [
            await client("faces/enroll", PICTURES[:1]),
            await client("faces/enroll", PICTURES[:1], params={"person": ""}),
            await client("faces/enroll", PICTURES[:1], params={"person": "x" * 201}),
            await client("faces/enroll", [PICTURES[0], b"x"], params={"person": "Ann"}),
            await client("faces/identify", PICTURES[:1], params={"top": 0}),
            await client("faces/verify", PICTURES[:1]),
            await client("faces/verify", PICTURES[:3]),
            await client("faces/verify", PICTURES[:2], params={"person": "Ann"}),
            await client("faces/verify", PICTURES[:1], params={"person": "Ann"}),
            await client.http.delete("/v1/models/faces/people/Ann"),
            await client.http.delete("/v1/models/faces/people/"),
        ]
        others = [
            await client("pets/enroll", PICTURES[:1], params={"person": "Ann"}),
            await client("streets/identify", PICTURES[:1]),
            await client("pets/verify", PICTURES[:2]),
            await client.http.get("/v1/models/pets/people"),
            await client.http.delete("/v1/models/pets/people/Ann"),
        ]
        return kept, others

    kept, others = ask(talk)
    bad = (400, "bad_parameter")
    number, nobody = (400, "wrong_number"), (404, "unknown_person")
    assert [refused(answer) for answer in kept] == [
        bad, bad, bad, (415, "not_a_picture"), bad, number, number, number, nobody, nobody, bad,
    ]  # fmt: skip
    assert [refused(answer) for answer in others] == [(404, "no_gallery")] * 5
    assert "tasks with one: face_recognition" in others[0].text
    assert not storage.exists(str(tmp_path / "gallery"))  # nothing of the half-good request


def test_without_a_threshold_nobody_is_accepted_or_refused(
    ask: Ask, predictors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = predictors["faces"].manifest
    changed = manifest.model_copy(update={"task": {**manifest.task, "threshold": None}})
    monkeypatch.setattr(predictors["faces"], "manifest", changed)

    async def talk(client: Client, _: Client) -> Any:
        await client("faces/enroll", PICTURES[:1], params={"person": "Ann"})
        return await client("faces/identify", PICTURES[:1]), await client("faces/verify", PICTURES[:2])

    who, same = (answer.json() for answer in ask(talk, ("faces",)))
    assert who["threshold"] is None and same["same"] is None and same["threshold"] is None
    (identity,) = who["identities"]
    assert identity["person"] is None and identity["accepted"] is None
    assert identity["similar"][0]["person"] == "Ann"


def test_a_gallery_that_is_away_is_a_503_without_the_inside(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "gallery").write_text("a file")

    async def talk(client: Client, _: Client) -> httpx.Response:
        return await client("faces/enroll", PICTURES[:1], params={"person": "Ann"})

    answer = ask(talk, ("faces",))
    assert refused(answer) == (503, "gallery_away") and str(tmp_path) not in answer.text
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        (None, False), ("", False), ("*/*", False), ("image/png", True), ("IMAGE/PNG ; q=0.5", True),
        ("image/png, application/json", False), ("image/png, application/json;q=0.9", True),
        ("image/png;q=0", False), ("image/png;q=much", False), ("image/png, */*", True), ("image/*", False),
    ],
)  # fmt: skip
def test_who_prefers_png(accept: str | None, png: bool) -> None:
    assert prefers_png(accept) is png


def test_a_refusal_crosses_processes() -> None:
    import pickle

    refusal = pickle.loads(pickle.dumps(Refusal(503, "away", "come again", 1)))
    assert (refusal.status, refusal.reason) == (503, "away")
    assert (refusal.detail, refusal.retry_after_s) == ("come again", 1)


def test_two_replicas_on_ray_share_the_gallery(
    ray_local: Any, bundles: dict[str, str], tmp_path: Path
) -> None:
    settings = Serving(
        port=0, min_replicas=2, max_replicas=2, cpus_per_replica=0.5, max_batch_size=2,
        gallery=str(tmp_path / "gallery"),
    )  # fmt: skip
    with (
        deploy.start([Served("faces", 1, bundles["faces"])], settings) as server,
        httpx.Client(base_url=f"{server.url}/v1/models/faces", timeout=60, trust_env=False) as client,
    ):
        for number in range(8):  # whichever replica answers, it knows all who were enrolled before
            person = f"p{number}"
            data = scene(number % 3, 100 + number)[0]
            assert client.post("/enroll", params={"person": person}, content=data).status_code == 200
            answers = [client.post("/identify?top=1", content=data).json() for _ in range(3)]
            assert {f["identities"][0]["person"] for f in answers} == {person}
        assert len(client.get("/people").json()["people"]) == 8
        assert refused(client.get("/../pets/people")) == (404, "unknown_model")
        expected = Predictor(bundles["faces"], "cpu").embed([data])[0]
        answer = client.post("/embed", content=data).json()
        np.testing.assert_allclose(answer["embeddings"][0], expected, rtol=1e-3, atol=1e-4)
        drawn = client.post("/draw", content=data)
        assert image.probe(drawn.content).format == "PNG"
        assert refused(client.delete("/people/nobody")) == (404, "unknown_person")
        assert json.loads(client.delete("/people/p3").content) == {"person": "p3", "pictures": 1}
        for name in ODD:  # Serve's own proxy stands before the application here
            assert client.post("/enroll", params={"person": name}, content=data).json()["person"] == name
            assert client.delete(f"/people/{quote(name, safe='')}").json() == {"person": name, "pictures": 1}
        assert refused(client.post("/enroll?person=..", content=data)) == (400, "bad_parameter")
