"""One Ray for the tests of this folder, of a program of its own: this process stays as it is for other tests."""

import json
import os
import uuid
from collections.abc import Iterator

import pytest

from tests.program import Program
from tests.ray_sweeps.helpers import Ray
from tests.ray_sweeps.processes import MARK, end, gone

KEEPER = """
import json, os, pathlib, sys, time
from fptt_dist.launchers.ray.cluster import connected
with connected():
    import ray
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    variables = {name: os.environ[name] for name in names}
    variables["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    there, stop = map(pathlib.Path, sys.argv[1:])
    there.with_suffix(".new").write_text(json.dumps(variables))
    there.with_suffix(".new").rename(there)
    while not stop.exists():
        time.sleep(0.1)
"""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """The Ray that all tests share, as `launchers.ray_cluster` starts it, on two CPUs whatever the machine has."""
    folder, mark = tmp_path_factory.mktemp("ray"), uuid.uuid4().hex
    there, stop = folder / "variables.json", folder / "stop"
    keeper = Program(folder / "log", ["-c", KEEPER, str(there), str(stop)], {**os.environ, MARK: mark})
    try:
        keeper.wait_until(there.exists)
        yield Ray(json.loads(there.read_text()), mark)
        stop.touch()
        assert keeper.end(60) == 0, keeper.text()
        assert gone(mark)
    finally:
        keeper.kill()
        end(mark)


@pytest.fixture
def own() -> Ray:
    """Each program starts its own, as a user has it."""
    return Ray({})
