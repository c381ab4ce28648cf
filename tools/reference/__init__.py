# SPDX-License-Identifier: Apache-2.0
"""The reference pages of docs/, written from what they describe: `python -m tools.reference`."""
