"""Optimisers as optax transforms, and the loops that run them."""

from softntk.solvers.training import train as train
from softntk.solvers.transforms import gradient_descent as gradient_descent
