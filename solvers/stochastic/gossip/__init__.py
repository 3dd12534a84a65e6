"""Minimising over a network by gossip: what rates are worth, asynchronous and synchronous methods."""
