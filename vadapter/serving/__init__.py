"""A server of trained models, after OpenAI's interface of chat completions. Needs the extra `serve`."""
