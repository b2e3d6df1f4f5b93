"""Where the gap lies: strata, profiles, samples, the worst."""
