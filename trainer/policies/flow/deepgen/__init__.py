"""DeepGen: Qwen2.5-VL reads the prompt, learned queries collect what it says, and an SD3.5 transformer draws it."""
