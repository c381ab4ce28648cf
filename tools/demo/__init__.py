# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the product at its main job, in plain words, with the figures that prove it."""
