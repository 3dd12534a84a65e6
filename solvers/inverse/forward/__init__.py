"""Forward operators, all linear, with exact adjoints."""
