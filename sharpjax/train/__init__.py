"""Plans of studies, and what carries out their stages: training, derived models, evaluators."""
