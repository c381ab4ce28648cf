# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.decode`: captured datagrams of the ring as a readable timeline; `layers` has them for scapy."""
