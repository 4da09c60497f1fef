"""Models: the policy and its copies, the tokenizer, and the recipe of the embedded seed model."""
