"""The page of `synthesize --serve`: views of any camera, the newest first, to nobody but the browser of this machine."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lvsm_train.config.synthesis import SynthesisConfig  # noqa: E402
from lvsm_train.synthesis.live import ALONE_DEG, Live, Newest, Wish, _apart  # noqa: E402
from lvsm_train.synthesis.routes import Viewpoint  # noqa: E402
from lvsm_train.synthesis.server import Server, page_of  # noqa: E402
from lvsm_train.synthesis.synthesize import Read, read  # noqa: E402
from pipeline.config.rig import read_path  # noqa: E402
from pipeline.core import cameras, images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.viewer.local_server import LONGEST  # noqa: E402
from tests import noise  # noqa: E402
from tests.chromium import needs_browser, tab  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402
from tests.lvsm_train.synthesis.test_synthesize import pictures_in, run_of, synthesize  # noqa: E402

EVIL = """</script><img src=x onerror="document.body.dataset.pwned=1">'"""


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("run"), data)


@pytest.fixture(scope="module")
def seen(run: Path, data: Path) -> Read:
    """Four photos of an object, one of which has a name that is markup."""
    found = read(SynthesisConfig(run=run, data=data, uid="ball-4", serve=(), device="cpu").resolved())
    posed = found.plan.album.posed
    names = [f"{EVIL}{name}" if view == found.plan.inputs[1] else name for view, name in enumerate(posed.names)]
    album = dataclasses.replace(found.plan.album, posed=dataclasses.replace(posed, names=names), name=EVIL)
    return dataclasses.replace(found, plan=dataclasses.replace(found.plan, album=album, warnings=[EVIL]))


class Held(Live):
    """Views that wait until they may be rendered."""

    def __init__(self, seen: Read) -> None:
        super().__init__(seen)
        self.may = threading.Event()
        self.may.set()
        self.begun = threading.Semaphore(0)

    def answer(self, wish: Wish) -> dict[str, Any]:
        self.begun.release()
        assert self.may.wait(60)
        return super().answer(wish)


@pytest.fixture
def served(seen: Read) -> Iterator[Server]:
    with Server(0) as server:
        live = Held(seen)
        thread = threading.Thread(target=server.serve, args=(live,))
        thread.start()
        wait_for(lambda: server.page)
        try:
            yield server
        finally:
            live.may.set()
            live.newest.close()
            thread.join(60)
        assert not thread.is_alive()


def answer_of(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers that come for a request. headers: in place of, or besides, those that a browser sends."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | headers).items():
        for each in value.split("|"):
            connection.putheader(name.replace("_", "-"), each)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, body, dict(reply.getheaders())


def query(viewpoint: Viewpoint, **more: object) -> str:
    return "/view?" + urllib.parse.urlencode(dataclasses.asdict(viewpoint) | {"lens": 0} | more)


def pixels(answer: dict[str, Any]) -> np.ndarray:
    kind, _, data = answer["picture"].partition(",")
    assert kind == "data:image/png;base64"
    return images.decode(base64.b64decode(data))


# ---- cameras


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_a_viewpoint_is_a_camera_and_back(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    c2w = np.eye(4)
    c2w[:3, :3] = cameras.rotation_of(rng.standard_normal(4))
    c2w[:3, 3] = scale * rng.standard_normal(3)
    assert np.allclose(Viewpoint.of(c2w).c2w(), c2w, atol=1e-12 * (1 + scale))


@pytest.mark.parametrize("eye", [(2, 0, 0), (1, -1, 0.5), (0, 0, 3), (0, 0, -3), (1e-7, 0, 2), (-1, 2, -4)])
def test_a_viewpoint_of_a_camera_that_looks_at_the_origin(eye: tuple[float, float, float]) -> None:
    """Also of those that look straight up and down."""
    c2w = cameras.look_at(np.array(eye, float))
    found = Viewpoint.of(c2w)
    assert np.allclose(found.c2w(), c2w, atol=1e-9)
    assert found.distance == pytest.approx(np.linalg.norm(eye)) and (found.right, found.down) == pytest.approx((0, 0))
    assert np.sin(np.radians(found.elevation)) == pytest.approx(eye[2] / found.distance)
    if abs(found.elevation) < 89.9:
        assert np.degrees(np.arctan2(eye[1], eye[0])) == pytest.approx(found.azimuth) and found.roll == pytest.approx(0)


def test_a_viewpoint_moves_as_its_numbers_say() -> None:
    start = Viewpoint(30.0, 20.0, 0.0, 2.0)
    c2w = start.c2w()
    moved = dataclasses.replace(start, right=0.3, down=-0.2).c2w()
    assert np.allclose(moved[:3, 3] - c2w[:3, 3], 0.3 * c2w[:3, 0] - 0.2 * c2w[:3, 1])
    assert np.allclose(moved[:3, :3], c2w[:3, :3])
    rolled = dataclasses.replace(start, roll=90.0).c2w()  # clockwise: what was below the camera is to its right
    assert np.allclose(rolled[:3, 0], c2w[:3, 1]) and np.allclose(rolled[:3, 2:], c2w[:3, 2:])


# ---- views


def test_a_view_is_what_the_model_renders(served: Server, seen: Read, tmp_path: Path) -> None:
    """Of the world of the photos, through its own camera and through that of a photo."""
    made, live = seen.plan, served.live
    asked = dataclasses.replace(live.first, azimuth=77.0, right=0.1)
    for viewpoint, lens in ((live.first, 0), (asked, 0), (live.inputs[2], 3)):
        status, body, _ = answer_of(served, query(viewpoint, lens=lens), Sec_Fetch_Site="same-origin")
        found = json.loads(body)
        assert status == 200 and found["ms"] > 0
        (tmp_path / "cameras.json").write_text(json.dumps(found["camera"]))
        camera = read_path(tmp_path / "cameras.json")
        assert camera.fxfycxcy is not None and camera.hw == made.hw
        given_ = made.shown.image, made.input_c2w, made.shown.fxfycxcy, camera.c2w, camera.fxfycxcy
        (expected,) = seen.model.render(*given_)
        assert np.abs(pixels(found) - 255 * expected).max() < 0.51
        if viewpoint is not asked:
            there = made.input_c2w[2] if lens else made.c2w[0]
            assert np.allclose(camera.c2w[0], there, atol=1e-6)
        else:
            assert np.allclose(made.stage.to(camera.c2w)[0], asked.c2w(), atol=1e-9)


def test_the_first_view_of_a_scene_is_the_first_of_its_film(tmp_path: Path) -> None:
    """Whose cameras are normalised: those of the page as those of the path."""
    shards = noise.write(tmp_path / "clips", [noise.scene("clip", frame=np.arange(13) * 4)])
    run = run_of(tmp_path / "run", shards, scenes=True, inputs=2, gap_min=8, gap_max=40)
    synthesize(run, "--data", shards, "--frames", 3, "--out", tmp_path / "made")
    live = Live(read(SynthesisConfig(run=run, data=shards, frames=3, serve=(), device="cpu").resolved()))
    found = live.answer(Wish(live.first))
    assert np.abs(pixels(found).astype(int) - pictures_in(tmp_path / "made")[0]).max() <= 1
    assert np.allclose(found["camera"]["c2w"][0], json.loads((tmp_path / "made/cameras.json").read_text())["c2w"][0])


def test_how_far_a_view_is_from_the_photos(seen: Read) -> None:
    live = Live(seen)
    own = live.answer(Wish(live.inputs[2], 3))
    assert own["near"] == f"where view {seen.plan.inputs[2]} was taken" and own["warnings"] == []
    turned = live.answer(Wish(dataclasses.replace(live.inputs[2], azimuth=live.inputs[2].azimuth + 5)))
    angle = np.degrees(np.arccos(np.dot(*(np.array(one["camera"]["c2w"])[0, :3, 2] for one in (own, turned)))))
    assert turned["near"].startswith(f"{angle:.0f}° and ") and turned["near"].endswith("the nearest photo")
    away = live.answer(Wish(dataclasses.replace(live.first, distance=0.99 * live.farthest)))
    assert ["far from all photos" in one for one in away["warnings"]] == [True]
    assert _apart(seen.plan.input_c2w[:1], 0.7) == (ALONE_DEG, 0.7)
    within = live.answer(Wish(dataclasses.replace(live.inputs[2], distance=0.4)))
    assert any("within the sphere" in one for one in within["warnings"])


# ---- who is answered, and what


def test_the_newest_wish_takes_the_place_of_the_one_that_waits() -> None:
    box, here = Newest(), Viewpoint(0, 0, 0, 1)
    answers = [box.ask(Wish(here, lens)) for lens in range(3)]
    assert [one.cancelled() for one in answers] == [True, True, False]
    taken = box.take()
    assert taken is not None and taken[0].lens == 2 and taken[1] is answers[2]
    late = box.ask(Wish(here))
    box.close()
    assert box.take() is None and late.cancelled() and box.ask(Wish(here)).cancelled()


def test_requests_never_queue(served: Server) -> None:
    live = served.live
    assert isinstance(live, Held)
    live.may.clear()
    ended: dict[float, int] = {}

    def ask(azimuth: float) -> None:
        ended[azimuth] = answer_of(served, query(dataclasses.replace(live.first, azimuth=azimuth)))[0]

    threads = [threading.Thread(target=ask, args=(azimuth,)) for azimuth in (1.0, 2.0, 3.0)]
    threads[0].start()
    assert live.begun.acquire(timeout=60)  # it is rendered, and the others wait
    for number, thread in enumerate(threads[1:], 2):
        thread.start()
        wait_for(lambda number=number: live.newest._waits and live.newest._waits[0].viewpoint.azimuth == number)  # type: ignore[misc]
    wait_for(lambda: ended == {2.0: 409})
    live.may.set()
    for thread in threads:
        thread.join(60)
    assert ended == {1.0: 200, 2.0: 409, 3.0: 200} and live.rendered == 2


def wait_for(happens: Callable[[], object]) -> None:
    for _ in range(6000):
        if happens():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "127.0.0.1:{port}", "Sec_Fetch_Site": "none"}, 200),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": "127.0.0.1:{port}.evil.example"}, 421),
        ({"Host": "127.0.0.1:{port}|evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Length": "5"}, 413),
        ({"Transfer_Encoding": "chunked"}, 413),
    ],
    ids=str,
)
def test_only_the_page_of_this_place_is_answered(headers: dict[str, str], status: int, served: Server) -> None:
    given_ = {name: value.format(port=served.server_port) for name, value in headers.items()}
    found, body, _ = answer_of(served, query(served.live.first), **given_)
    assert found == status and served.live.rendered == (status == 200), body


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/view", 400, "azimuth, elevation, roll, distance, right, down and lens"),
        ("{view}&azimuth=1", 400, "each once"),
        ("{view}&other=1", 400, "each once"),
        ("{view}" + "&a=1" * 30, 400, ""),
        ("{view:azimuth=nan}", 400, "azimuth is a number from -360 to 360"),
        ("{view:elevation=91}", 400, "elevation is a number from -90 to 90"),
        ("{view:distance=inf}", 400, "distance is a number"),
        ("{view:distance=1e999}", 400, "distance is a number"),
        ("{view:right=-1e6}", 400, "right is a number"),
        ("{view:roll=}", 400, "roll is a number"),
        ("{view:down=0x10}", 400, "down is a number"),
        ("{view:lens=5}", 400, "lens is a number from 0 to 4"),
        ("{view:lens=-1}", 400, "lens"),
        ("{view}&" + "x" * LONGEST, 414, "characters"),
        ("/other", 404, "/view"),
        ("/?x=1", 404, "/view"),
        ("/../view", 404, "/view"),
        ("http://127.0.0.1/", 404, "/view"),
    ],
)
def test_what_is_no_view_is_refused_in_a_line(path: str, status: int, says: str, served: Server) -> None:
    whole = query(served.live.first)
    if path.startswith("{view:"):
        name, _, value = path[6:-1].partition("=")
        path = query(served.live.first, **{name: value})
    found, body, headers = answer_of(served, path.replace("{view}", whole))
    assert found == status and says in body.decode() and body.count(b"\n") == 1
    assert headers["Content-Type"].startswith("text/plain")
    assert answer_of(served, whole)[0] == 200  # it goes on
    assert served.live.rendered == 1


def test_a_browser_that_is_gone_is_not_spoken_of(served: Server, capfd: pytest.CaptureFixture[str]) -> None:
    live = served.live
    assert isinstance(live, Held)
    live.may.clear()
    for _ in range(2):
        left = socket.create_connection(("127.0.0.1", served.server_port))
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # it ends by a reset
        left.sendall(f"GET {query(live.first)} HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}\r\n\r\n".encode())
        assert live.begun.acquire(timeout=60)
        left.close()
        live.may.set()
    assert answer_of(served, "/", "POST")[0] == 501 and answer_of(served, "/")[0] == 200
    assert capfd.readouterr().err == ""


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_names_of_photos_are_text(served: Server) -> None:
    status, body, headers = answer_of(served, "/", Sec_Fetch_Site="cross-site")  # a link on another page
    assert status == 200 and headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    text = body.decode()
    assert text == page_of(served.live) and text.count("<script") == text.count("</script") == 2
    tags = Tags(text).tags
    pictures = [attributes for tag, attributes in tags if tag == "img"]
    assert len(pictures) == 4 and all((one["src"] or "").startswith("data:image/png") for one in pictures)
    assert any(EVIL in (attributes.get("title") or "") for _, attributes in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)


# ---- the command


@pytest.mark.parametrize("out", [False, True])
def test_the_command_shows_a_page_until_it_is_interrupted(out: bool, run: Path, data: Path, tmp_path: Path) -> None:
    """And writes nothing, or, with --out, its files first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    got: list[tuple[int, bytes, bool]] = []

    def look() -> None:
        try:
            for path in ("/", "/view"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                wait_for(lambda connection=connection: connected(connection))  # type: ignore[misc]
                connection.request("GET", path)
                reply = connection.getresponse()
                got.append((reply.status, reply.read(), (tmp_path / "o/index.html").is_file()))
                connection.close()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    browser = threading.Thread(target=look)
    browser.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        more = ["--frames", 2, "--fps", 2, "--out", "o"] if out else []
        ended = lvsm_data_here("synthesize", run, "--data", data, "--serve", port, *more)
    browser.join()
    assert ended.returncode == 0 and ended.stderr == ""
    lines = ended.stdout.splitlines()
    said = f"open http://127.0.0.1:{port}/ in a browser on this machine; Ctrl-C ends it"
    assert lines[-2:] == [said, "ended after 0 views"] and len(lines) == (6 if out else 3)
    assert [(status, there) for status, _, there in got] == [(200, out), (400, out)] and b"Views of ball-" in got[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["o"] * out


def connected(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    return True


def test_a_port_that_is_taken_is_said_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = lvsm_data_here("synthesize", tmp_path / "no run", "--data", data, "--serve", port)
    assert ended.returncode == 2 and f"port {port} of 127.0.0.1 is in use" in ended.stderr
    assert "hint: --serve 0" in ended.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"serve": (65536,)}, "--serve 65536 is no port"),
        ({"serve": (-1,)}, "--serve -1 is no port"),
        ({"serve": (8000, 8001)}, "--serve 8000 8001 is no port"),
        ({"serve": (), "fps": 12.0}, "--fps is for files"),
        ({"serve": (), "batch": 2}, "--batch is for files"),
        ({"serve": (), "poses": "others"}, "--poses others is to compare"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_page(more: dict[str, Any], says: str, run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        SynthesisConfig(run=run, data=data, **more).resolved()
    assert says in str(raised.value)
    if "port" not in says:
        assert SynthesisConfig(run=run, data=data, out=tmp_path / "o", **more).resolved().port == 8765


# ---- a real browser


@needs_browser
def test_a_browser_turns_the_view(served: Server, seen: Read, tmp_path: Path) -> None:
    live = served.live
    assert isinstance(live, Held)
    with tab(tmp_path, "--window-size=1280,900") as page:
        page.open(served.url)
        page.wait("shown")
        assert page.faults() == []
        left, top, width, height = page.run(
            "(box => [box.x, box.y, box.width, box.height])(stage.getBoundingClientRect())"
        )
        x, y = left + width / 2, top + height / 2

        def view() -> dict[str, float]:
            found: dict[str, float] = page.wait("!asking && shown.view === view && view")
            return found

        def picture() -> str:
            found: str = page.run("stage.querySelector('img').src")
            return found

        first, pictures = view(), [picture()]
        page.drag((x, y), (x + width / 10, y + height / 20), (x + width / 4, y + height / 10))
        turned = view()
        pictures.append(picture())
        assert (live.first.azimuth - turned["azimuth"]) % 360 == pytest.approx(45, abs=0.5)
        assert turned["elevation"] == pytest.approx(first["elevation"] + 18, abs=0.5)
        page.drag((x, y), (x + width / 10, y), shift=True)
        slid = view()
        assert slid["right"] < -0.05 and slid["azimuth"] == turned["azimuth"]
        pictures.append(picture())
        page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-200)
        page.wait(f"view.distance < {slid['distance']}")
        pictures.append((view(), picture())[1])
        before = view()
        for kind, apart, aside in (
            ("Start", 40, 0),
            ("Move", 80, 0),
            ("Move", 80, 50),
            ("End", None, 0),
        ):  # two fingers
            fingers = (
                [] if apart is None else [{"x": x + aside + side * apart, "y": y, "id": side + 1} for side in (-1, 1)]
            )
            page.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=fingers)
        pinched = view()
        assert pinched["distance"] < 0.7 * before["distance"] and pinched["right"] < before["right"] - 0.02
        assert pinched["azimuth"] == before["azimuth"]
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        assert view()["azimuth"] == pytest.approx(slid["azimuth"] - 5)
        page.call("Input.dispatchKeyEvent", type="keyDown", key="k")
        pictures.append(picture())
        page.run("photos[1].click()")
        assert view()["lens"] == 2
        assert page.run("el('near').textContent") == f"where {EVIL}view {seen.plan.inputs[1]} was taken"
        page.run("el('keep').click()")
        pictures.append(picture())
        for clicks in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=clicks)
        assert view() == first and picture() == pictures[0]
        assert len(set(pictures)) == len(pictures) == 6

        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.run("el('download').click()")
        wait_for((tmp_path / "cameras.json").is_file)
        kept = read_path(tmp_path / "cameras.json")
        assert len(kept.c2w) == 2 and np.allclose(kept.c2w[1], seen.plan.input_c2w[1], atol=1e-6)
        assert kept.hw == seen.plan.hw and kept.fxfycxcy is not None and kept.fxfycxcy.shape == (2, 4)

        before = live.rendered
        live.may.clear()
        page.drag((x, y), *((x + step, y) for step in range(1, 30)))
        assert page.run("asking")
        live.may.set()
        last = view()
        assert (first["azimuth"] - last["azimuth"]) % 360 == pytest.approx(180 * 29 / width, abs=0.5)
        assert live.rendered == before + 2  # of 29 places the first and the last
        assert page.run(
            "performance.getEntriesByType('resource').every(one => one.name.startsWith(location.origin + '/view?'))"
        )
        assert page.complaints == [] and page.run("document.body.dataset.pwned") is None

        live.newest.close()
        page.drag((x, y), (x + 50, y))
        assert page.wait("!asking && el('worth').textContent") == "the program has ended\n"
        none = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.call("Network.emulateNetworkConditions", **none)
        page.drag((x, y), (x + 50, y))
        page.wait("el('worth').textContent.startsWith('no answer')")
