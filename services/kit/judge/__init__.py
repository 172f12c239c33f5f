"""Asking a judge: a vision-language model behind an OpenAI-compatible server such as vLLM."""
