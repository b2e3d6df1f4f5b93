"""The demo: a real run of two vLLM engines and a GRPO trainer on the sorting task, small enough for two cores."""
