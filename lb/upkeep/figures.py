# SPDX-License-Identifier: Apache-2.0
"""What the daemon's parts count, brought together when metrics are read."""

from lb.gateway import Gateway


def collect_figures(gateway: Gateway) -> None:
    """Registers what is read from the parts each time; for a gateway whose packet path is open."""
    unresolved = gateway.metrics.gauge("backends_unresolved", "Backends whose next hop is not known.")

    def collect() -> None:
        counted = gateway.metrics.import_counts
        control, driver, neighbours = gateway.control, gateway.driver, gateway.neighbours
        requests = {"answered": control.requests - control.refused, "refused": control.refused}
        counted("control_requests_total", "Requests on the control socket.", "outcome", requests)
        updates = {"done": driver.updates, "failed": driver.failures}
        counted("engine_updates_total", "Changes of the packet path's maps.", "outcome", updates)
        lookups = {"done": neighbours.lookups, "failed": neighbours.failures}
        counted("next_hop_lookups_total", "Lookups of backends' next hops.", "outcome", lookups)
        shed = {"subscribers": control.events_shed, "journal": gateway.journal.shed}
        counted("events_shed_total", "Events lost because nobody took them in time.", "where", shed)
        unresolved.set(len(neighbours.problems))

    gateway.metrics.collect(collect)
