"""Optimal transport: entropic, unbalanced, exact, and the losses built on it."""

from .costs.grid import Grid as Grid
from .costs.pointcloud import PointCloud as PointCloud
from .entropic.alternate_scaling import sinkhorn as sinkhorn
from .entropic.newton import sns_sinkhorn as sns_sinkhorn
from .entropic.published import PublishedSNS as PublishedSNS
from .exact import ExactSolution as ExactSolution
from .exact import transport_exactly as transport_exactly
from .losses.barycenters import BarycenterSolution as BarycenterSolution
from .losses.barycenters import barycenter as barycenter
from .losses.divergence import DivergenceSolution as DivergenceSolution
from .losses.divergence import sinkhorn_divergence as sinkhorn_divergence
from .losses.monge import MapSolution as MapSolution
from .losses.monge import MongeGapSolution as MongeGapSolution
from .losses.monge import TransportMap as TransportMap
from .losses.monge import fit_transport_map as fit_transport_map
from .losses.monge import monge_gap as monge_gap
from .problem import TransportStatus as TransportStatus
from .ragged import stack_ragged as stack_ragged
from .solution import Potentials as Potentials
from .solution import TransportSolution as TransportSolution
from .systems.newton_systems import Cholesky as Cholesky
from .systems.newton_systems import DenseCG as DenseCG
from .systems.sparse_systems import SparseCG as SparseCG
from .unbalanced import UnbalancedSolution as UnbalancedSolution
from .unbalanced import unbalanced_sinkhorn as unbalanced_sinkhorn
