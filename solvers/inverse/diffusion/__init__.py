"""Diffusion priors: noise schedules, Tweedie's formulas, deterministic and posterior sampling."""
