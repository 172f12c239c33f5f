"""What users of other trainers bring: their files, flags and environment variables, read, checked and translated."""
