"""Shap-Mix: mixing clips by body part, guided by the class saliency."""
