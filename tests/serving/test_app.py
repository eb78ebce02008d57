"""The application: first in this process over a fake model, then on a real server over real HTTP."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from tests.serving import fake
from tlray.config import Serving
from tlray.errors import BundleError, ConfigError, RunError
from tlray.serving import deploy
from tlray.serving.app import create_app
from tlray.serving.model import Served
from tlray.serving.protocol import ModelCard, Refusal, Reply, Size

SMALL = Serving(max_body_mb=0.01, max_pictures=3, timeout_s=0.3)
JPEG = {"content-type": "image/jpeg"}


class Local:
    """An endpoint in this process."""

    def __init__(self, name: str, version: int | None) -> None:
        self.name, self.version = name, version
        self.key = name if version is None else f"{name}@{version}"
        self.predictor = fake.FakePredictor()
        self.refusal: Refusal | None = None

    async def ask(self, verb: str, *args: Any) -> Reply:
        assert verb == "predict"
        pictures = args[0]
        if self.refusal:
            raise self.refusal
        if pictures == [b"slow"]:
            await asyncio.sleep(5)
        results = self.predictor.predict(pictures, on_error="return")
        return Reply(
            results=[r for r in results if isinstance(r, dict)],
            bad=[(i, r) for i, r in enumerate(results) if not isinstance(r, dict)],
            fault=None,
            render_s=None,
            model_s=0.001,
        )

    async def card(self) -> ModelCard:
        if self.refusal:
            raise self.refusal
        return ModelCard(
            name=self.name,
            version=self.version,
            task="fake",
            labels=["a"],
            metrics={},
            input=Size(width=1, height=1),
        )


def ask(models: list[Local], call: Callable[[httpx.AsyncClient], Any], settings: Serving = SMALL) -> Any:
    async def go() -> Any:
        transport = httpx.ASGITransport(create_app(models, settings), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await call(client)

    return asyncio.run(go())


def post(content: Any, headers: dict[str, str] | None = None, query: str = "", name: str = "pets") -> Any:
    return ask(
        [Local("pets", 3), Local("pets", 2)],
        lambda client: client.post(
            f"/v1/models/{name}/predict{query}", content=content, headers=headers or JPEG
        ),
    )


def error(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"status", "reason", "detail"}
    assert body["error"]["status"] == answer.status_code
    return dict(body["error"])


def test_a_plain_name_is_the_first_of_that_name() -> None:
    assert post(b"ok").json()["version"] == 3
    assert post(b"ok", name="pets@2").json()["version"] == 2
    assert post(b"ok", name="pets%403").json()["version"] == 3
    answer = post(b"ok", name="cats")
    assert error(answer)["status"] == 404
    assert "pets@2" in error(answer)["detail"]


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "reason"),
    [
        (b"", JPEG, "", 400, "empty"),
        (b"garbage", JPEG, "", 415, "not_a_picture"),
        (b"truncated", JPEG, "", 400, "truncated"),
        (b"too_many_pixels", JPEG, "", 413, "too_many_pixels"),
        (b"ok", {"content-type": "text/plain"}, "", 415, "unsupported_media_type"),
        (b"ok", {**JPEG, "content-encoding": "br"}, "", 415, "unsupported_encoding"),
        (b"ok", {"content-type": "multipart/form-data"}, "", 400, "malformed_multipart"),
        (b"o" * 10_001, JPEG, "", 413, "too_large"),
        (b"ok", JPEG, "?top=0", 400, "bad_parameter"),
        (b"ok", JPEG, "?top=many", 400, "bad_parameter"),
        (b"slow", JPEG, "", 504, "timeout"),
    ],
)
def test_every_mistake_has_its_status(
    content: bytes, headers: dict[str, str], query: str, status: int, reason: str
) -> None:
    refusal = error(post(content, headers, query))
    assert (refusal["status"], refusal["reason"]) == (status, reason)


def test_a_body_without_length_is_cut_at_the_limit_and_a_slow_one_at_the_timeout() -> None:
    sent = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1000
            yield b"x" * 1000

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)

    assert error(post(large()))["status"] == 413
    assert sent <= 12_000
    assert error(post(slow()))["status"] == 408


def test_several_pictures_one_of_them_bad() -> None:
    def send(contents: list[bytes]) -> httpx.Response:
        files = [("file", (f"{i}.jpg", content)) for i, content in enumerate(contents)]
        return ask([Local("pets", 1)], lambda client: client.post("/v1/models/pets/predict", files=files))  # type: ignore[no-any-return]

    assert [p["said"] for p in send([b"ok1", b"ok2"]).json()["predictions"]] == ["ok1", "ok2"]
    refusal = error(send([b"ok", b"truncated", b"ok"]))
    assert refusal["status"] == 400 and "picture 1 of 3" in refusal["detail"]
    assert error(send([b"ok"] * 4))["reason"] == "too_many_pictures"


def test_overload_says_when_to_come_again() -> None:
    model = Local("pets", 1)
    model.refusal = Refusal(503, "overloaded", "queue full", 1)
    answer = ask([model], lambda client: client.post("/v1/models/pets/predict", content=b"ok", headers=JPEG))
    assert error(answer)["status"] == 503 and answer.headers["retry-after"] == "1"


def test_bodies_in_memory_are_bounded_and_given_back() -> None:
    async def many(client: httpx.AsyncClient) -> list[int]:
        async def waiting() -> AsyncIterator[bytes]:
            yield b"sleep 0".ljust(9_900, b" ")
            await asyncio.sleep(0.1)

        async def one() -> int:
            answer = await client.post("/v1/models/pets/predict", content=waiting(), headers=JPEG)
            return answer.status_code

        return [*await asyncio.gather(*(one() for _ in range(20))), await one()]

    statuses = ask([Local("pets", 1)], many)
    assert sorted(statuses[:-1]) == [200] * 16 + [503] * 4
    assert statuses[-1] == 200


def test_ready_once_all_are_warm_and_still_when_merely_busy() -> None:
    model = Local("pets", 1)

    async def go(client: httpx.AsyncClient) -> list[int]:
        statuses = []
        for refusal in (
            Refusal(503, "not_ready", "starting"),
            None,
            Refusal(503, "overloaded", "busy"),
            Refusal(503, "unavailable", "dead"),
        ):
            model.refusal = refusal
            statuses.append((await client.get("/readyz")).status_code)
        return [*statuses, (await client.get("/livez")).status_code]

    assert ask([model], go) == [503, 200, 200, 503, 200]


def test_a_fault_of_our_own_is_json_too_and_says_nothing_of_the_inside() -> None:
    answer = post(b"boom")
    assert error(answer)["status"] == 500 and "boom" not in answer.text


def test_unknown_paths_and_methods_are_json() -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/models/pets/predict", 405)):
        assert error(ask([], lambda client, m=method, p=path: client.request(m, p)))["status"] == status  # type: ignore[misc]


def test_documentation_is_self_contained_and_lists_every_operation() -> None:
    openapi, page = (ask([Local("a<b", 1)], lambda c, p=p: c.get(p)) for p in ("/openapi.json", "/docs"))  # type: ignore[misc]
    paths = openapi.json()["paths"]
    verbs = ("predict", "embed", "draw", "enroll", "identify", "verify", "people", "people/{person}")
    models = "/v1/models"
    assert set(paths) == {
        "/livez", "/readyz", models, f"{models}/{{name}}", *(f"{models}/{{name}}/{verb}" for verb in verbs),
    }  # fmt: skip
    assert set(paths["/v1/models/{name}/draw"]["post"]["responses"]["200"]["content"]) == {"image/png"}
    assert set(paths["/v1/models/{name}/predict"]["post"]["responses"]["200"]["content"]) == {
        "application/json", "image/png",
    }  # fmt: skip
    assert "multipart/form-data" in paths["/v1/models/{name}/predict"]["post"]["requestBody"]["content"]
    assert all(
        "422" not in operation["responses"] for verbs in paths.values() for operation in verbs.values()
    )
    assert all(path in page.text for path in paths)
    assert "a&lt;b" in page.text and "a<b" not in page.text
    assert not re.search(r"(src|href)=\"?(https?:)?//", page.text)


APP = create_app([Local("pets", 3)], SMALL)


# Bytes of every header and body that a client can choose; ASGI hands them over as they are.
@hypothesis_settings(max_examples=150, deadline=None)
@given(
    body=st.lists(st.binary(max_size=50) | st.sampled_from([b"ok", b"--XX\r\n", b"--XX--"]), max_size=4),
    kind=st.sampled_from([b"image/png", b"multipart/form-data; boundary=XX", b""]) | st.binary(max_size=20),
    length=st.binary(max_size=8),
    query=st.binary(max_size=12).map(lambda q: b"top=" + q),
    name=st.sampled_from(["pets", "pets@3"]) | st.text(max_size=5),
)
def test_no_bytes_give_a_500(body: list[bytes], kind: bytes, length: bytes, query: bytes, name: str) -> None:
    sent: list[dict[str, Any]] = []
    parts = iter([*({"type": "http.request", "body": b, "more_body": True} for b in body)])

    async def receive() -> dict[str, Any]:
        return next(parts, {"type": "http.request", "body": b"", "more_body": False})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": f"/v1/models/{name}/predict",
        "raw_path": b"/",
        "root_path": "",
        "scheme": "http",
        "query_string": query,
        "headers": [(b"content-type", kind), (b"content-length", length), (b"content-encoding", b"")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(APP(scope, receive, send))
    assert sent[0]["status"] < 500


# ---- on a real server

SETTINGS = Serving(
    port=0, max_batch_size=4, batch_wait_s=0.05, max_queued_requests=4, target_ongoing_requests=4,
    max_body_mb=1, timeout_s=3, cpus_per_replica=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def server(ray_local: Any) -> Iterator[deploy.Server]:
    served = [Served("pets", 2, "unused"), Served("cats", None, "unused")]
    with deploy.start(served, SETTINGS, load=fake.load) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: deploy.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as made:
        yield made


def predict(client: httpx.Client, content: bytes, name: str = "pets", **kwargs: Any) -> httpx.Response:
    headers = {**JPEG, **kwargs.pop("headers", {})}
    return client.post(f"/v1/models/{name}/predict", content=content, headers=headers, **kwargs)


def test_a_picture_over_http(client: httpx.Client) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    answer = predict(client, out.getvalue(), params={"top": 2}).json()
    assert (answer["model"], answer["version"]) == ("pets", 2)
    assert [entry["label"] for entry in answer["predictions"][0]["labels"]] == ["a", "b"]
    assert answer["predictions"][0]["warm_up"] == [1, 4]
    timing = answer["timing"]
    assert 0 <= timing["model_ms"] <= timing["total_ms"]
    assert timing["queue_ms"] >= 40  # a lone picture waits for a batch
    assert predict(client, b"ok", "cats").json()["version"] is None


def test_the_models_are_listed(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    listed = client.get("/v1/models").json()["models"]
    assert [m["name"] for m in listed] == ["pets", "cats"]
    assert listed[0] == client.get("/v1/models/pets@2").json()
    assert listed[0]["input"] == {"width": 32, "height": 24} and listed[0]["metrics"] == {"accuracy": 0.5}


def test_requests_share_batches_and_a_bad_picture_harms_nobody_else(client: httpx.Client) -> None:
    words = [b"ok0", b"truncated", b"ok1", b"boom"] * 2
    with ThreadPoolExecutor(SETTINGS.max_queued_requests) as pool:  # more at once may find the queue full
        answers = list(pool.map(lambda word: predict(client, word), words))
    assert [a.status_code for a in answers] == [200, 400, 200, 500] * 2
    with ThreadPoolExecutor(4) as pool:
        shared = [
            a.json()["predictions"][0]["batch"] for a in pool.map(lambda w: predict(client, w), [b"ok"] * 4)
        ]
    assert max(shared) > 1


def test_each_picture_of_a_request_is_one_element(client: httpx.Client) -> None:
    files = [("f", ("a", b"ok%d" % i)) for i in range(6)]
    predictions = client.post("/v1/models/pets/predict", files=files).json()["predictions"]
    assert [p["said"] for p in predictions] == [f"ok{i}" for i in range(6)]
    assert [p["batch"] for p in predictions] == [4, 4, 4, 4, 2, 2]


def test_time_is_measured_where_it_is_spent(client: httpx.Client) -> None:
    timing = predict(client, b"sleep 0.3").json()["timing"]
    assert 300 <= timing["model_ms"] < 400
    assert timing["total_ms"] >= timing["model_ms"] + timing["queue_ms"] - 1


def test_timeout_is_kept_whatever_the_header_says(client: httpx.Client) -> None:
    start = time.monotonic()
    refusal = error(predict(client, b"sleep 4", headers={"x-request-timeout-seconds": "0"}))
    assert refusal["status"] == 504 and time.monotonic() - start < 3.8
    time.sleep(1.5)  # until the replica is through with it


def test_overload_is_refused_with_retry_after(client: httpx.Client) -> None:
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: predict(client, b"sleep 0.2", "cats"), range(30)))
    codes = {a.status_code for a in answers}
    assert codes == {200, 503}
    refused = next(a for a in answers if a.status_code == 503)
    assert error(refused)["reason"] == "overloaded" and int(refused.headers["retry-after"]) >= 1


def test_an_endless_upload_is_ended_early(server: deploy.Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            b"POST /v1/models/pets/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0

        def pour() -> None:
            nonlocal sent
            try:
                while sent < 200_000_000:
                    line.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    sent += 65536
            except OSError:
                pass

        thread = threading.Thread(target=pour)
        thread.start()
        answer = line.recv(4096)
        line.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 100_000_000


def test_the_ingress_stays_light(server: deploy.Server, ray_local: Any) -> None:
    import psutil

    has_torch = []
    for process in psutil.process_iter(["cmdline"]):
        if "ServeReplica:tlray:http" in " ".join(process.info["cmdline"] or []):
            maps = {m.path for m in process.memory_maps()}
            has_torch.append(any("libtorch" in path for path in maps))
    assert has_torch == [False]


def test_a_replica_that_dies_costs_no_wrong_answer(client: httpx.Client) -> None:
    assert error(predict(client, b"die", "cats"))["status"] in (503, 504)
    end = time.monotonic() + 40
    while (answer := predict(client, b"ok", "cats")).status_code != 200 and time.monotonic() < end:
        assert error(answer)["status"] in (503, 504)
        time.sleep(0.2)
    assert answer.status_code == 200


def test_what_cannot_start_says_why(server: deploy.Server) -> None:
    one = [Served("pets", 2, "models/pets/2")]
    with pytest.raises(ConfigError, match="max_replicas = 1"):
        deploy.start(one, SETTINGS.model_copy(update={"min_replicas": 2}))
    with pytest.raises(RunError, match="gpus_per_replica = 1"):
        deploy.start(one, SETTINGS.model_copy(update={"gpus_per_replica": 1}))
    with pytest.raises(RunError, match=r"serve\.port = 1: Serve runs"):
        deploy.start(one, SETTINGS.model_copy(update={"port": 1}))


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"serve.port = {port}"):
            deploy._free_port("127.0.0.1", port)


@pytest.mark.slow
def test_a_broken_bundle_is_one_line(ray_local: Any) -> None:
    settings = SETTINGS.model_copy(update={"port": 0})
    with pytest.raises(RunError) as caught:
        deploy.start([Served("pets", 2, "models/pets/2")], settings, load=fake.load_broken)
    assert "models/pets/2: weights.safetensors: checksum differs" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_references(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no model to serve"):
        deploy.resolve([], str(tmp_path))
    with pytest.raises(BundleError, match="no bundle"):
        deploy.resolve([f"{tmp_path}/nothing"], str(tmp_path))
    best = tmp_path / "cats" / "best"
    best.mkdir(parents=True)
    (best / "manifest.json").write_text("{}")
    for ref in (str(best), str(best.parent)):
        assert deploy.resolve([ref], str(tmp_path)) == [Served("cats", None, str(best))]
    with pytest.raises(ConfigError, match="served twice"):
        deploy.resolve([str(best), str(best.parent)], str(tmp_path))


def test_arguments_of_the_builder_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_batch_size"):
        deploy.build({"models": ["pets"], "serve": {"max_batch": 3}})


def test_replicas_scale_between_their_bounds() -> None:
    scaled = SETTINGS.model_copy(update={"min_replicas": 2, "max_replicas": 3})
    app = deploy.application([Served("pets", 2, "unused")], scaled, load=fake.load)
    (model,) = app._bound_deployment.init_args  # the ingress is bound to its models
    scaling = model._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 3, 4)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?tpo=3", "query 'tpo': unknown; did you mean 'top'?"),
        ("?top=1&colour=red", "query 'colour': unknown; accepted: min_score, top"),
        ("?top=1&top=2", "query top: given 2 times; accepted: once"),
        ("?top=many", "query top = 'many': accepted: a whole number"),
        ("?top=", "query top = '': accepted: a whole number"),
        ("?min_score=high", "query min_score = 'high': accepted: a number"),
        ("?top=" + "9" * 5000, "accepted: a whole number"),
    ],
)
def test_parameters_without_effect_are_refused(query: str, detail: str) -> None:
    answer = post(b"ok", query=query)
    assert error(answer)["reason"] == "bad_parameter"
    assert detail in error(answer)["detail"] and len(answer.text) < 300


def test_a_missing_parameter_says_where_it_goes() -> None:
    answer = ask([Local("pets", 3)], lambda client: client.post("/v1/models/pets/enroll", content=b"ok"))
    assert error(answer)["detail"] == "query person: is missing; accepted: ?person=..."


def test_health_checks_may_ask_for_more() -> None:
    assert ask([Local("pets", 3)], lambda client: client.get("/livez?verbose&n=1")).status_code == 200
    answer = ask([Local("pets", 3)], lambda client: client.get("/v1/models?page=2"))
    assert error(answer)["detail"] == "query 'page': unknown; accepted: none here"
