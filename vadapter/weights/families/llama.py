"""Llama 2 and 3. They have one model type, and chats of different formats."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

register(llama_like("llama", LLAMA))
