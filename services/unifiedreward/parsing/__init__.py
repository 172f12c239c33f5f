"""Readers of the judge's answers, one module per family of formats. Strict: what is not clearly said is a ParseError."""
