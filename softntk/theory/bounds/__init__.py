"""The first paper's statements as numbers: width, steps, step size and radius for three families.

The families are softmax, exp and ReLU. The symbols are n points, k outputs, λ = λ_min of the
infinite-width kernel, failure probability δ, and B = max(Cσ√log(nk/δ), 1) (:func:`growth`). For
``parameterization="ntk"``:

| | softmax, exp | relu |
|---|---|---|
| :func:`required_width` m | λ⁻² n²k² e^{18B} log²(nk/δ) | λ⁻² n²k² log(nk/δ) |
| :func:`required_steps` T | 20 λ⁻² n²k² e^{16B} log(nk/ε) | 20 λ⁻² n²k² log(nk/ε) |
| :func:`learning_rate` η | 0.1 λ/(n²k² e^{16B}) | 0.1 λ/(n²k²) |
| :func:`radius` D | 4 m^{-1/2} λ⁻¹ e^{3B} √(nk) ‖Y − F(0)‖ | 4 m^{-1/2} λ⁻¹ √(nk) ‖Y − F(0)‖ |
| :func:`perturbation_bound` | R n k e^{10B} | 2 R n k/σ |
| :func:`smallest_eigenvalue` | ¾λ − the bound above | ¾λ − the bound above |
| :func:`descent_factor` | 1 − ηλ/2 | 1 − ηλ/2 |

The paper writes F = m⟨a, softmax⟩, √m times our F (``parameterization="paper"``). There kernels are
m times as large, and so are their changes. Learning rates are m times smaller, and D is 4 m⁻¹ λ⁻¹
…, for residuals that are √m times as large. The λ of every function is that of the "ntk" kernel,
which is λ_min(kernel)/m of the "paper" kernel.

The paper's full text was not available. Exponents and constants are as remembered, so they are
fields of :class:`Constants`. Constants that Ω hides are 1, except for T, whose 20 = 2/0.1 makes
(1 − ηλ/2)^T nk ≤ ε true. The paper compares with ReLU for k = 1; k and δ enter its column by
analogy. Everything is computed in logarithms: a width of 1e40 is a number, and +inf stands for
numbers beyond the largest float.

Example:
    >>> from softntk.theory import bounds
    >>> for row in bounds.table(100, 0.1, 1e-3, sigma=0.3):
    ...     print(row)
    relu     m ~ λ⁻² n² log n            = 6.9e+06   T ~ λ⁻² n² log(n/ε)         = 2.3e+08
    exp      m ~ λ⁻² n^{2+o(1)} log² n   = 3.1e+15   T ~ λ⁻² n^{2+o(1)} log(n/ε) = 2.0e+15
    softmax  m ~ λ⁻² n^{2+o(1)} log² n   = 3.1e+15   T ~ λ⁻² n^{2+o(1)} log(n/ε) = 2.0e+15

Source: arXiv 2405.03251, the main theorem, its lemmas, and its table;
MATHEMATICS.md#convergence-statements.
"""

from softntk.theory.bounds._ball import perturbation_bound as perturbation_bound
from softntk.theory.bounds._ball import radius as radius
from softntk.theory.bounds._ball import smallest_eigenvalue as smallest_eigenvalue
from softntk.theory.bounds._constants import AS_REMEMBERED as AS_REMEMBERED
from softntk.theory.bounds._constants import FAMILIES as FAMILIES
from softntk.theory.bounds._constants import Constants as Constants
from softntk.theory.bounds._constants import growth as growth
from softntk.theory.bounds._width_and_steps import Row as Row
from softntk.theory.bounds._width_and_steps import descent_factor as descent_factor
from softntk.theory.bounds._width_and_steps import learning_rate as learning_rate
from softntk.theory.bounds._width_and_steps import required_steps as required_steps
from softntk.theory.bounds._width_and_steps import required_width as required_width
from softntk.theory.bounds._width_and_steps import table as table
