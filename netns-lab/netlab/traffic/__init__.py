# SPDX-License-Identifier: Apache-2.0
"""Programs that run inside a client or a backend: servers, loads, probes. Each prints one JSON object at its end."""
