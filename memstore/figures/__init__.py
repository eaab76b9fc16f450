"""Figures and tables, drawn as text or as PNG; knows no memory."""
