"""Which rollout is this row of the trainer? And is its copy of the logprobs the record?"""
