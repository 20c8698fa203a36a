"""Writing imported weights: runs read them as any checkpoint, memory holds a few pieces, nothing half is left."""

import json
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import saved
from vadapter.base import fingerprints
from vadapter.base.errors import UserError
from vadapter.training import checkpoints
from vadapter.weights import store
from vadapter.weights.mapping import Parameter, Piece

RNG = np.random.default_rng(0)


def parameter(path: str, x: np.ndarray, rows: int | None = None, read=lambda x: x) -> Parameter:
    """A parameter in pieces of `rows` rows (all of them by default)."""
    length = x.shape[0] if x.ndim else 1
    step = rows or length
    ends = [(i, min(i + step, length)) for i in range(0, length, step)]
    pieces = [Piece(a, b, lambda a=a, b=b: read(x[a:b] if x.ndim else x)) for a, b in ends]
    return Parameter(path, x.shape, x.dtype, tuple(pieces))


WEIGHTS = {
    "decoder/layers/kernel": RNG.standard_normal((4, 6, 8)).astype(np.float32),
    "decoder/embedder/embedding": RNG.standard_normal((16, 8)).astype(np.float32),
    "decoder/zeros": np.zeros((4, 4), np.float32),
    "decoder/scalar": np.array(3.0, np.float32),
    "encoder/turned": RNG.standard_normal((8, 6)).astype(np.float32).T,
}
ROWS = {"decoder/layers/kernel": 1, "decoder/embedder/embedding": 5}
PARAMETERS = [parameter(path, x, ROWS.get(path)) for path, x in WEIGHTS.items()]


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        assert found[path].dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(found[path], np.float32), np.asarray(x, np.float32), err_msg=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_reads_what_was_written(tmp_path, dtype):
    hashes = store.write(
        str(tmp_path / "a" / "b"), PARAMETERS, dtype, {"imported": {"family": "llama"}, "checksums": True}
    )
    wanted = {path: x.astype(dtype) for path, x in WEIGHTS.items()}
    assert checkpoints.steps(str(tmp_path / "a" / "b")) == [0]
    found = saved.load_params(str(tmp_path / "a" / "b"))
    assert_equal(found, wanted)
    assert hashes == {path: fingerprints.of_array(x) for path, x in found.items()}
    assert fingerprints.load(str(tmp_path / "a" / "b"), 0) == hashes
    with checkpoints.Checkpointer(str(tmp_path / "a" / "b"), read_only=True) as checkpointer:
        run = checkpointer.run(0)
    assert run == {
        "format": checkpoints.FORMAT,
        "step": 0,
        "sources": [],
        "imported": {"family": "llama"},
        "checksums": True,
    }


def test_each_device_can_read_its_shard(tmp_path):
    store.write(str(tmp_path), PARAMETERS, "bfloat16", {})
    mesh = jax.make_mesh((4,), ("model",), devices=jax.devices()[:4])
    split = {"decoder/layers/kernel": (None, None, "model"), "decoder/embedder/embedding": ("model",)}
    shardings = {path: NamedSharding(mesh, PartitionSpec(*split.get(path, ()))) for path in WEIGHTS}
    wanted = {
        path: jax.ShapeDtypeStruct(x.shape, ml_dtypes.bfloat16, sharding=shardings[path]) for path, x in WEIGHTS.items()
    }
    with checkpoints.Checkpointer(str(tmp_path), read_only=True) as checkpointer:
        found = checkpointer.read(0, wanted)
    assert {path: x.sharding for path, x in found.items()} == shardings
    assert_equal(found, {path: x.astype(ml_dtypes.bfloat16) for path, x in WEIGHTS.items()})


def test_f16_becomes_bf16(tmp_path):
    half = RNG.standard_normal((3, 4)).astype(np.float16)
    store.write(str(tmp_path), [parameter("decoder/x", half)], "bfloat16", {})
    assert_equal(saved.load_params(str(tmp_path)), {"decoder/x": half.astype(ml_dtypes.bfloat16)})


def test_a_few_pieces_are_in_memory_at_a_time(tmp_path):
    alive, highest = weakref.WeakSet(), [0]

    class Seen(np.ndarray):
        pass

    def read(x):
        piece = x.copy().view(Seen)
        alive.add(_Held(piece))
        highest[0] = max(highest[0], len(alive))
        return piece

    class _Held:
        """Lives as long as an array does."""

        def __init__(self, array):
            array.held = self

    many = parameter("decoder/x", np.ones((40, 8), np.float32), 1, read)
    store.write(str(tmp_path), [many], "float32", {})
    assert 1 <= highest[0] <= 3


def test_progress_counts_the_bytes(tmp_path):
    counts = []
    store.write(str(tmp_path), PARAMETERS, "bfloat16", {}, counts.append)
    assert sum(counts) == store.size(PARAMETERS, "bfloat16") == 2 * sum(x.size for x in WEIGHTS.values())
    assert len(counts) == sum(len(p.pieces) for p in PARAMETERS)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((32, 4096, 14_336), 1), ((128_256, 4096), 8192), ((151_936, 1000), 33_554), ((1, 577, 1024), 1), ((5,), 5)],
)
def test_chunks_are_small_parts_of_a_piece(shape, rows):
    pieces = tuple(Piece(i, min(i + rows, shape[0]), lambda: np.zeros(0)) for i in range(0, shape[0], rows))
    chunk = store.chunks(Parameter("x", shape, np.dtype(np.float32), pieces), np.dtype(ml_dtypes.bfloat16))
    assert 2 * np.prod(chunk) <= 16 << 20
    assert all(1 <= c <= n for c, n in zip(chunk, shape, strict=True))
    assert len(pieces) == 1 or chunk[0] == rows


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "float8_e4m3fn"])
def test_what_is_no_float_of_16_bits_is_refused(tmp_path, dtype):
    numbers = parameter("decoder/codes", np.ones((2, 2), np.dtype(dtype)))
    with pytest.raises(UserError, match=f"tensor for decoder/codes has the dtype {dtype}; .*not quantised"):
        store.write(str(tmp_path), [*PARAMETERS, numbers], "bfloat16", {})
    assert left(tmp_path) == []


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    need = store.size(PARAMETERS, "bfloat16")
    usage = lambda free: lambda path: type("Usage", (), {"free": free})()  # noqa: E731
    monkeypatch.setattr(store.shutil, "disk_usage", usage(need))
    with pytest.raises(UserError, match=r"model needs .* GB, and the disk has .* GB free"):
        store.write(str(tmp_path / "new" / "model"), PARAMETERS, "bfloat16", {})
    assert left(tmp_path) == []
    monkeypatch.setattr(store.shutil, "disk_usage", usage(2 * need))
    store.write(str(tmp_path / "new" / "model"), PARAMETERS, "bfloat16", {})


def test_a_checkpoint_that_is_there_is_kept(tmp_path):
    store.write(str(tmp_path), PARAMETERS[:1], "bfloat16", {})
    with pytest.raises(UserError, match="checkpoint_0 is there already"):
        store.write(str(tmp_path), PARAMETERS, "bfloat16", {})
    assert saved.load_params(str(tmp_path)).keys() == {PARAMETERS[0].path}


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("damaged"), OSError("gone")])
def test_an_interrupted_import_leaves_nothing_and_the_next_one_works(tmp_path, error):
    def fail(x):
        raise error

    broken = parameter("decoder/x", np.ones((2, 2), np.float32), 1, fail)
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "importing.orbax-checkpoint-tmp").mkdir()  # of a process that was killed
    with pytest.raises(error if isinstance(error, type) else type(error)):
        store.write(str(tmp_path), [*PARAMETERS, broken], "bfloat16", {})
    assert left(tmp_path) == ["mine.txt"]
    assert checkpoints.steps(str(tmp_path)) == []
    store.write(str(tmp_path), PARAMETERS, "bfloat16", {})
    assert left(tmp_path) == ["checkpoint_0", "mine.txt", "sha256.json"]
    assert json.loads((tmp_path / "sha256.json").read_text())["step"] == 0


def test_in_a_bucket_a_checkpoint_is_finished_with_its_last_file(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "is_remote", lambda path: str(path).endswith("checkpoint_0"))
    copy, seen = type(store.epath.Path(tmp_path)).copy, []

    def watched(path, to, **options):
        seen.append(str(path.relative_to(tmp_path / "importing")))
        assert checkpoints.steps(str(tmp_path)) == []
        return copy(path, to, **options)

    monkeypatch.setattr(type(store.epath.Path(tmp_path)), "copy", watched)
    store.write(str(tmp_path), PARAMETERS, "float32", {})
    assert seen[-1] == "_CHECKPOINT_METADATA" and len(seen) == len(set(seen)) > len(WEIGHTS)
    assert left(tmp_path) == ["checkpoint_0", "sha256.json"]
    assert_equal(saved.load_params(str(tmp_path)), WEIGHTS)
