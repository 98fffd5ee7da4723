"""How a result is judged: metrics, prompt suites, reports."""
