"""Low-rank matrices from linear measurements, with outliers, or from some of their entries."""

from .completion import CompletionSolution as CompletionSolution
from .completion import complete as complete
from .operators import DenseMeasurements as DenseMeasurements
from .operators import Entries as Entries
from .operators import Measurement as Measurement
from .operators import RankOneMeasurements as RankOneMeasurements
from .operators import WholeMatrix as WholeMatrix
from .robust import RobustSolution as RobustSolution
from .robust import robust_recovery as robust_recovery
from .sensing import matrix_sensing as matrix_sensing
from .solution import Factors as Factors
from .solution import LowRankSolution as LowRankSolution
from .solution import LowRankStatus as LowRankStatus
