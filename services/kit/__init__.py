"""The service kit: a service brings a `Scorer`; the kit brings batching, cache, limits, auth, metrics and HTTP."""
