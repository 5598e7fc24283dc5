"""What the admin pages of all apps share."""

from typing import Any

from django.contrib.admin import ActionLocation, ShowFacets
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from yral_chat.pagination import CappedPaginator


class DeskAdmin(ModelAdmin):
    """What every page of the desk begins with: the theme's, and no count of all rows beside each filter."""

    show_facets = ShowFacets.NEVER

    class Media:
        css = {"all": ("yral_chat/staff.css",)}

    def get_action_choices(
        self,
        request: HttpRequest,
        default_choices: Any = None,
        action_location: ActionLocation = ActionLocation.CHANGE_LIST,
    ) -> list[tuple[str, str]]:
        """As the theme's, which knows nothing yet of the place that Django tells."""
        first = default_choices or [("", "Select action")]
        return super(ModelAdmin, self).get_action_choices(request, first, action_location)


class ReadOnlyAdmin(DeskAdmin):
    """Staff look; nobody writes, deletes or renames what users and personas said."""

    show_full_result_count = False
    paginator = CappedPaginator
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
