"""What measures the claims: functions (run, seed, **settings) -> {"effects": ..., "numbers": ...}.

`arithmetic` needs schedules only, `oracle_chains`, `oracle_sampling` and `oracle_paths` exact scores of Gaussian
mixtures, `shipped_sampling`, `shipped_guidance` and `shipped_bound` the shipped model, and `trained_*` networks that
are trained for the purpose.
"""
