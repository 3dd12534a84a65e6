"""What every family builds on: solutions, the loop, implicit derivatives, Krylov methods."""
