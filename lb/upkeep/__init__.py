# SPDX-License-Identifier: Apache-2.0
"""Components that keep a gateway as it should be: work that comes round, and changes of the host that are followed."""
