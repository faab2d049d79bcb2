"""How an adapter's full name and its short one belong together."""

from __future__ import annotations

_DEFAULT_TENANT = "default"


def short_name(resource_name: str) -> str:
    """The shortest form that requests may use: "tenants/default/adapters/shop" is "shop".

    What is no full name comes back as it is.
    """
    match resource_name.split("/"):
        case ["tenants", tenant, "adapters", adapter]:
            return adapter if tenant == _DEFAULT_TENANT else f"{tenant}/{adapter}"
        case _:
            return resource_name
