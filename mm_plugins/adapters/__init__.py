"""Model Manager in the words of other tools: Kedro, MLflow and pytest.

Each module needs the tool that it is for, and is imported by that tool alone.
"""
