"""A value without a model: shorter answers are better."""


def concise(prompt: list[dict[str, str]], response: str) -> float:
    """Minus one for every hundred words of the response."""
    return -len(response.split()) / 100
