"""What the service tells of itself. In: events of requests and runs. Out: Prometheus metrics and JSON logs.

`metrics` declares them all, `traffic` knows which codes were seen lately, `metric_files` is where several workers
count.
"""
