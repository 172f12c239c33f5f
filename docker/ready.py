"""The image's health check: exit 0 when the service on port $PORT of this container answers /ready with 200."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["PORT"]), timeout=4)
try:
    connection.request("GET", "/ready")
    sys.exit(connection.getresponse().status != 200)
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer: {error}")
