"""Costs of transport, stored or computed when needed."""
