"""Curvature of regressions: structured Hessians, leverage scores, row sampling."""

from softntk.curvature import leverage as leverage
from softntk.curvature import sketch as sketch
from softntk.curvature import structured as structured
