"""Resources with the fields, defaults and values of the settings."""

from typing import Any, TypeVar

import dagster as dg
from pydantic import Field, create_model

from boring_assets.settings import Settings

Resource = TypeVar("Resource", bound=dg.ConfigurableResource | dg.ConfigurableIOManager)


def resource_from_settings(resource: type[Resource], settings: Settings) -> Resource:
    """Returns a resource with the values of the settings of the same names.

    A run configuration replaces all values of a configured resource: a field that it does not name gets the
    default of the class. So the values become the defaults of a subclass. Then a run configuration can change
    one field, and the launchpad shows the present values.
    """
    fields: dict[str, Any] = {}
    for name, field in resource.model_fields.items():
        value = getattr(settings, name)
        default = list(value) if isinstance(value, tuple) else value
        fields[name] = (field.annotation, Field(default, description=field.description))
    configured = create_model(
        resource.__name__, __base__=resource, __doc__=resource.__doc__, __module__=__name__, **fields
    )
    return configured()


def config_field(name: str, default: Any = None) -> Any:
    """Returns the field of a Dagster resource for a setting, with the same default and description.

    Args:
        name: The setting.
        default: The default in a type of Dagster's config; None is that of the setting.
    """
    setting = Settings.model_fields[name]
    return Field(setting.default if default is None else default, description=setting.description)
