"""The Bayesian solve: priors from the data, conditioning, evidence, and GP-HM as published."""
