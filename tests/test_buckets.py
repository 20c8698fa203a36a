"""Errors of buckets, without a network."""

import builtins

import pytest

from vadapter.base import buckets
from vadapter.base.errors import UserError
from vadapter.training import checkpoints


@pytest.fixture(autouse=True)
def nothing_known():
    buckets._reach.cache_clear()
    yield
    buckets._reach.cache_clear()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("NotFound", "no bucket gs://photos. Correct"),
        ("Forbidden", "gs://photos may not be used .*storage.legacyBucketReader"),
        ("ServiceUnavailable", "gs://photos cannot be reached .*application-default login"),
        (None, "gs://photos cannot be reached"),
    ],
)
def test_why_a_bucket_cannot_be_used(monkeypatch, error, message):
    exceptions = pytest.importorskip("google.api_core.exceptions")
    storage = pytest.importorskip("google.cloud.storage")

    class Client:
        def __init__(self):
            if error is None:
                raise OSError("Project was not passed")

        def get_bucket(self, name):
            raise getattr(exceptions, error)(f"asked for {name}")

    monkeypatch.setattr(storage, "Client", Client)
    with pytest.raises(UserError, match=message):
        checkpoints.Checkpointer("gs://photos/run", read_only=True)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name.startswith("google.cloud"):
            raise ImportError("cannot import name 'storage'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs google-cloud-storage.*vadapter\[gcs\]"):
        buckets.check("gs://photos/run")


def test_local_folders_need_nothing(tmp_path):
    buckets.check(str(tmp_path))
