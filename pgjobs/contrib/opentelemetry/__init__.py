"""OpenTelemetry: one trace from the code that enqueues a job to its handler, and metrics.

    telemetry = OpenTelemetry()
    client = Client("postgresql://localhost/app", hooks=[telemetry], middleware=[telemetry.send])
    telemetry.observe(client)  # the gauges of its queues, in one process or in all

It needs `opentelemetry-api` alone. Without an SDK that the application has set up, nothing is recorded.

The context of the sender travels in the metadata of the job: `traceparent` and `tracestate`, as the W3C defines them.
The first attempt of a job that has waited for less than an hour is a child of the span that sent it. Every other
attempt (a retry, a job of a schedule or of `enqueue_many`) begins a trace of its own, with a link to that span.
"""

from pgjobs.contrib.opentelemetry.instruments import GAUGES, INSTRUMENTS
from pgjobs.contrib.opentelemetry.propagation import carrier
from pgjobs.contrib.opentelemetry.telemetry import OpenTelemetry

__all__ = ["GAUGES", "INSTRUMENTS", "OpenTelemetry", "carrier"]
