"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers.

Every solver is a pure function that returns a `Solution` with ``value, converged, status, error, num_steps``.

Transport
    `sns_sinkhorn`, `sinkhorn`: entropic optimal transport. `unbalanced_sinkhorn`: masses that differ.
    `transport_exactly`: without entropy, to a certified gap.
    `PointCloud`, `Grid`: costs that are never stored. `sinkhorn_divergence`, `monge_gap`, `fit_transport_map`.
    `barycenter` on a given support, `free_support_barycenter` of point clouds.
Inverse problems
    `admm`, `pgd`, `hqs`: data through `Radon`, `Blur`, `FourierSampling`, ..., a prior by its proximal map.
    `LearnedProx`: such a map, learned. `posterior_sample`, `invert`, `tweedie`: priors by a diffusion model's score.
Constrained
    `interior_point`: minimise subject to equations, inequalities and bounds.
    `sketched_newton`: subject to equations. `DenseKKT`, `KrylovKKT`, `SketchProject`: its linear algebra.
Linear
    `sor`, `ssor`, `ssor_cg`, `chebyshev_cg`, `flexible_cg`, `multigrid_cg`, `multigrid_gmres` on `Stencil`,
    `SparseRows`, `MatrixFree`, `AMG`.
    `fit_preconditioner`: a `ConvPreconditioner` that proposes directions to `flexible_cg`.
    `solve_sequence`, `learned_sor`: many related systems, the setting learned by `TsallisINF`, `ChebCB`, ...
Differential equations
    `gp_solve` of a `PDEProblem` on a `Box` with `Dirichlet`, `Neumann`, `Robin`, `Periodic`, `Observe`.
    `collocate`: by a `GaussianField`. `sobolev_descent`: an energy, in as many steps on every grid.
    `weak_residual` against a `wendland` function; `random_grid`, `MultiDomainProblem`; layers `DeepONet`, `MultiONet`,
    `KernelGridEncoder`, `GraphKernelIntegral`.
    `TrackHeuristics` of a diffrax solver: `error_penalty`, `stiffness_penalty`. `reversible_solve`: no memory of steps.
    `lstd`, `martingale_loss`, `td_learning` on `Paths`: value functions of stochastic equations.
First-order, online, private
    `dadao`, `mudag` over a graph, at `gossip_rates`. `diff2` within a privacy budget, `epsilon_to_rho`.
    `target_surrogate`: many steps a gradient. `optimistic_mirror_descent`, `regret`. `policy_gradient`.
    `igt_momentum`, `hessian_aided_momentum`, `storm_momentum` for Optax.
Bilevel
    `hypergradient` by `DirectSolve`, `CGSolve`, `NeumannSeries`, `NystromInverse`. `bsvrb`: many lower problems.
    `lv_hba`: a lower problem with constraints. `single_loop`: both levels at once.
Curvature
    `curvature.hessian`, `curvature.gauss_newton`, `EmpiricalFisher`, `head_hessian`: operators.
    `trace`, `blockwise_trace`: with errors.
    `spectral_density`, `extreme_eigenpairs`, `sgd_stability`. `mfac`, `adahessian`, `slq_heavy_ball` for Optax.
Compression
    `bit_allocation` and its `pareto_front` by `hawq_sensitivity`: bits a layer. `obs_scores`, `obs_update`: pruning.
    `hesso` of `parameter_groups`, then `shrink`: whole channels go while an optimiser trains.
Low rank
    `complete`: a matrix from some of its entries. `robust_recovery`: from measurements some of which are wrong.
    `matrix_sensing` of what a `Measurement` saw: `DenseMeasurements`, `RankOneMeasurements`, `Entries`, `WholeMatrix`.
State space
    `DiagonalSSM`, `DiagonalMIMO`: layers for long sequences, made of `hippo` by `perturb_then_diagonalize`.
    `kalman_filter`, `kalman_smoother` of a `LinearGaussian`; `gp_regression` in linear time.
Tensors
    `gaunt_product`, `gaunt_power`, `gaunt_convolution`: products on the sphere, with `spherical_harmonics`.
    `functional_tucker`: CP and Tucker tensors whose modes are functions, with their uncertainty.
Convex networks
    `train_relu` of a `ConvexReLU`: two-layer ReLU networks, trained to a certificate.
Shared
    `Solution`, `Status`, `SolveError`, `print_progress`, `tqdm_progress`.
"""

import importlib

__version__ = "0.1.0"

FACES: dict[str, tuple[str, ...]] = {
    "transport": (
        "barycenter",
        "fit_transport_map",
        "free_support_barycenter",
        "monge_gap",
        "sinkhorn",
        "sinkhorn_divergence",
        "sns_sinkhorn",
        "stack_ragged",
        "transport_exactly",
        "unbalanced_sinkhorn",
        "BarycenterSolution",
        "DivergenceSolution",
        "ExactSolution",
        "FreeBarycenterSolution",
        "Grid",
        "MapSolution",
        "MongeGapSolution",
        "PointCloud",
        "PublishedSNS",
        "TransportMap",
        "TransportSolution",
        "TransportStatus",
        "UnbalancedSolution",
    ),
    "inverse": (
        "admm",
        "filtered_back_projection",
        "fit_prox",
        "hqs",
        "invert",
        "pgd",
        "posterior_sample",
        "prox_quadratic",
        "tweedie",
        "Blur",
        "Differences",
        "Downsample",
        "FourierSampling",
        "InverseSolution",
        "InverseStatus",
        "LearnedProx",
        "Mask",
        "NoiseSchedule",
        "Radon",
        "TotalVariation",
        "TotalVariationSolution",
    ),
    "constrained": (
        "interior_point",
        "sketched_newton",
        "DenseKKT",
        "DiagonalPreconditioner",
        "InteriorSolution",
        "KKT",
        "KrylovKKT",
        "Multipliers",
        "NewtonSolution",
        "NystromPreconditioner",
        "SketchProject",
    ),
    "linear": (
        "chebyshev_cg",
        "energy_residual_loss",
        "fit_preconditioner",
        "flexible_cg",
        "learned_sor",
        "multigrid_cg",
        "multigrid_gmres",
        "ritz_dataset",
        "solve_sequence",
        "sor",
        "ssor",
        "ssor_cg",
        "young_omega",
        "young_prior",
        "young_rate",
        "AMG",
        "Arms",
        "CGSolution",
        "ConvPreconditioner",
        "HagemanYoung",
        "LinearSolution",
        "LinearStatus",
        "MatrixFree",
        "MultigridSolution",
        "SORSolution",
        "SSORSolution",
        "SequenceSolution",
        "SparseRows",
        "Stencil",
    ),
    "convexnets": (
        "train_relu",
        "ConvexReLU",
        "ConvexReLUSolution",
        "ReLUNetwork",
    ),
    "lowrank": (
        "complete",
        "matrix_sensing",
        "robust_recovery",
        "CompletionSolution",
        "DenseMeasurements",
        "Entries",
        "LowRankSolution",
        "LowRankStatus",
        "Measurement",
        "RankOneMeasurements",
        "RobustSolution",
        "WholeMatrix",
    ),
    "stochastic": (
        "chi1",
        "chi2",
        "dadao",
        "diff2",
        "diff2_noise",
        "epsilon_to_rho",
        "gaussian_delta",
        "gaussian_rho",
        "gossip_rates",
        "hessian_aided_momentum",
        "igt_momentum",
        "mudag",
        "optimistic_descent",
        "optimistic_mirror_descent",
        "play",
        "policy_gradient",
        "policy_hvp",
        "previous_point",
        "regret",
        "rewards_to_go",
        "rho_to_epsilon",
        "storm_momentum",
        "target_surrogate",
        "transported_point",
        "DecentralisedSolution",
        "DecentralisedStatus",
        "DynamicEnsemble",
        "RatesSolution",
        "SurrogateSolution",
        "Trajectory",
    ),
    "bilevel": (
        "bsvrb",
        "hypergradient",
        "lv_hba",
        "single_loop",
        "BilevelSolution",
        "CGSolve",
        "DirectSolve",
        "Hypergradient",
        "LinearSolver",
        "NeumannSeries",
        "NystromInverse",
        "PublishedSteps",
    ),
    "ode": (
        "error_penalty",
        "reversible_solve",
        "stiffness_penalty",
        "Heuristics",
        "TrackHeuristics",
    ),
    "sde": (
        "lstd",
        "martingale_loss",
        "orthogonality",
        "simulate",
        "squared_td_error",
        "td_learning",
        "LinearValue",
        "Moments",
        "Paths",
        "TDLearner",
        "TDState",
    ),
    "pde": (
        "ball_rule",
        "barron_norm",
        "collocate",
        "darcy_residuals",
        "gp_solve",
        "interface_terms",
        "neighbours",
        "random_grid",
        "random_grid_elbo",
        "sobolev_descent",
        "weak_residual",
        "wendland",
        "Box",
        "DeepONet",
        "Dirichlet",
        "FieldSolution",
        "GPSolution",
        "GaussianField",
        "GraphKernelIntegral",
        "KernelGridEncoder",
        "LowRankGaussian",
        "Matern",
        "MultiDomainProblem",
        "MultiONet",
        "Neumann",
        "Observe",
        "PDEProblem",
        "PDEStatus",
        "Periodic",
        "PeriodicKernel",
        "RandomField",
        "PublishedGPHM",
        "PublishedPIG",
        "Robin",
        "SobolevSolution",
        "SpectralMixture",
        "SquaredExponential",
        "StudentMixture",
    ),
    "curvature": (
        "adahessian",
        "batch_hessian_outlier",
        "blockwise_trace",
        "extreme_eigenpairs",
        "head_hessian",
        "hessian_alignment",
        "mfac",
        "scale_by_adahessian",
        "scale_by_mfac",
        "scale_learning_rate",
        "sgd_stability",
        "slq_heavy_ball",
        "spectral_density",
        "trace",
        "AdaHessianState",
        "Alignment",
        "BlockFisher",
        "EigenSolution",
        "EmpiricalFisher",
        "Estimate",
        "HeadHessian",
        "HeavyBallState",
        "MFACState",
        "SGDStability",
        "SpectralDensity",
    ),
    "compression": (
        "bit_allocation",
        "group_scores",
        "hawq_sensitivity",
        "hesso",
        "obs_scores",
        "obs_update",
        "parameter_groups",
        "pareto_front",
        "quantise",
        "shrink",
        "AllocationStatus",
        "BitAllocation",
        "Groups",
        "HessoState",
        "ParetoFront",
        "Quantised",
        "Surgery",
        "Units",
    ),
    "statespace": (
        "gp_regression",
        "hinf_distance",
        "hippo",
        "kalman_filter",
        "kalman_smoother",
        "perturb_then_diagonalize",
        "to_sde",
        "Beliefs",
        "DiagonalMIMO",
        "DiagonalSSM",
        "GPBeliefs",
        "GaussianStatus",
        "LinearGaussian",
        "LinearSystem",
    ),
    "tensor": (
        "functional_tucker",
        "gaunt_convolution",
        "gaunt_power",
        "gaunt_product",
        "spherical_harmonics",
        "FunctionalTucker",
        "TensorStatus",
    ),
    "core": (
        "print_progress",
        "replay",
        "tqdm_progress",
        "ChebCB",
        "ContextBins",
        "ExpertMix",
        "GPBandit",
        "Solution",
        "SolveError",
        "Status",
        "ThompsonRegression",
        "TsallisINF",
    ),
}
"""The public names by family; `__init__.pyi` says the same to type checkers. A family is imported when first used."""

_HOME = {name: family for family, names in FACES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str):
    """Import the family of a public name, or a family by its own name, the first time it is asked for."""
    if name in _HOME:
        thing = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = thing
        return thing
    if name in FACES or name in ("plot", "problems"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *FACES])
