"""Checks of arguments: one function for each kind of argument, shared by the whole library.

Each takes the name of the argument first and returns the value, converted: lists, pandas tables and
NumPy arrays become JAX arrays, NumPy scalars become Python numbers. A value that does not fit
raises a ValueError that names the argument, says what was passed and what to do. Conversion comes
first: a value that is finite in float64 but infinite in the precision of JAX is refused.

Values that are traced by jit cannot be checked; the public functions say what they return for
invalid ones.

    as_floating       an array of floating-point numbers, of any or of a given shape
    as_rows           points [n, d], one row for each point
    as_pair           two sets of points that a kernel can compare
    as_scalars        numbers and arrays that are to be combined, of one dtype
    as_integers       an array of integers
    as_real_array     an array of real numbers, of JAX or NumPy
    as_jax_array      a JAX array, without checks
    as_dtype          real numbers, in a given precision; as_weights: none of them negative
    check_number      one real number, within bounds
    check_positive, check_positive_int, check_integer
    check_count       a number of iterations of a compiled loop
    check_flag        True or False
    check_choice      one name of several
    check_key         one random key
    check_callable    a function

These three check an array, or several, and return nothing: ``check_shape``, ``check_finite`` and
``check_shapes_broadcast``. These answer a question: ``is_concrete`` (not traced), ``is_hashable``
and ``is_masked``.
"""

from softntk._core.validation.arrays import as_dtype as as_dtype
from softntk._core.validation.arrays import as_floating as as_floating
from softntk._core.validation.arrays import as_integers as as_integers
from softntk._core.validation.arrays import as_jax_array as as_jax_array
from softntk._core.validation.arrays import as_pair as as_pair
from softntk._core.validation.arrays import as_real_array as as_real_array
from softntk._core.validation.arrays import as_rows as as_rows
from softntk._core.validation.arrays import as_weights as as_weights
from softntk._core.validation.arrays import check_finite as check_finite
from softntk._core.validation.arrays import check_shape as check_shape
from softntk._core.validation.broadcasting import as_scalars as as_scalars
from softntk._core.validation.broadcasting import check_shapes_broadcast as check_shapes_broadcast
from softntk._core.validation.scalars import check_callable as check_callable
from softntk._core.validation.scalars import check_choice as check_choice
from softntk._core.validation.scalars import check_count as check_count
from softntk._core.validation.scalars import check_flag as check_flag
from softntk._core.validation.scalars import check_integer as check_integer
from softntk._core.validation.scalars import check_key as check_key
from softntk._core.validation.scalars import check_number as check_number
from softntk._core.validation.scalars import check_positive as check_positive
from softntk._core.validation.scalars import check_positive_int as check_positive_int
from softntk._core.validation.scalars import is_concrete as is_concrete
from softntk._core.validation.scalars import is_hashable as is_hashable
from softntk._core.validation.scalars import is_masked as is_masked
