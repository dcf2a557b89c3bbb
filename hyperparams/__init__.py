"""RL Zoo's hyperparameter files: one `<algorithm>.yml` each, with one entry per environment."""
