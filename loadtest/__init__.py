"""Open-loop load against a reward service: requests leave at their times, whether or not earlier ones came back."""
