"""A workbench for prescriptive interpretability."""
