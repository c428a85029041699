"""Optimisers as optax transforms, and the loops that run them."""

from softntk.solvers import step_sizes as step_sizes
from softntk.solvers._contraction import Contraction as Contraction
from softntk.solvers._contraction import contraction as contraction
from softntk.solvers._minimise import minimise as minimise
from softntk.solvers._trial import Step as Step
from softntk.solvers.natural_gradient import NaturalGradientState as NaturalGradientState
from softntk.solvers.natural_gradient import natural_gradient as natural_gradient
from softntk.solvers.newton import NewtonState as NewtonState
from softntk.solvers.newton import approx_newton as approx_newton
from softntk.solvers.newton import scale_by_approx_newton as scale_by_approx_newton
from softntk.solvers.training import train as train
from softntk.solvers.transforms import gradient_descent as gradient_descent
