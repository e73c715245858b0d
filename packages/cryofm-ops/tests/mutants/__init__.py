"""Deliberately broken operators, noises and likelihoods, each with the check that is meant to catch it."""
