"""What every family builds on: solutions, the loop, implicit derivatives, Krylov methods."""

from .bandits.gaussian_process import GPBandit as GPBandit
from .bandits.learners import ContextBins as ContextBins
from .bandits.learners import ExpertMix as ExpertMix
from .bandits.learners import TsallisINF as TsallisINF
from .bandits.learners import replay as replay
from .bandits.regression import ChebCB as ChebCB
from .bandits.regression import ThompsonRegression as ThompsonRegression
from .progress import print_progress as print_progress
from .progress import tqdm_progress as tqdm_progress
from .solution import Solution as Solution
from .solution import SolveError as SolveError
from .solution import Status as Status
