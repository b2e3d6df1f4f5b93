"""The demo: a real run of two vLLM engines and a GRPO trainer on a sorting task, small enough for two cores."""
