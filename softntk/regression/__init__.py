"""Softmax-family regressions: losses with gradients and structured curvature in closed form."""

from softntk.regression.attention import Attention as Attention
from softntk.regression.attention import attention as attention
from softntk.regression.bounds import convexity_weight as convexity_weight
from softntk.regression.bounds import lipschitz as lipschitz
from softntk.regression.bounds import normaliser as normaliser
from softntk.regression.leverage import leverage as leverage
from softntk.regression.members import exponential as exponential
from softntk.regression.members import hyperbolic as hyperbolic
from softntk.regression.members import resnet_softmax as resnet_softmax
from softntk.regression.members import softmax as softmax
from softntk.regression.problem import Problem as Problem
from softntk.regression.problem import problem as problem
from softntk.regression.two_layer import two_layer as two_layer
