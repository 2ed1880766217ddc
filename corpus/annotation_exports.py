"""Exports of annotation tools that have no column of labels, recognized by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from corpus.readers import FileRows

LABEL_STUDIO = (
    "it is a Label Studio export with nested annotations; export it as JSON-MIN or CSV, which have "
    "a column for each answer"
)
DOCCANO = (
    "it is a Doccano export with nested annotations; export it as JSONL or CSV, which have the "
    "columns text and label"
)
DOCCANO_SPANS = (
    "it is a Doccano export of labeled spans; export a project of the type text classification, "
    "which labels whole texts"
)


LABEL_STUDIO_KEYS = {"predictions", "drafts", "created_at", "file_upload"}  # some of them


def annotation_export(rows: FileRows) -> str:
    """How to export the file again, worded to follow `but`; empty if it is no known export."""
    nested = set(rows.nested)
    columns = {*rows.table.column_names, *nested}
    if {"data", "annotations"} <= nested and columns & LABEL_STUDIO_KEYS:
        return LABEL_STUDIO
    if "annotations" in nested and {"text", "annotation_approver"} <= columns:
        return DOCCANO
    has_relations = {"text", "entities", "relations"} <= columns and "entities" in nested
    has_spans = {"text", "label", "Comments"} <= columns and "label" in nested
    return DOCCANO_SPANS if has_relations or has_spans else ""


def check_annotation_export(rows: FileRows, flag: str) -> None:
    """Raise UserError if a file is an export that cannot be read as texts and labels."""
    advice = annotation_export(rows)
    if advice:
        raise UserError(f"{flag} is {rows.path}, but {advice}")
