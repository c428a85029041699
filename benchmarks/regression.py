"""Regressions and their curvature: gradient and Hessian against bare products with A, automatic
differentiation and lineax.

Prints one table a claim: dense problems, sparse ones over the number of nonzeros, attention,
samples of rows, and how tight the bounds of ``softntk.regression._bounds`` are on random instances.
"""

import argparse
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.experimental import sparse
from timing import alternate

import softntk as sn
from softntk.curvature import leverage, sketch

two_products = jax.jit(lambda A, x, g: (A @ x, g @ A))
gram_product = jax.jit(lambda A, D: A.T @ (D[:, None] * A))


def temporaries(function: Any, *args: Any) -> int:
    """Bytes that a compiled function holds beside its arguments and results."""
    return function.lower(*args).compile().memory_analysis().temp_size_in_bytes


def dense(n: int, d: int, repeats: int) -> None:
    """Gradient, assembly and products at (n, d), in units of what they cannot do without; memory
    beside A.
    """
    A = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)) / d**0.5)
    b, D, x = jnp.full(n, 1 / n), jnp.ones(n), jnp.full(d, 0.1)
    for activation, form in (
        ("exp", "normalized"),
        ("res_exp", "normalized"),
        ("cosh", "rescaled"),
        ("exp", "plain"),
    ):
        p = sn.regression.problem(A, b, activation, form, 0.1)
        gradient, by_autodiff = (
            jax.jit(lambda p, x: p.gradient(x)),
            jax.jit(jax.grad(lambda x, p: p(x))),
        )
        assembled = jax.jit(lambda p, x: p.hessian(x).as_matrix())
        # The products of others, linearised once, as ours is.
        linear = jax.jit(jax.linearize(jax.grad(p), x)[1])
        jacobian = lx.JacobianLinearOperator(
            lambda x, _, p=p: jax.grad(p)(x), x, tags=lx.symmetric_tag
        )
        linearised = lx.linearise(jacobian)
        H, lineax_product = p.hessian(x), jax.jit(lambda v, op=linearised: op.mv(v))
        seconds = alternate(
            {
                "products": lambda: two_products(A, x, D),
                "gradient": lambda p=p, f=gradient: f(p, x),
                "autodiff": lambda p=p, f=by_autodiff: f(x, p),
                "gram": lambda: gram_product(A, D),
                "assembly": lambda p=p, f=assembled: f(p, x),
                "Hv": lambda H=H: H.mv(x),
                "linearize": lambda f=linear: f(x),
                "lineax": lambda f=lineax_product: f(x),
            },
            repeats,
        )
        temporary = temporaries(gradient, p, x)
        ratio = lambda a, b, s=seconds: f"{s[a] / s[b]:.2f}"
        print(
            f"{form} {activation}: gradient {ratio('gradient', 'products')} of two products with A "
            f"(jax.grad {ratio('autodiff', 'products')}), {temporary / (8 * n):.1f} n numbers beside A; assembly "
            f"{ratio('assembly', 'gram')} of AᵀDA; Hv {ratio('Hv', 'products')} "
            f"(jax.linearize {ratio('linearize', 'products')}, lineax {ratio('lineax', 'products')})",
            flush=True,
        )


def against_jax_hessian(n: int, d: int, repeats: int) -> None:
    """The whole matrix, where jax.hessian can still do it."""
    A = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)) / d**0.5)
    p, x = sn.regression.resnet_softmax(A, jnp.full(n, 1 / n)), jnp.full(d, 0.1)
    theirs, ours = (
        jax.jit(jax.hessian(lambda x, p: p(x))),
        jax.jit(lambda x, p: p.hessian(x).as_matrix()),
    )
    seconds = alternate({"theirs": lambda: theirs(x, p), "ours": lambda: ours(x, p)}, repeats)
    print(
        f"matrix at n {n}, d {d}: jax.hessian {seconds['theirs'] / seconds['ours']:.1f} times as long",
        flush=True,
    )


def over_nonzeros(n: int, d: int, repeats: int) -> None:
    """Sparse gradients and approximate leverage scores; the slope of time over nonzeros."""
    densities = (0.02, 0.04, 0.08, 0.16)
    rng, times = np.random.default_rng(0), {"gradient": [], "approximate scores": []}
    scores = jax.jit(lambda A: leverage.approximate_scores(jax.random.key(0), A))
    for density in densities:
        nonzeros = int(density * n * d)
        index = np.unravel_index(rng.choice(n * d, nonzeros, replace=False, shuffle=False), (n, d))
        order = np.lexsort(index[::-1])
        indices = jnp.asarray(np.stack(index, axis=1)[order])
        data, known = (
            jnp.asarray(rng.normal(size=nonzeros)),
            {"indices_sorted": True, "unique_indices": True},
        )
        A = sparse.BCOO((data, indices), shape=(n, d), **known)
        p, x = sn.regression.resnet_softmax(A, jnp.full(n, 1 / n)), jnp.full(d, 0.1)
        seconds = alternate(
            {
                "gradient": lambda p=p, x=x: p.gradient(x),
                "approximate scores": lambda A=A: scores(A),
            },
            repeats,
        )
        for name, value in seconds.items():
            times[name].append(value)
    for name, values in times.items():
        slope = np.polyfit(np.log(densities), np.log(values), 1)[0]
        print(
            f"sparse, n {n}, d {d}: {name} {values[0]:.3f} … {values[-1]:.3f} s, nonzeros^{slope:.2f}",
            flush=True,
        )


def attention(n: int, d: int, repeats: int) -> None:
    """One product with the Hessian of attention regression."""
    A1, A2 = (jax.random.normal(jax.random.key(i), (n, d)) / d**0.5 for i in range(2))
    p, X = sn.regression.attention(A1, A2, jnp.eye(n)), jnp.eye(d)
    H = p.hessian(X)
    product = jax.jit(lambda H, V: H.mv(V))
    theirs = jax.jit(lambda p, X, V: jax.jvp(jax.grad(p), (X,), (V,))[1])
    seconds = alternate({"ours": lambda: product(H, X), "theirs": lambda: theirs(p, X, X)}, repeats)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(H)) + temporaries(product, H, X)
    error = jnp.max(jnp.abs(H.mv(X) - theirs(p, X, X))) / jnp.max(jnp.abs(H.mv(X)))
    print(
        f"attention, n {n}, d {d}: a product {1e3 * seconds['ours']:.1f} ms, {held / 1e6:.0f} MB; forward over reverse "
        f"{seconds['theirs'] / seconds['ours']:.1f} times as long; they differ by {error:.0e}",
        flush=True,
    )


def samples(n: int, d: int, draws: int) -> None:
    """The ε of samples of 20 d log d rows, by kind of sampling, on coherent and incoherent A."""
    rng, size = np.random.default_rng(0), int(20 * d * np.log(d))
    coherent = rng.standard_t(1.5, size=(n, d))
    coherent[:, -1] = 0
    coherent[[3, n // 2], -1] = 1.0
    keys = jax.random.split(jax.random.key(0), draws)
    for name, A in (
        ("incoherent", jnp.asarray(rng.normal(size=(n, d)))),
        ("coherent", jnp.asarray(coherent)),
    ):
        ratio = leverage.approximate_scores(jax.random.key(1), A) / leverage.scores(A)
        line = [f"scores within {max(float(ratio.max()), 1 / float(ratio.min())):.2f}"]
        for kind in ("uniform", "row_norm", "leverage", "approximate_leverage"):
            pi, gram = sketch.probabilities(kind, A), A.T @ A
            found = jax.lax.map(
                lambda key, pi=pi, A=A, g=gram: sketch.distortion(
                    sketch.draw(key, pi, size).gram(A), g
                ),
                keys,
            )
            line.append(
                f"{kind} {float(jnp.median(found)):.2f} ({100 * float(jnp.mean(found <= 0.5)):.1f} % below ½)"
            )
        print(
            f"{size} of {n} {name} rows, d {d}: median ε {', '.join(line[1:])}; {line[0]}",
            flush=True,
        )


def tightness(count: int) -> None:
    """Bounds over the largest value seen, on random instances."""
    sizes, rng = list(itertools.product((2, 5, 9), (1, 3))), np.random.default_rng(0)
    derivatives = jax.jit(
        lambda p, x, h: (
            jax.jacfwd(p.predict)(x),
            jax.hessian(p)(x),
            jax.jvp(jax.hessian(p), (x,), (h,))[1],
            jnp.sum(p.activation.u(p.A @ x)),
        )
    )
    for activation, form in (
        ("exp", "normalized"),
        ("res_exp", "normalized"),
        ("cosh", "normalized"),
        ("exp", "plain"),
    ):
        best = np.zeros(4)
        for i in range(count):
            n, d = sizes[i % len(sizes)]
            A, b, radius = (
                rng.normal(size=(n, d)) * rng.choice([0.1, 0.5, 2.0]),
                rng.dirichlet(np.full(n, 0.3)),
                rng.choice([0.1, 0.5, 2.0]),
            )
            x, h = rng.normal(size=(2, d))
            x *= radius * rng.random() ** (1 / d) / np.linalg.norm(x)
            p = sn.regression.problem(A, b, activation, form)
            J, H, T, alpha = (
                np.asarray(part)
                for part in derivatives(p, jnp.asarray(x), jnp.asarray(h / np.linalg.norm(h)))
            )
            bounds, lower = (
                sn.regression.lipschitz(p, radius),
                sn.regression.normaliser(p, radius).ours,
            )
            seen = [
                np.linalg.norm(part, 2) / bound.ours
                for part, bound in zip((J, H, T), bounds, strict=True)
            ]
            best = np.maximum(best, np.array([*seen, lower / float(alpha) if alpha > 0 else 0.0]))
        text = ", ".join(f"{1 / value:.1f}" for value in best)
        print(
            f"bound / largest of {count}, {form} {activation}: predict, gradient, Hessian, normaliser {text}",
            flush=True,
        )


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    with jax.enable_x64(True):
        dense(200_000, 100, options.repeats)
        against_jax_hessian(20_000, 100, 3)
        over_nonzeros(50_000, 100, options.repeats)
        attention(512, 32, options.repeats)
        samples(20_000, 20, 200)
        tightness(1000)


if __name__ == "__main__":
    main()
