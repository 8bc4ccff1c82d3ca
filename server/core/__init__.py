"""The rules, pure: no IO, no clock, no randomness. Time arrives as an argument."""
