"""An object store on this machine: moto's S3, over HTTP on 127.0.0.1, with faults on request."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass
class Buckets:
    """failing: share of the requests that are answered with 503, at random but from a seed. requests, failures: so far."""

    url: str = ""
    failing: float = 0.0
    requests: int = 0
    failures: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to use it."""
        return KEYS | {"AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def client(self) -> Any:
        """boto3's: another pair of eyes on what is there."""
        session = boto3.session.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        return session.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", config=Config(retries={"max_attempts": 20})
        )

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes, of all objects whose key begins like that; what stands for a folder is none."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", []) if one["Key"][-1] != "/"}

    def fails(self) -> bool:
        """Whether the request that comes now does."""
        with self.lock:
            self.requests += 1
            fails = self.chance.random() < self.failing
            self.failures += fails
        return fails


@contextlib.contextmanager
def serving() -> Iterator[Buckets]:
    """A store with one bucket, empty, until the block ends."""
    buckets = Buckets()
    store = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if buckets.fails():
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        return store(environ, start_response)  # type: ignore[no-any-return]

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        buckets.url = f"http://127.0.0.1:{server.server_port}"
        reset = boto3.session.Session("key", "secret").client("s3", endpoint_url=buckets.url, region_name="us-east-1")
        reset.create_bucket(Bucket=BUCKET)
        yield buckets
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for client in (store,):
            client.app_instances.clear()
        clear()


def clear() -> None:
    """moto keeps what it serves for the life of the process."""
    from moto.core.base_backend import BackendDict
    from moto.s3.models import s3_backends

    assert isinstance(s3_backends, BackendDict)
    for account in s3_backends.values():
        for backend in account.values():
            backend.reset()
