"""Structured curvature: diagonal plus rank two between a matrix and its transpose; leverage scores;
row sampling.
"""

from softntk.curvature import leverage as leverage
from softntk.curvature import sketch as sketch
from softntk.curvature import structured as structured
