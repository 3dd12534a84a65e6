"""Fields with closed-form derivatives, fitted to differential equations at points."""
