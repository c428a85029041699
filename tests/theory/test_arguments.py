"""Every argument of every function, given what it is not: an error that names it, or the right
result.
"""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from helpers import assert_close

import softntk as sn
from softntk.theory import bounds, generalisation, lazy
from softntk.theory import feature_learning as fl

X = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
Y = np.array([[0.1], [0.2], [0.1]], np.float32)
GRAM = np.eye(3) + 0.1
KEY = jax.random.key(0)
NET = sn.networks.two_layer("softmax", width=8)
PARAMS = NET.init_fn(KEY, (-1, 2))[1]
OTHER = sn.networks.two_layer("softmax", width=8, out_dim=2).init_fn(KEY, (-1, 2))[1]

ANY_SHAPE = [
    None,
    "a",
    {},
    [[1.0], [1.0, 2.0]],
    np.array([[1j, 2j, 3j]] * 3),
    np.array([[True, False, True]] * 3),
    np.array([["1", "2", "3"]] * 3),
    np.array([[None, 1, 2]] * 3, object),
    scipy.sparse.eye(3).tocsr(),
    lambda t: t,
    np.full((3, 3), np.nan),
]
ARRAYS = [
    *ANY_SHAPE,
    np.ones((2, 2, 2, 2, 2), np.float32),
    np.array([[np.longdouble(10) ** 4000, 1.0, 1.0]] * 3),
    np.zeros((0, 2), np.float32),
]
NUMBERS = [None, "1", {}, [], 1j, float("nan"), -1.0, True, np.ones(2), np.array("a"), object()]
CHOICES = [None, "softmux", {}, ["softmax"], 1, np.array("a")]
NETWORKS = [None, "softmax", lambda p, x: x, (NET.init_fn, NET.apply_fn, NET.kernel_fn)]
WEIGHTS = [
    None,
    "p",
    {},
    X,
    OTHER,
    PARAMS.hidden,
    (None, PARAMS),
    PARAMS.replace(hidden=jnp.full((3, 8), jnp.nan)),
]
KEYS = [None, 0, "k", jnp.zeros(2), jax.random.split(KEY, 3)]
FLAGS = [None, "yes", 1, np.ones(2)]
COUNTS = [None, "1", 0, -1, 1.5, True, [1], np.ones(2)]


def regression():
    return sn.regression.softmax(jnp.eye(3), jnp.ones(3) / 3, 0.1)


def make(width):
    return sn.networks.two_layer("softmax", width=width)


PAPER = {
    "family": CHOICES,
    "n": COUNTS,
    "smallest": NUMBERS,
    "k": COUNTS,
    "sigma": NUMBERS,
    "failure": NUMBERS,
}
PAPER_GOOD = {"family": "softmax", "n": 3, "smallest": 0.1, "k": 1, "sigma": 1.0, "failure": 0.1}
SCALED = {**PAPER, "parameterization": CHOICES, "width": COUNTS, "constants": CHOICES}
SCALED_GOOD = {
    **PAPER_GOOD,
    "parameterization": "paper",
    "width": 8,
    "constants": bounds.AS_REMEMBERED,
}
DATA = {"net": NETWORKS, "params": WEIGHTS, "x": ARRAYS}
DATA_GOOD = {"net": NET, "params": PARAMS, "x": X}

# A function, arguments that it takes, and for some of them what it must refuse.
CASES = {
    "certify_convergence": (
        sn.theory.certify_convergence,
        {**DATA_GOOD, "y": Y},
        {**DATA, "y": ARRAYS},
    ),
    "certified_width": (
        sn.theory.certified_width,
        {"make": make, "x": X, "y": Y, "key": KEY, "smallest": 4, "largest": 8, "precision": 0.1},
        {
            "make": [None, NET, lambda width: make(10), lambda width: X],
            "x": ARRAYS,
            "y": ARRAYS,
            "key": KEYS,
            "smallest": [*COUNTS, 3, 16],
            "largest": COUNTS,
            "precision": [*NUMBERS, 1.0],
        },
    ),
    "certify_minimum": (
        sn.theory.certify_minimum,
        {"p": None, "x0": np.zeros(3)},
        {
            "x0": [
                *ARRAYS,
                np.array([5j, 5j, 5j]),
                np.array(["0", "0", "0"]),
                np.array([True] * 3),
                np.zeros(2),
                0.0,
            ]
        },
    ),
    "required_width": (sn.theory.required_width, PAPER_GOOD, {**PAPER, "constants": CHOICES}),
    "required_steps": (
        sn.theory.required_steps,
        {**PAPER_GOOD, "accuracy": 0.1},
        {**PAPER, "accuracy": NUMBERS},
    ),
    "learning_rate": (bounds.learning_rate, SCALED_GOOD, SCALED),
    "radius": (
        bounds.radius,
        {**PAPER_GOOD, "residual": 1.0, "width": 8},
        {**PAPER, "residual": NUMBERS, "width": COUNTS, "parameterization": CHOICES},
    ),
    "perturbation_bound": (
        bounds.perturbation_bound,
        {**{name: value for name, value in SCALED_GOOD.items() if name != "smallest"}, "R": 0.1},
        {**{name: value for name, value in SCALED.items() if name != "smallest"}, "R": NUMBERS},
    ),
    "smallest_eigenvalue": (
        bounds.smallest_eigenvalue,
        {**SCALED_GOOD, "R": 0.1},
        {**SCALED, "R": NUMBERS},
    ),
    "descent_factor": (
        bounds.descent_factor,
        {"smallest": 0.1, "rate": 0.1, "parameterization": "paper", "width": 8},
        {"smallest": NUMBERS, "rate": NUMBERS, "parameterization": CHOICES, "width": COUNTS},
    ),
    "table": (
        bounds.table,
        {"n": 3, "smallest": 0.1, "accuracy": 0.1},
        {
            "n": COUNTS,
            "smallest": NUMBERS,
            "accuracy": NUMBERS,
            "k": COUNTS,
            "sigma": NUMBERS,
            "failure": NUMBERS,
        },
    ),
    "Constants": (
        bounds.Constants,
        {},
        {
            "width": NUMBERS,
            "step": NUMBERS,
            "step_exponent": [None, "1", {}, float("nan"), True],
            "concentration": [None, {}],
        },
    ),
    "perturbation": (
        sn.theory.perturbation,
        {
            **DATA_GOOD,
            "radii": 0.1,
            "key": KEY,
            "kinds": ("random",),
            "trials": 1,
            "ascent_steps": 1,
        },
        {
            **DATA,
            "radii": [*NUMBERS[:-3], np.ones(2), np.array("a"), np.ones((1, 1))],
            "key": KEYS,
            "kinds": [None, "random", ("randm",), ({},), (), 3],
            "trials": COUNTS,
            "ascent_steps": COUNTS,
            "path": ["a", 3, [3], [OTHER], {}, []],
            "failure": NUMBERS,
            "constants": [None, {}, 1.0],
        },
    ),
    "rkhs_norm": (generalisation.rkhs_norm, {"gram": GRAM, "y": Y}, {"gram": ARRAYS, "y": ARRAYS}),
    "noise_level": (
        generalisation.noise_level,
        {"gram": GRAM, "y": Y},
        {"gram": ARRAYS, "y": ARRAYS},
    ),
    "effective_rank": (generalisation.effective_rank, {"gram": GRAM}, {"gram": ARRAYS}),
    "effective_rank of eigenvalues": (
        generalisation.effective_rank,
        {"gram": None, "eigenvalues": np.ones(3)},
        {
            "eigenvalues": [
                *ARRAYS,
                np.array([[1.0, 2.0], [3.0, 4.0]]),
                np.zeros(3),
                -np.ones(3),
                1.0,
            ]
        },
    ),
    "early_stopping_time": (
        generalisation.early_stopping_time,
        {"gram": GRAM, "noise": 0.1},
        {
            "gram": ARRAYS,
            "noise": NUMBERS,
            "norm": NUMBERS,
            "constant": NUMBERS,
            "learning_rate": [*NUMBERS[1:], 10.0, 1e-320],
        },
    ),
    "least_risk_time": (
        generalisation.least_risk_time,
        {"gram": GRAM, "noise": 0.1},
        {"gram": ARRAYS, "noise": NUMBERS, "norm": NUMBERS},
    ),
    "risk_bound": (
        sn.theory.risk_bound,
        {"gram": GRAM, "y": Y},
        {
            "gram": ARRAYS,
            "y": ARRAYS,
            "failure": NUMBERS,
            "ridge": NUMBERS,
            "time": NUMBERS,
            "unit": NUMBERS,
            "ratio": [*NUMBERS, 1.0],
        },
    ),
    "lazy.distances": (
        lazy.distances,
        {**DATA_GOOD, "y": Y, "learning_rate": 0.1, "steps": 2},
        {
            **DATA,
            "y": ARRAYS,
            "learning_rate": NUMBERS,
            "steps": [*COUNTS, 2**40],
            "x_test": ARRAYS[1:],
            "at": ["a", {}, [0.5], [2, 1], [3], [], 1, [True], np.array([1j])],
            "scale": NUMBERS,
        },
    ),
    "one_step": (
        fl.one_step,
        {**DATA_GOOD, "y": Y, "learning_rate": 0.1},
        {**DATA, "y": ARRAYS, "learning_rate": NUMBERS},
    ),
    "alignment": (
        fl.alignment,
        {"params": PARAMS, "params_after": PARAMS, "direction": np.ones(2, np.float32)},
        {
            "params": [None, {}, X, PARAMS.hidden],
            "params_after": [
                None,
                {},
                X,
                PARAMS.replace(hidden=jnp.ones((2, 6)), readout=jnp.ones((6, 1))),
            ],
            "direction": [*ARRAYS, np.ones(2, np.float16), np.zeros(2, np.float32)],
        },
    ),
    "hermite": (
        fl.hermite,
        {"degree": 2, "z": X},
        {"degree": [None, "1", -1, 1.5, True, [1]], "z": ANY_SHAPE},
    ),
    "target": (
        fl.target,
        {"kind": "hermite", "direction": np.ones(2, np.float32)},
        {"kind": CHOICES, "direction": ARRAYS, "degree": COUNTS},
    ),
    "corrupt": (
        fl.corrupt,
        {"kind": "flips", "y": Y, "size": 0.1, "key": KEY},
        {"kind": CHOICES, "y": ARRAYS, "size": [*NUMBERS, 1.5], "key": KEYS},
    ),
    "corrupt for a kernel": (
        fl.corrupt,
        {"kind": "adversarial", "y": Y, "size": 0.1, "gram": GRAM},
        {"size": NUMBERS, "gram": [*ARRAYS, np.eye(2)]},
    ),
    "features": (fl.features, DATA_GOOD, DATA),
    "ridge_features": (
        fl.ridge_features,
        {"train": X, "y": Y, "test": X},
        {"train": ARRAYS, "y": ARRAYS, "test": ARRAYS, "ridge": [*NUMBERS[1:], 0.0]},
    ),
    "ledger": (
        sn.theory.ledger,
        {"match": "lemma: ‖f‖ ≤ 1"},
        {
            "quick": FLAGS,
            "match": [None, 1, {}, "no such statement"],
            "seed": [None, -1, 1.5, "a", True],
            "progress": FLAGS,
            "statements": [3, [], [3], "abc", {}],
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_argument_is_not(name, untyped):
    function, good, wrong = CASES[name]
    if name == "certify_minimum":
        good = {**good, "p": regression()}
    for argument, cases in wrong.items():
        for case in cases:
            with pytest.raises((ValueError, TypeError)) as raised:
                function(**{**good, argument: case})
            assert argument in str(raised.value), f"{name}, {argument} = {case!r}: {raised.value}"
            assert "\n" not in str(raised.value)


def test_a_critical_rank_is_of_samples(untyped):
    ranks = generalisation.effective_rank(None, eigenvalues=[3, 2, 1])
    assert_close(ranks.rank, 2.0)
    for samples in COUNTS:
        with pytest.raises(ValueError, match="samples must be a positive integer"):
            ranks.variance(samples)
    for b in NUMBERS:
        with pytest.raises(ValueError, match="b must be a positive"):
            ranks.critical(2, b)


def test_the_nearest_name_is_suggested(untyped):
    for call, nearest in [
        (lambda: bounds.required_width("softmx", 3, 0.1), "softmax"),
        (lambda: bounds.descent_factor(0.1, 0.1, parameterization="papr", width=2), "paper"),
        (lambda: fl.target("hermit", np.ones(2)), "hermite"),
        (lambda: fl.corrupt("gausian", Y, 0.1), "gaussian"),
        (lambda: sn.theory.perturbation(NET, PARAMS, X, 0.1, key=KEY, kinds=("randm",)), "random"),
    ]:
        with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
            call()


def test_what_must_be_known_is_not_traced(untyped):
    p = regression()
    for call, name in [
        (lambda t: sn.theory.certify_convergence(NET, PARAMS, t * X, Y), "x"),
        (lambda t: sn.theory.certify_minimum(p, t * np.ones(3)), "x0"),
        (lambda t: bounds.growth(3, sigma=t), "sigma"),
        (lambda t: generalisation.rkhs_norm(t * GRAM, Y), "gram"),
        (lambda t: generalisation.rkhs_norm(GRAM, t * Y), "y"),
        (lambda t: generalisation.early_stopping_time(GRAM, t), "noise"),
        (lambda t: fl.ridge_features(t * X, Y, X), "train"),
        (lambda t: sn.theory.perturbation(NET, PARAMS, X, t, key=KEY), "radii"),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be known, but is traced"):
            jax.jit(call)(jnp.float32(1.0))


def test_an_activation_that_borrows_a_name_has_no_certificate(untyped):
    """Certificates are about functions, not about their names."""
    false = sn.activations.from_function(jnp.tanh, "exp", sn.activations.get("relu").moments)
    net = sn.networks.two_layer(activation=false, normalize=True, width=8)
    assert "none for 'exp'" in sn.theory.certify_convergence(net, PARAMS, X, Y).reason
    p = sn.regression.problem(
        np.eye(3, dtype=np.float32), np.ones(3, np.float32), false, "plain", 1.0
    )
    assert "none for 'exp'" in sn.theory.certify_minimum(p, np.zeros(3)).reason
    found = sn.theory.perturbation(net, PARAMS, X, 0.1, key=KEY, kinds=("random",), trials=1)
    assert found.ours_frobenius[0] == np.inf
