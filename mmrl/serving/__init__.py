"""A model behind HTTP, as OpenAI's and Anthropic's clients expect it.

limits     what a request may ask for, and what makes it wait or go away
fields     JSON of strangers, checked
prompts    messages to token ids
engine     continuous batching, stop sequences, the reading of responses
openai, completions, anthropic    the three APIs: a body to an `Ask`, parts of a reply to JSON
http       routes, keys, disconnects, server-sent events
"""
