"""Localises the gap: attribution by stratum, profiles, samples and worst tokens."""
