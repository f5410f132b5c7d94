"""`rehearse=true`: a recipe made from the recipe, with tiny random models, run by the very same pipeline.

check.py refuses what would stop the real run; recipe.py makes the rehearsed recipe (its parts: _sources, _tokenizers,
_checkpoints, _data); run.py runs it and says what was proven.
"""
