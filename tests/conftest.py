"""How Hypothesis draws: the same cases in every run, unless HYPOTHESIS_PROFILE says otherwise."""

import os

from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow draws: a busy machine must not fail a test.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# HYPOTHESIS_PROFILE=explore looks for new cases, ten times as many, different in each run.
settings.register_profile(
    "explore", settings.get_profile("ci"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
