"""JSON to tables, pictures and pages; nothing here measures."""
