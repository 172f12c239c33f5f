"""The contract between trainers and reward services. Imports pydantic and Pillow, nothing of ours."""
