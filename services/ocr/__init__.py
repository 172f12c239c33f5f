"""OCR reward: how much of the text a prompt asks for can be read in the image."""

import os

# Here, because every process that reads text imports this package before onnxruntime. Without it onnxruntime writes a
# device id and usage events below ~/.cache and tries to send them. A set variable wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
