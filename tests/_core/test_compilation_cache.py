"""The persistent compilation cache: a second process compiles nothing, a bad folder is a warning."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import softntk as sn

PROGRAM = """
import sys
import jax, jax.monitoring
import jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
)
if sys.argv[2] == "late":
    jnp.ones(3).sum()  # JAX has decided by now that there is no cache
import softntk as sn
assert str(sn.compilation_cache(sys.argv[1])) == sys.argv[1]
net = sn.networks.two_layer("softmax", width=8)
params = net.init_fn(jax.random.key(0), (-1, 3))[1]
sn.ntk.empirical(net, params, jnp.ones((2, 3)))
print(len(hits))
"""


def count_hits(folder: Path, when: str) -> int:
    """Run the program in a fresh process; return how many programs came from the cache."""
    environment = os.environ | {"PYTHONPATH": str(Path(sn.__file__).parents[1])}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM, str(folder), when]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_second_process_finds_the_programs(tmp_path, when):
    folder = tmp_path / "new" / "cache"
    assert count_hits(folder, when) == 0
    assert any(folder.iterdir())
    assert count_hits(folder, when) > 0


@pytest.fixture
def settings():
    """Restore what the cache changes in the process of the tests."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    values = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in values.items():
        jax.config.update(name, value)


def cache_folder() -> str | None:
    """Return the folder that JAX has now."""
    config: Any = jax.config
    return config.jax_compilation_cache_dir


def test_default_folder_is_that_of_the_user(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sn.compilation_cache() == tmp_path / "softntk" / "xla"
    assert cache_folder() == str(tmp_path / "softntk" / "xla")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert sn.compilation_cache() == tmp_path / "home" / ".cache" / "softntk" / "xla"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sn.compilation_cache() == tmp_path / "home" / "Library" / "Caches" / "softntk" / "xla"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, settings):
    file = tmp_path / "file"
    file.write_text("")
    before = cache_folder()
    with pytest.warns(UserWarning, match="cannot be written"):
        assert sn.compilation_cache(file / "cache") is None
    assert cache_folder() == before
    assert float(jax.numpy.ones(2).sum()) == 2


@pytest.mark.parametrize("path", [3, ["a"], b"folder"])
def test_what_is_no_path_is_refused(path, untyped):
    with pytest.raises(TypeError, match="path must be a path or None"):
        sn.compilation_cache(path)
