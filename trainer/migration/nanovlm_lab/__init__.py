"""YAML files of NanoVLM-Lab: SFT, DPO and GRPO of small vision-language models, as recipes of ours."""
