"""Softmax-family regressions: losses with gradients and structured curvature in closed form."""

from softntk._core.old_paths import keep_old_paths
from softntk.regression._attention import Attention as Attention
from softntk.regression._attention import attention as attention
from softntk.regression._bounds import convexity_weight as convexity_weight
from softntk.regression._bounds import lipschitz as lipschitz
from softntk.regression._bounds import normaliser as normaliser
from softntk.regression._cross_entropy import CrossEntropy as CrossEntropy
from softntk.regression._cross_entropy import cross_entropy as cross_entropy
from softntk.regression._cross_entropy_operator import CrossEntropyOperator as CrossEntropyOperator
from softntk.regression._cross_entropy_operator import (
    CrossEntropyParameters as CrossEntropyParameters,
)
from softntk.regression._leverage_inversion import leverage as leverage
from softntk.regression._members import exponential as exponential
from softntk.regression._members import hyperbolic as hyperbolic
from softntk.regression._members import resnet_softmax as resnet_softmax
from softntk.regression._members import softmax as softmax
from softntk.regression._problem import Problem as Problem
from softntk.regression._problem import problem as problem
from softntk.regression._two_layer import two_layer as two_layer

keep_old_paths(
    __name__,
    {
        "problem": "_problem",
        "members": "_members",
        "attention": "_attention",
        "two_layer": "_two_layer",
        "leverage": "_leverage_inversion",
        "bounds": "_bounds",
        "implicit": "_residual_problem",
    },
)
