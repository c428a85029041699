"""Statements of [S], [D] and [H]: definitions and derivatives of their regressions."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from softntk import activations
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import (
    EQUALITY_TOLERANCE,
    Case,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements.regression_cases import (
    REGRESSION_AXES,
    build_problem,
    point,
    tall_case,
)

Comparison = Callable[[Case, str, oracles.Derivatives], Instance]
"""Compares softntk's value for a case and an activation with the oracle's derivatives."""

MIN_NORMALISER = 0.5
"""Equalities are measured where |α| is at least this, so that α is not lost against its terms."""


def check_derivative(
    name: str, compare: Comparison, form: str = "normalized"
) -> Callable[[Case], Instance | None]:
    """Return a check that compares softntk's value with automatic differentiation."""

    def check(case: Case) -> Instance | None:
        exact = oracles.regression(case["A"], case["b"], case["w"], case["x"], name, form)
        if abs(float(exact.alpha)) < MIN_NORMALISER:
            return None
        return compare(case, name, exact)

    return check


def activation_values(case: Case, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return u, u' and α from softntk's table of activations."""
    # Not shifted: α itself is one of the quantities.
    z = jnp.asarray(case["A"] @ case["x"])
    u = np.asarray(activations.get(name).u(z))
    du = np.asarray(activations.get(name).du(z))
    return u, du, float(u.sum())


def compare_loss(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare the loss with its definition."""
    return equal(build_problem(case, name)(point(case)), exact.loss)


def compare_prediction(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare the prediction f with its definition."""
    return equal(build_problem(case, name).predict(point(case)), exact.f)


def compare_activation_jacobian(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare du/dx by softntk's u' with the Jacobian of u(Ax)."""
    _, du, _ = activation_values(case, name)
    return equal(du[:, None] * case["A"], exact.jacobian_u)


def compare_normaliser_gradient(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare dα/dx by softntk's u' with the gradient of α."""
    _, du, _ = activation_values(case, name)
    return equal(du @ case["A"], exact.alpha_gradient)


def compare_prediction_jacobian(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare df/dx by softntk's u and u' with the Jacobian of f."""
    # The quotient rule: df = (du − f dα)/α.
    u, du, alpha = activation_values(case, name)
    v = du / alpha
    f = u / alpha
    return equal((np.diag(v) - np.outer(f, v)) @ case["A"], exact.jacobian)


def compare_gradient(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare the gradient of the loss with its derivative."""
    return equal(build_problem(case, name).gradient(point(case)), exact.gradient)


def compare_hessian(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare the Hessian of the loss with its second derivative."""
    return equal(build_problem(case, name).hessian(point(case)).as_matrix(), exact.hessian)


def measure_rank_two(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Measure the third singular value of B − diag(D), which must vanish."""
    # The diagonal D comes from the package, the matrix from the oracle.
    hessian = build_problem(case, name, weighted=False).hessian(point(case))
    D = np.asarray(hessian.logit_diagonal)
    low_rank_part = np.asarray(exact.logit_hessian) - np.diag(D)
    singular_values = np.linalg.svd(low_rank_part, compute_uv=False)
    relative_value = singular_values[2] / max(singular_values[0], np.abs(D).max())
    return Instance(EQUALITY_TOLERANCE, float(relative_value))


def compare_gauss_newton(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare the Gauss–Newton matrix with JᵀJ."""
    # Without weights: another statement compares their part.
    J = np.asarray(exact.jacobian)
    gauss_newton = build_problem(case, name, weighted=False).gauss_newton(point(case))
    return equal(gauss_newton.as_matrix(), J.T @ J)


def compare_penalty_hessian(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare Aᵀdiag(w²)A with the Hessian of the penalty ½‖diag(w)Ax‖²."""
    return equal(case["A"].T @ (case["w"][:, None] ** 2 * case["A"]), exact.penalty)


def compare_rescaled(case: Case, name: str, exact: oracles.Derivatives) -> Instance:
    """Compare gradient and Hessian of the rescaled form."""
    # One error for both, so that neither is lost beside the other's size.
    problem = build_problem(case, name, form="rescaled")
    gradient = np.asarray(problem.gradient(point(case))).ravel()
    hessian = np.asarray(problem.hessian(point(case)).as_matrix()).ravel()
    return equal(
        np.concatenate([gradient, hessian]),
        np.concatenate([np.ravel(exact.gradient), np.ravel(exact.hessian)]),
    )


COMPARISONS: tuple[tuple[str, str, Comparison], ...] = (
    ("definition: loss", "L = ½‖f − b‖² + ½‖diag(w)Ax‖², f = u/⟨u, 1⟩", compare_loss),
    ("definition: f", "f = α⁻¹u, α = ⟨u, 1⟩", compare_prediction),
    ("derivative: du/dx", "du/dx_i = u'(Ax)∘A_{∗i}", compare_activation_jacobian),
    ("derivative: dα/dx", "dα/dx_i = ⟨u'(Ax), A_{∗i}⟩", compare_normaliser_gradient),
    (
        "derivative: df/dx",
        "df/dx_i = dc/dx_i = v∘A_{∗i} − f⟨v, A_{∗i}⟩, v = u'/α",
        compare_prediction_jacobian,
    ),
    ("derivative: dL/dx", "∇L = Aᵀ(v∘(c − ⟨c, f⟩) + w²∘Ax)", compare_gradient),
    ("Hessian", "∇²L = Aᵀ(B + diag(w²))A", compare_hessian),
    (
        "Hessian: B = diagonal + rank two",
        "the third singular value of B − diag(D) vanishes",
        measure_rank_two,
    ),
    (
        "Hessian: part of Gauss and Newton",
        "(df/dx)ᵀ(df/dx), without u''",
        compare_gauss_newton,
    ),
    ("Hessian: weights", "∇²½‖diag(w)Ax‖² = Aᵀdiag(w²)A", compare_penalty_hessian),
)
PRINTED_TITLES = ("definition: f", "Hessian: B = diagonal + rank two")
SOFTMAX_TITLES = (
    "definition: loss",
    "derivative: dL/dx",
    "Hessian",
    "Hessian: B = diagonal + rank two",
)

STATEMENTS = (
    # [S] is about u = e^z + z.
    *(
        Statement(
            f"[S] {title}",
            claim,
            tall_case,
            check_derivative("res_exp", compare),
            REGRESSION_AXES,
            equality=True,
            count=20,
            source="printed" if title in PRINTED_TITLES else "as remembered",
        )
        for title, claim, compare in COMPARISONS
    ),
    # [D] is about u = e^z: rows that would only repeat those of [S] are left out.
    *(
        Statement(
            f"[D] {title}",
            claim,
            tall_case,
            check_derivative("exp", compare),
            REGRESSION_AXES,
            equality=True,
            count=20,
        )
        for title, claim, compare in COMPARISONS
        if title in SOFTMAX_TITLES
    ),
    # [H] is about residuals that are not divided by α.
    *(
        Statement(
            reference,
            f"of ½‖{name}(Ax) − αb‖² + ½‖diag(w)Ax‖²",
            tall_case,
            check_derivative(name, compare_rescaled, "rescaled"),
            REGRESSION_AXES,
            equality=True,
            count=20,
        )
        for reference, name in (
            ("[H] gradient and Hessian", "cosh"),
            ("[H] gradient and Hessian, sinh", "sinh"),
            ("[H] gradient and Hessian, exp", "exp"),
        )
    ),
)
