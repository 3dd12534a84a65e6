"""Curvature of a training loss: the empirical Fisher matrix and its inverse, the Hessian of a linear head, M-FAC."""

from ..core.empirical_fisher import EmpiricalFisher as EmpiricalFisher
from .head import HeadHessian as HeadHessian
from .head import head_hessian as head_hessian
from .window import MFACState as MFACState
from .window import mfac as mfac
from .window import scale_by_mfac as scale_by_mfac
