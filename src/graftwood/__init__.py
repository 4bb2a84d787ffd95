"""Tune pre-trained generative models without breaking what they already know."""
