"""The policy network: a decoder of DeepSeek-V3.2's shape in plain PyTorch, at any size."""
