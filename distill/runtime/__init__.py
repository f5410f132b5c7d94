"""Ways to run a package: `hf.py` with transformers, `llama_cpp.py` with llama.cpp."""
