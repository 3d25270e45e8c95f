"""Conversations as text."""

from collections.abc import Mapping, Sequence

from steno.core.errors import MissingExtra, ModelError, PromptError


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation for a model without a template.

    >>> plain([{"role": "user", "content": "Hello"}])
    'user: Hello\\n\\nassistant:'
    """
    _check(messages)
    return "".join(f"{m['role']}: {m['content']}\n\n" for m in messages) + "assistant:"


def render(template: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, str]) -> str:
    """A conversation by the model's own Jinja template, in a sandbox."""
    _check(messages)
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtra("tokens.chat", "jinja2", "hf") from None

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=[dict(m) for m in messages], add_generation_prompt=True, **specials
        )
    except TemplateError as error:
        raise ModelError(
            f"Chat template: the model's template refused these messages ({error}). "
            "Send the roles in the order it expects, or use a plain prompt."
        ) from None


def _check(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise PromptError("Messages: the list is empty. Give at least one message with role and content.")
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise PromptError(
                f"Messages: number {number} needs text under both role and content; got {dict(message)!r}."
            )
