"""Shap-Mix: mixing skeleton clips by body part and time window, guided by Shapley values of the parts."""

__version__ = "0.1.0"
