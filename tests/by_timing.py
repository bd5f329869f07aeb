"""Beginnings of the names of metrics that depend on timing (docs/records.md): runs that are otherwise equal may differ
in them."""

BY_TIMING = ("seconds/", "records/", "tools/seconds", "decisions/waited_s", "engine/")
