"""Importing softntk, and using everything in it, leaves the rest of the process as it was."""

import subprocess
import sys

import pytest
from helpers import slow_except

PRELUDE = """
import sys, jax, jax.core, jax.interpreters.ad, jax.interpreters, jax.extend.core, scipy.linalg
watched = [jax, jax.core, jax.interpreters, jax.interpreters.ad, jax.extend.core, scipy, scipy.linalg, sys.modules["builtins"]]
before = [dict(vars(m)) for m in watched]
config = dict(jax.config.values)
"""
CHECK = """
for module, was in zip(watched, before):
    now = vars(module)
    gone, new = set(was) - set(now), {k for k in set(now) - set(was) if not isinstance(now[k], type(sys))}
    changed = {k for k in set(was) & set(now) if now[k] is not was[k]}
    assert not (gone or new or changed), (module.__name__, gone, new, changed)
assert dict(jax.config.values) == config
assert not hasattr(jax, "util") and "jax.util" not in sys.modules
assert not hasattr(jax.interpreters.ad, "zeros_like_p")
assert not {"tensorflow", "tf2jax"} & set(sys.modules)
assert sys.meta_path and not any("softntk" in getattr(f, "__module__", "") for f in sys.meta_path)
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr


@pytest.mark.parametrize(
    "use",
    slow_except(
        ["import softntk", "import softntk; softntk.nt.stax", "from softntk import nt"],
        "import softntk; softntk.nt.stax",
    ),
)
def test_jax_is_left_as_it_was(use):
    run(PRELUDE + use + CHECK)


@pytest.mark.slow
def test_using_everything_never_imports_tensorflow():
    run(
        PRELUDE
        + """
import softntk as sn
x = jax.numpy.eye(3)
net = sn.networks.two_layer("softmax", width=8)
_, params = net.init_fn(jax.random.key(0), (-1, 3))
gram = sn.ntk.empirical(net, params, x, outputs="mean")
sn.ntk.predict_gd(gram, x[:, :1], 0.1, jax.numpy.arange(2))
op = sn.ntk.kernel_operator(net.kernel_fn, x)
sn.ntk.extreme_eigenvalues(op, dense_size=1)
sn.ntk.solve(op, x[:, 0], ridge=0.1)
sn.ntk.empirical(net.apply_fn, params, x)
sn.nt.batch(net.kernel_fn, batch_size=3, device_count=0)
sn.nt.predict.gradient_descent_mse_ensemble(net.kernel_fn, x, x[:, :1], diag_reg=1e-3)(x_test=x)
sn.nt.monte_carlo_kernel_fn(net.init_fn, net.apply_fn, jax.random.PRNGKey(0), 2)(x, None, "ntk")
sn.solvers.train(lambda p: net.apply_fn(p, x).sum(), params, sn.solvers.gradient_descent(0.1), 2)
"""
        + CHECK
    )


def test_heavy_parts_load_on_first_use():
    run(
        "import sys, softntk; assert not {'neural_tangents', 'matfree', 'matplotlib', 'rich', 'sklearn'} & set(sys.modules)"
    )


def test_neural_tangents_is_the_same_package_afterwards():
    run(
        "from softntk import nt; import neural_tangents as theirs; assert theirs.stax is nt.stax and theirs.batch is nt.batch"
    )


def test_recovers_from_a_failed_import_of_neural_tangents():
    run(
        "import softntk\ntry:\n    import neural_tangents\nexcept Exception: pass\nelse: raise SystemExit('imports unaided')\n"
        "from softntk import nt\nnt.stax.Dense(1)"
    )


def test_unknown_attribute():
    import softntk

    with pytest.raises(AttributeError, match="module 'softntk' has no attribute 'nope'"):
        _ = softntk.nope
    assert "nt" in dir(softntk)
