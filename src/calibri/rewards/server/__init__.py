"""Serve a reward over HTTP, for runs on other machines or in other environments."""

from calibri.rewards.server.adapter import serve_reward

__all__ = ["serve_reward"]
