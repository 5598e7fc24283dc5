"""What the admin pages of all apps share."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from yral_chat.pagination import CappedPaginator


class ReadOnlyAdmin(admin.ModelAdmin):
    """Staff look; nobody writes, deletes or renames what users and personas said."""

    show_full_result_count = False
    paginator = CappedPaginator
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
