# SPDX-License-Identifier: Apache-2.0
"""Operator and developer tools: lbctl, benchmarks, decoders, the demo."""
