"""Every statement of the two papers as a function that can be run on your own network and data, with a verdict."""

from softntk.theory._certified_width import CertifiedWidth as CertifiedWidth
from softntk.theory._certified_width import certified_width as certified_width
from softntk.theory.convergence import ConvergenceCertificate as ConvergenceCertificate
from softntk.theory.convergence import certify_convergence as certify_convergence
from softntk.theory.minimum import MinimumCertificate as MinimumCertificate
from softntk.theory.minimum import certify_minimum as certify_minimum
