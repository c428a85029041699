"""The statements of the two papers as functions that run on your own network and data.

Bounds, certificates, perturbations and stopping times; :func:`ledger` checks every statement and
returns a verdict for each.
"""

from softntk._core.old_paths import keep_old_paths
from softntk.theory import bounds as bounds
from softntk.theory import feature_learning as feature_learning
from softntk.theory import generalisation as generalisation
from softntk.theory import lazy as lazy
from softntk.theory._certificates.convergence import (
    ConvergenceCertificate as ConvergenceCertificate,
)
from softntk.theory._certificates.convergence import certify_convergence as certify_convergence
from softntk.theory._certificates.minimum import MinimumCertificate as MinimumCertificate
from softntk.theory._certificates.minimum import certify_minimum as certify_minimum
from softntk.theory._certificates.width import CertifiedWidth as CertifiedWidth
from softntk.theory._certificates.width import certified_width as certified_width
from softntk.theory._ledger.run import ledger as ledger
from softntk.theory._perturbation.measure import Perturbation as Perturbation
from softntk.theory._perturbation.measure import perturbation as perturbation
from softntk.theory.bounds import required_steps as required_steps
from softntk.theory.bounds import required_width as required_width
from softntk.theory.generalisation import early_stopping_time as early_stopping_time
from softntk.theory.generalisation import effective_rank as effective_rank
from softntk.theory.generalisation import least_risk_time as least_risk_time
from softntk.theory.generalisation import noise_level as noise_level
from softntk.theory.generalisation import rkhs_norm as rkhs_norm
from softntk.theory.generalisation._risk import risk_bound as risk_bound

# Modules that had these names before; their public names stay importable from there.
keep_old_paths(
    __name__,
    {
        "convergence": "_certificates.convergence",
        "minimum": "_certificates.minimum",
        "risk": "generalisation._risk",
    },
)
