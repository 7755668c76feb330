"""Signatures over whole versions: who says that these files are the model.

A signature is a bundle, bytes in a form that a plugin knows (`port`), kept beside
the version (`shelf`), made of the sha256 that the manifest has (`making`) and held
against them again (`checking`), so that no byte of the model is read for it.
"""
