"""What every test shares: several host devices, one compilation cache, float64 on request."""

import ctypes
import gc
import mmap
import os
import pathlib

from tests.xla import FLAGS, added

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Every program is kept, for the other worker and for the commands that tests run.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = added(
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"
)

import jax  # noqa: E402
import pytest  # noqa: E402

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(CACHE))


def pytest_collection_modifyitems(config, items):
    """Leave what depends on the last bit to `test_xla.py`, unless XLA's usual flags were asked."""
    left = [item for item in items if FLAGS and item.get_closest_marker("usual_flags")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_collection_finish(session):
    """Leave out of each collection of garbage what was imported, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """No silent promotion of types or ranks: for the mathematics."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def compilations():
    """Names of what XLA compiles, as it does."""
    names = []

    def listen(event, _duration, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Forget compiled programs where they take more than 1 GiB, and give the memory back.

    Else workers grow to 5 GB, and to the kernel's limit of 65,530 mappings, where XLA crashes. What
    XLA frees stays with glibc until it is trimmed.
    """
    yield
    memory = pathlib.Path("/proc/self/statm")
    if memory.exists() and int(memory.read_text().split()[1]) * mmap.PAGESIZE > 2**30:
        jax.clear_caches()
        ctypes.CDLL(None).malloc_trim(0)
